"""Attach an adapter to a loaded base with PEFT."""

import warnings
from pathlib import Path
from typing import Any

from adapter_checks.adapter_folder import AdapterFolder, group_by_module, read_adapter_folder, saved_name
from adapter_checks.base_fit import EMBEDDING, OUTPUT, REMEDY


def attach_adapter(model: Any, folder: str | Path, base: str | Path, merge: bool = False) -> Any:
    """Return the model with the adapter attached.

    merge: add the deltas to the weights, which makes generation faster. An adapter that changes one of two tied
    matrices is not merged, since this would change both. Raises ValueError if the folder lacks a tensor or has one that
    the model does not have.
    """
    adapter = read_adapter_folder(folder)
    vocabulary_size = adapter_vocabulary_size(adapter)
    if vocabulary_size > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(vocabulary_size, mean_resizing=False)  # all rows come from the adapter
    adapted = load_peft_model(model, adapter, base)
    check_all_loaded(adapted, adapter, base)
    return adapted.merge_and_unload() if merge and not changes_tied_matrix(adapted, adapter) else adapted


def load_peft_model(model: Any, adapter: AdapterFolder, base: str | Path) -> Any:
    """Load an adapter with PeftModel.from_pretrained; raises ValueError with a one-line message if PEFT fails.

    from_pretrained does not load modules_to_save if tensor names contain the adapter's name (ADAPTER_NAME_IN_KEY). In
    this case, the tensors are loaded by set_peft_model_state_dict, under the names that `saved_name` returns.
    """
    from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
    from peft.utils import load_peft_weights
    from safetensors import SafetensorError

    try:
        with warnings.catch_warnings(action="ignore"):  # about missing tensors; check_all_loaded refuses them
            if not adapter.has_adapter_name_in_keys:
                return PeftModel.from_pretrained(model, str(adapter.path))
            adapted = get_peft_model(model, PeftConfig.from_pretrained(str(adapter.path), inference_mode=True))
            weights = load_peft_weights(str(adapter.path), device="cpu")
            set_peft_model_state_dict(adapted, {saved_name(name): weight for name, weight in weights.items()})
            return adapted
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, AttributeError, SafetensorError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{adapter.path} does not fit {base}: {lines[0].strip()}; {REMEDY}") from error


def check_all_loaded(adapted: Any, adapter: AdapterFolder, base: str | Path) -> None:
    """Raise ValueError unless the model's adapter and the folder have tensors for the same modules."""
    from peft import get_peft_model_state_dict

    in_model = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    model_parts = group_by_module({name: tuple(tensor.shape) for name, tensor in in_model.items()}, adapter.path)
    names = dict(adapted.get_base_model().named_modules())
    # Full tensors are not LoRA factors; PEFT loads them into the base if their module is not wrapped.
    full_tensors = {"base_layer", "weight", "bias"}
    expected = {(module, kind) for module, parts in model_parts.items() for kind in parts}
    stored = {(module, kind) for module, parts in adapter.parts.items() for kind in parts}
    unexpected = {
        (module, kind) for module, kind in stored - expected if kind not in full_tensors or module not in names
    }
    different = sorted((expected - stored) | unexpected)
    if different:
        module, kind = different[0]
        raise ValueError(
            f"{adapter.path} does not fit {base}: missing or unexpected tensors: {len(different)} ({kind} of "
            f"{module}, for example); {REMEDY}"
        )


def adapter_vocabulary_size(adapter: AdapterFolder) -> int:
    """Return the number of rows of the embedding matrix in the adapter's files; 0 without one."""
    found = [parts for module, parts in adapter.parts.items() if module.rpartition(".")[2] == EMBEDDING]
    return max((parts[kind][0] for parts in found for kind in ("weight", "base_layer") if kind in parts), default=0)


def changes_tied_matrix(adapted: Any, adapter: AdapterFolder) -> bool:
    """Return whether the adapter changes the embedding or output matrix of a model that ties these two."""
    model = adapted.get_base_model()
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    leaf_names = {module.rpartition(".")[2] for module in adapter.parts}
    return bool(tied and leaf_names & {EMBEDDING, OUTPUT})
