"""Adapter folders that vLLM can serve on a base: LoRA matrices only, and a tokenizer with the base's ids.

vLLM encodes text prompts and decodes answers with the base's tokenizer, whichever adapter a request names. An adapter's
tokenizer must therefore have the same pieces with the same ids as the base's.
"""

from command_line.command_errors import one_line

from pathlib import Path
from typing import Any

from adapter_checks import base_fit
from adapter_checks.adapter_folder import AdapterFolder
from chat_prompts.prompt_encoding import PromptEncoder
from chat_prompts.template_files import folder_template

from server_launch.launch_checks import merge_remedy

SERVED_KINDS = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"}
# tokenizer.model is not in the list: transformers would convert it with another order of merges.
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")


def check_served_adapter(name: str, folder: str, base: str) -> AdapterFolder:
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
                f"adapter; {merge_remedy(folder)}"
            )
    return adapter


def adapter_prompt_encoder(folder: str, base: PromptEncoder) -> PromptEncoder:
    """Return the prompt encoder of an adapter's folder; the base's tokenizer or template if the folder has none.

    base: the base's encoder, whose template is that of --template_path if the option is given. Raises ValueError if the
    adapter's tokenizer cannot be read or its pieces and ids differ from the base's.
    """
    path = Path(folder).expanduser()
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        return PromptEncoder(base.tokenizer, folder_template(path) or base.template)
    tokenizer = load_tokenizer(path)
    check_token_ids(folder, tokenizer.get_vocab(), base.tokenizer.get_vocab())
    return PromptEncoder(tokenizer, tokenizer.chat_template or base.template)


def load_tokenizer(folder: str | Path) -> Any:
    """Return the tokenizer of a folder; raises ValueError if it cannot be read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the tokenizer libraries raise exceptions of many classes
        reason = f"the tokenizer cannot be read ({one_line(error)})"
        raise ValueError(f"{folder}: {reason}; copy the tokenizer files of its base into it") from error


def check_token_ids(folder: str, adapter_ids: dict[str, int], base_ids: dict[str, int]) -> None:
    """Raise ValueError unless the adapter's and the base's tokenizer have the same pieces with the same ids."""
    different = set(adapter_ids.items()) ^ set(base_ids.items())
    if different:
        piece = min(different, key=lambda entry: (entry[1], entry[0]))[0]
        raise ValueError(
            f"{folder} has another tokenizer than the base: {len({name for name, _ in different})} pieces differ, "
            f"{piece!r} has id {adapter_ids.get(piece, 'none')} in the adapter and {base_ids.get(piece, 'none')} in "
            "the base; give the base that the adapter was trained on, or merge it into that base"
        )
