"""Load a checkpoint folder, optionally with an adapter, onto the GPUs or the CPU of this machine."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

from adapter_loading.checkpoint_loading import check_folders, load_checkpoint
from chat_prompts.prompt_encoding import PromptEncoder
from chat_prompts.template_files import folder_template, read_template
from hub_download.checkpoint_names import checkpoint_folder

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
    template_path: str = "",
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Load a checkpoint, with the adapter of lora_weights attached, to the GPU if there is one.

    base_model and lora_weights are folders or names of hub repositories (`checkpoint_folder`). On a GPU the weights are
    bfloat16 (float16 before Ampere); on the CPU they keep the dtype of the files. The adapter's tokenizer, template and
    extraction.json take precedence over the base's; template_path names a file with another chat template. Python code
    in the folders is executed only if trust_remote_code is true. Raises ValueError or FileNotFoundError with one line.
    """
    base_model = str(checkpoint_folder(base_model, "--base_model"))
    lora_weights = str(checkpoint_folder(lora_weights, "--lora_weights")) if lora_weights else ""
    check_folders(base_model, lora_weights)
    given = read_template(template_path, "--template_path") if template_path else None
    template = given or folder_template(lora_weights, base_model)
    files = [Path(folder, "extraction.json") for folder in (lora_weights, base_model) if folder]
    extraction = next((read_extraction(file) for file in files if file.is_file()), {})
    import torch
    import transformers

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    options = loading_options(gpus, load_8bit, multi_gpu, allocate or []) | {"trust_remote_code": trust_remote_code}
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    half = torch.bfloat16 if gpus and torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    model, tokenizer = load_checkpoint(base_model, lora_weights, dtype=half if gpus else "auto", **options)
    devices = set(getattr(model, "hf_device_map", {}).values())
    if len(devices) > 1 and devices & {"cpu", "disk"}:
        raise ValueError(f"{base_model} does not fit into the GPU memory that it may use; raise --allocate or add GPUs")
    encoder = PromptEncoder(tokenizer, template)
    return Checkpoint(model, encoder, extraction)


def loading_options(gpus: int, load_8bit: bool, multi_gpu: bool, allocate: list[int]) -> dict[str, Any]:
    """Return from_pretrained's options for devices and quantisation.

    gpus: number of GPUs of this machine. allocate: GiB for each GPU; [] lets accelerate decide. Raises ValueError if
    GPUs are missing, or if `allocate` is invalid or given without multi_gpu.
    """
    if min(allocate, default=1) < 1:
        raise ValueError(f"--allocate takes GiB for each GPU, as in [10,10,10], not {allocate}")
    if allocate and not multi_gpu:
        raise ValueError("--allocate divides a model among several GPUs; add --multi_gpu")
    needed = max(len(allocate), 1) if multi_gpu or load_8bit else 0
    if gpus < needed:
        option = "--allocate" if allocate else "--multi_gpu" if multi_gpu else "--load_8bit"
        count = "one NVIDIA GPU" if needed == 1 else f"{needed} NVIDIA GPUs"
        raise ValueError(f"{option} needs {count}, this machine has {gpus}; change or remove {option}")
    options: dict[str, Any] = {}
    if gpus:
        options["device_map"] = "auto" if multi_gpu else {"": 0}
    if allocate:
        options["max_memory"] = {gpu: f"{share}GiB" for gpu, share in enumerate(allocate)}
    if load_8bit:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    return options
