"""Check the folder of an adapter that is to be served: complete, fits the base, and of a kind that vLLM loads."""

from adapter_checks import base_fit
from adapter_checks.adapter_folder import AdapterFolder

from server_launch.launch_checks import merge

SERVED_KINDS = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"}


def check_adapter(name: str, folder: str, base: str) -> AdapterFolder:
    """Read an adapter's folder; raises FileNotFoundError or ValueError with one line unless vLLM can serve it.

    name: the adapter's name in requests; base: the base's folder, or a name on the hub, which is not compared.
    """
    try:
        adapter = base_fit.check_adapter(folder, base)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"adapter {name}: {error}") from None
    for module, parts in adapter.parts.items():
        copies = {"base_layer"} if module.rpartition(".")[2] in (base_fit.EMBEDDING, base_fit.OUTPUT) else set()
        other = sorted(set(parts) - SERVED_KINDS - copies)  # vLLM skips PEFT's copies of these two matrices
        if other:
            raise ValueError(
                f"adapter {name}: {folder} holds {other[0]} of {module}, which vLLM does not load as an adapter; "
                f"{merge(folder)}"
            )
    return adapter


def ranks(adapter: AdapterFolder) -> dict[str, int]:
    """Rank of the matrices of each module that an adapter changes."""
    down = ("lora_A", "lora_embedding_A")
    return {module: parts[kind][0] for module, parts in adapter.parts.items() for kind in down if kind in parts}
