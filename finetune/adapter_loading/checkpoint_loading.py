"""Load a checkpoint folder and its tokenizer, optionally with an adapter."""

from pathlib import Path
from typing import Any

from adapter_checks.adapter_config import read_config
from adapter_checks.base_fit import lacks_added_tokens, read_adapter_for_base
from exact_tokenizers.special_ids import correct_model_ids
from exact_tokenizers.tokenizer_folders import exact_tokenizer_folder
from model_folders.attention_backends import attention_backend
from model_folders.diff_recognition import refuse_diff
from model_folders.own_code import OwnCodeError, from_folder
from model_folders.weight_files import weight_files

from adapter_loading.adapter_attachment import attach_adapter

TOKENIZER_FILES = (("tokenizer.json", "tokenizer_config.json"), ("tokenizer.model",))  # one of these groups is enough


def check_folders(base_model: str, lora_weights: str = "") -> None:
    """Raise FileNotFoundError or ValueError unless the folders contain a checkpoint and, if given, its adapter."""
    base = Path(base_model)
    if not base.is_dir():
        raise FileNotFoundError(
            f"{base} does not exist; --base_model takes a checkpoint folder (from the hub: python tools/download.py "
            "--specify --repo_name OWNER/NAME --download_path FOLDER)"
        )
    weights, is_configured = weight_files(base), (base / "config.json").is_file()
    if (base / "adapter_config.json").is_file():
        raise ValueError(f"{base} is an adapter; give it as --lora_weights, with its base as --base_model")
    if not is_configured:
        raise ValueError(f"{base} has no config.json; --base_model takes a checkpoint folder")
    read_config(base / "config.json")
    refuse_diff(base)
    if not weights:
        raise FileNotFoundError(
            f"{base} has no weights (model.safetensors, or shards with their index); download or copy it again"
        )
    tokenizer_folder(base_model, lora_weights)
    if lora_weights:
        read_adapter_for_base(lora_weights, base_model)


def tokenizer_folder(base_model: str, lora_weights: str = "") -> str:
    """Return the folder to read the tokenizer from: the adapter's if it has a tokenizer, else the base's.

    If the adapter's tokenizer lacks only the last tokens of the base's tokenizer, the base's folder is returned. Raises
    FileNotFoundError if neither folder has a tokenizer.
    """
    is_shorter = bool(lora_weights) and lacks_added_tokens(Path(lora_weights), Path(base_model))
    for folder in (base_model,) if is_shorter else (lora_weights, base_model):
        if folder and any(all(Path(folder, name).is_file() for name in names) for names in TOKENIZER_FILES):
            return folder
    raise FileNotFoundError(
        f"{base_model} has no tokenizer (tokenizer.json and tokenizer_config.json, or tokenizer.model); copy it there"
    )


def load_checkpoint(
    base_model: str, lora_weights: str = "", merge: bool = False, trust_remote_code: bool = False, **options: Any
) -> tuple[Any, Any]:
    """Return (model in evaluation mode, tokenizer).

    The tokenizer is read from `tokenizer_folder(base_model, lora_weights)`; callers read the chat template with
    `folder_template(lora_weights, base_model)`. merge: see attach_adapter. trust_remote_code: execute Python code in
    the folders. options: arguments of from_pretrained (dtype, device_map, …). Raises FileNotFoundError or ValueError
    if a folder is incomplete or damaged, or if adapter and base do not fit each other.
    """
    check_folders(base_model, lora_weights)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = load_base(AutoModelForCausalLM, base_model, trust_remote_code, **options)
    exact = exact_tokenizer_folder(tokenizer_folder(base_model, lora_weights), trust_remote_code)
    tokenizer = from_folder(AutoTokenizer, exact, trust_remote_code)
    correct_model_ids(model, tokenizer, base_model)
    if lora_weights:
        model = attach_adapter(model, lora_weights, base_model, merge)
    embeddings = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > embeddings:
        raise ValueError(
            f"{base_model} has {embeddings} embeddings, but the tokenizer has {len(tokenizer)} pieces; use the "
            "tokenizer of this model"
        )
    return model.eval(), tokenizer


def load_base(model_class: Any, base_model: str, trust_remote_code: bool = False, **options: Any) -> Any:
    """Call from_pretrained on a local folder; raises ValueError if a tensor is missing, unknown or of another shape.

    model_class: for example AutoModelForCausalLM. transformers initialises missing tensors at random and drops unknown
    ones; it logs both, but does not fail.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig

    try:
        config = from_folder(AutoConfig, base_model, trust_remote_code)
        options["attn_implementation"] = attention_backend(config, options.get("attn_implementation"))
        model, loading_info = from_folder(
            model_class, base_model, trust_remote_code, output_loading_info=True, **options
        )
    except OwnCodeError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{base_model} cannot be loaded: {lines[0].strip()}") from error
    faulty = sorted(
        map(str, [*loading_info["missing_keys"], *loading_info["mismatched_keys"], *loading_info["unexpected_keys"]])
    )
    if faulty:
        raise ValueError(
            f"{base_model}: tensors missing, unknown or of another shape: {len(faulty)} ({faulty[0]}, for example); "
            "download or copy it again"
        )
    return model
