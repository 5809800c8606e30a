"""Check that vLLM can serve an adapter on its base: complete files, matching shapes, LoRA matrices only."""

from adapter_checks import base_fit
from adapter_checks.adapter_folder import AdapterFolder

from server_launch.launch_checks import merge

SERVED_KINDS = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"}


def check_adapter(name: str, folder: str, base: str) -> AdapterFolder:
    """Read an adapter's folder and compare it with its base.

    name: the adapter's name in requests; base: a checkpoint folder, or a name on the hub, which is not compared.
    Raises FileNotFoundError or ValueError, each with one line, if vLLM cannot serve the adapter.
    """
    try:
        adapter = base_fit.read_adapter_for_base(folder, base)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"adapter {name}: {error}") from None
    for module, parts in adapter.parts.items():
        # PEFT may save copies of these two matrices of the base, which vLLM skips.
        copies = {"base_layer"} if module.rpartition(".")[2] in (base_fit.EMBEDDING, base_fit.OUTPUT) else set()
        unsupported = sorted(set(parts) - SERVED_KINDS - copies)
        if unsupported:
            raise ValueError(
                f"adapter {name}: {folder} holds {unsupported[0]} of {module}, which vLLM does not load as an "
                f"adapter; {merge(folder)}"
            )
    return adapter


def module_ranks(adapter: AdapterFolder) -> dict[str, int]:
    """Return the rank of each module's LoRA matrices."""
    down = ("lora_A", "lora_embedding_A")
    return {module: parts[kind][0] for module, parts in adapter.parts.items() for kind in down if kind in parts}
