"""Load a checkpoint folder, or a base with an adapter on it, to where this machine can run it."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from chat_prompts.prompt_encoding import PromptEncoder
from chat_prompts.template_files import folder_template


class Checkpoint(NamedTuple):
    """A loaded model with the encoder of its prompts, and the content of its extraction.json (empty without one)."""

    model: Any
    encoder: PromptEncoder
    extraction: dict[str, Any]

    @property
    def tokenizer(self) -> Any:
        return self.encoder.tokenizer


def load(
    base_model: str,
    lora_weights: str = "",
    load_8bit: bool = False,
    multi_gpu: bool = False,
    allocate: list[int] | None = None,
) -> Checkpoint:
    """Load a checkpoint folder, with the adapter of lora_weights put on it, to the GPU if there is one.

    On a GPU the weights are bfloat16 (float16 before Ampere), on the CPU as they are on disk. The tokenizer and with it
    the template are the adapter's where it has them. Raises ValueError or FileNotFoundError with one line.
    """
    shares = allocate or []
    if min(shares, default=1) < 1:
        raise ValueError(f"--allocate takes GiB for each GPU, as in [10,10,10], not {shares}")
    check_folders(base_model, lora_weights)
    import torch
    import transformers
    from safetensors import SafetensorError

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    where = placement(multi_gpu, shares, gpus) | quantisation(load_8bit, gpus)
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    half = torch.bfloat16 if gpus and torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            base_model, dtype=half if gpus else "auto", output_loading_info=True, **where
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder(base_model, lora_weights))
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ValueError(f"{base_model} cannot be loaded: {first_line(error)}") from error
    model, report = loaded
    check_model(model, len(tokenizer), report, base_model)
    if lora_weights:
        model = with_adapter(model, lora_weights, base_model)
    model.eval()
    encoder = PromptEncoder(tokenizer, folder_template(lora_weights))
    return Checkpoint(model, encoder, read_extraction(lora_weights) or read_extraction(base_model))


def check_folders(base_model: str, lora_weights: str = "") -> None:
    """Raise FileNotFoundError or ValueError with one line where the folders are no checkpoint and no adapter."""
    base, adapter = Path(base_model), Path(lora_weights)
    if not base.is_dir():
        raise FileNotFoundError(
            f"{base} does not exist; --base_model takes a checkpoint folder (from the hub: python tools/download.py "
            "--specify --repo_name OWNER/NAME --download_path FOLDER)"
        )
    if not (base / "config.json").is_file():
        if (base / "adapter_config.json").is_file():
            raise ValueError(f"{base} is an adapter; give it as --lora_weights, beside its --base_model")
        raise ValueError(f"{base} is no checkpoint (no config.json); name a folder that has one")
    if not [*base.glob("*.safetensors"), *base.glob("pytorch_model*.bin")]:
        raise FileNotFoundError(f"{base} has no weights (model*.safetensors); download or copy it again")
    if lora_weights and not (adapter / "adapter_config.json").is_file():
        raise ValueError(
            f"{adapter} is no adapter (no adapter_config.json); for a merged model leave --lora_weights out"
        )
    tokenizer_folder(base_model, lora_weights)


def tokenizer_folder(base_model: str, lora_weights: str) -> str:
    """The adapter's folder where it has a tokenizer, else the base's; raises FileNotFoundError where neither has."""
    for folder in (lora_weights, base_model):
        if folder and Path(folder, "tokenizer_config.json").is_file():
            return folder
    raise FileNotFoundError(
        f"{base_model} has no tokenizer (tokenizer_config.json); copy it there, or from a tokenizer.model: "
        f"python tools/build_tokenizer.py --tokenizer_model M --output_dir {base_model}"
    )


def check_model(model: Any, pieces: int, report: dict[str, Any], base_model: str) -> None:
    """Raise ValueError where tensors were missing, embeddings are too few, or the GPUs cannot hold the whole model."""
    lost = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if lost:
        raise ValueError(f"{base_model} lacks {len(lost)} of its tensors ({lost[0]} …); download or copy it again")
    embeddings = model.get_input_embeddings().weight.shape[0]
    if pieces > embeddings:
        raise ValueError(
            f"{base_model} has {embeddings} embeddings, the tokenizer {pieces} pieces; take the tokenizer of this model"
        )
    placed = set(getattr(model, "hf_device_map", {}).values())
    if len(placed) > 1 and placed & {"cpu", "disk"}:
        raise ValueError(f"{base_model} does not fit into the GPU memory that it may use; raise --allocate or add GPUs")


def with_adapter(model: Any, lora_weights: str, base_model: str) -> Any:
    """The model with the adapter on it; raises ValueError unless every LoRA tensor of the file found its place."""
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights
    from safetensors import SafetensorError

    try:
        with warnings.catch_warnings(action="ignore"):  # PEFT only warns of missing tensors; below they are an error
            adapted = PeftModel.from_pretrained(model, lora_weights)
        on_disk = set(load_peft_weights(lora_weights, device="cpu"))
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ValueError(f"{lora_weights} does not fit {base_model}: {first_line(error)}") from error
    in_model = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    strays = sorted((in_model - on_disk) | {key for key in on_disk - in_model if "lora_" in key})
    if strays:
        raise ValueError(
            f"{lora_weights} does not fit {base_model}: {len(strays)} tensors are on one side only ({strays[0]} …); "
            "give the base model that the adapter was trained on"
        )
    return adapted


def read_extraction(folder: str) -> dict[str, Any]:
    """The folder's extraction.json, {} without one."""
    path = Path(folder, "extraction.json")
    return json.loads(path.read_text(encoding="utf-8")) if folder and path.is_file() else {}


def first_line(error: Exception) -> str:
    """The first line of an error's message that says something, or the error's name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# --- where the weights go ---------------------------------------------------------------------------------------------


def placement(multi_gpu: bool, shares: list[int], gpus: int) -> dict[str, Any]:
    """from_pretrained's arguments that say where the weights go; raises ValueError on more shares than GPUs.

    shares: GiB for each GPU, [] to let accelerate decide; gpus: how many this machine has.
    """
    if not multi_gpu:
        if shares:
            raise ValueError("--allocate shares a model out over several GPUs; give --multi_gpu with it")
        return {"device_map": {"": 0}} if gpus else {}
    if gpus < max(len(shares), 1):
        asked = f"--allocate names {len(shares)} GPUs" if shares else "--multi_gpu needs GPUs"
        raise ValueError(f"{asked}, this machine has {gpus}; name as many as there are, or leave --multi_gpu out")
    limits = {"max_memory": {gpu: f"{share}GiB" for gpu, share in enumerate(shares)}} if shares else {}
    return {"device_map": "auto", **limits}


def quantisation(load_8bit: bool, gpus: int) -> dict[str, Any]:
    """from_pretrained's argument for 8-bit weights; raises ValueError where bitsandbytes or a GPU is missing."""
    if not load_8bit:
        return {}
    from importlib.util import find_spec

    needs = {
        "an NVIDIA GPU": gpus > 0,
        "bitsandbytes (pip install bitsandbytes)": find_spec("bitsandbytes") is not None,
    }
    missing = [name for name, is_there in needs.items() if not is_there]
    if missing:
        raise ValueError(f"--load_8bit needs {' and '.join(missing)}, not found here; leave it out")
    from transformers import BitsAndBytesConfig

    return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
