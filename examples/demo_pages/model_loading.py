"""Load a checkpoint folder, optionally with an adapter, onto the GPUs or the CPU of this machine."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

from adapter_loading.checkpoint_loading import check_folders, load_checkpoint
from chat_prompts.prompt_encoding import PromptEncoder
from chat_prompts.template_files import folder_template

from demo_pages.extraction_prompts import read_extraction


class Checkpoint(NamedTuple):
    """A loaded model, its prompt encoder, and the content of its extraction.json (empty without one)."""

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
    """Load a checkpoint folder, with the adapter of lora_weights attached, to the GPU if there is one.

    On a GPU the weights are bfloat16 (float16 before Ampere); on the CPU they keep the dtype of the files. Tokenizer
    and chat template are the adapter's if it has them. Raises ValueError or FileNotFoundError with one line.
    """
    shares = allocate or []
    if min(shares, default=1) < 1:
        raise ValueError(f"--allocate takes GiB for each GPU, as in [10,10,10], not {shares}")
    check_folders(base_model, lora_weights)
    files = [Path(folder, "extraction.json") for folder in (lora_weights, base_model) if folder]
    extraction = next((read_extraction(file) for file in files if file.is_file()), {})
    import torch
    import transformers

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    where = placement(multi_gpu, shares, gpus) | quantisation(load_8bit, gpus)
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    half = torch.bfloat16 if gpus and torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    model, tokenizer = load_checkpoint(base_model, lora_weights, dtype=half if gpus else "auto", **where)
    devices = set(getattr(model, "hf_device_map", {}).values())
    if len(devices) > 1 and devices & {"cpu", "disk"}:
        raise ValueError(f"{base_model} does not fit into the GPU memory that it may use; raise --allocate or add GPUs")
    encoder = PromptEncoder(tokenizer, folder_template(lora_weights))
    return Checkpoint(model, encoder, extraction)


def placement(multi_gpu: bool, shares: list[int], gpus: int) -> dict[str, Any]:
    """Return from_pretrained's options for the devices of the weights; raises ValueError if GPUs are missing.

    shares: GiB for each GPU, [] to let accelerate decide; gpus: number of GPUs of this machine.
    """
    if not multi_gpu:
        if shares:
            raise ValueError("--allocate divides a model among several GPUs; add --multi_gpu")
        return {"device_map": {"": 0}} if gpus else {}
    if gpus < max(len(shares), 1):
        asked = f"--allocate names {len(shares)} GPUs" if shares else "--multi_gpu needs GPUs"
        raise ValueError(f"{asked}, this machine has {gpus}; name that many, or remove --multi_gpu")
    limits = {"max_memory": {gpu: f"{share}GiB" for gpu, share in enumerate(shares)}} if shares else {}
    return {"device_map": "auto", **limits}


def quantisation(load_8bit: bool, gpus: int) -> dict[str, Any]:
    """Return from_pretrained's options for 8-bit weights; raises ValueError without bitsandbytes or a GPU."""
    if not load_8bit:
        return {}
    from importlib.util import find_spec

    needs = {
        "an NVIDIA GPU": gpus > 0,
        "bitsandbytes (pip install bitsandbytes)": find_spec("bitsandbytes") is not None,
    }
    missing = [name for name, is_there in needs.items() if not is_there]
    if missing:
        raise ValueError(
            f"--load_8bit needs {' and '.join(missing)}, not found here; install it, or remove --load_8bit"
        )
    from transformers import BitsAndBytesConfig

    return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
