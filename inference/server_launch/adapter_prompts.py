"""The prompt encoder of an adapter: its own tokenizer and chat template, or the base's if its folder has none.

vLLM encodes text prompts and decodes answers with the base's tokenizer, whichever adapter a request names. An adapter's
tokenizer must therefore have the same pieces with the same ids as the base's.
"""

from command_line.command_errors import one_line

from pathlib import Path
from typing import Any

from chat_prompts.prompt_encoding import PromptEncoder
from chat_prompts.template_files import folder_template

# tokenizer.model is not in the list: transformers would convert it with another order of merges.
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")


def adapter_prompt_encoder(folder: str, base: PromptEncoder) -> PromptEncoder:
    """Return the prompt encoder of an adapter's folder.

    base: the base's encoder, whose template is that of --template_path if the option is given. Raises ValueError if the
    adapter's tokenizer cannot be read or its pieces and ids differ from the base's.
    """
    path = Path(folder).expanduser()
    tokenizer = read_tokenizer(path)
    if tokenizer is None:
        return PromptEncoder(base.tokenizer, folder_template(path) or base.template)
    check_token_ids(folder, tokenizer.get_vocab(), base.tokenizer.get_vocab())
    return PromptEncoder(tokenizer, tokenizer.chat_template or base.template)


def read_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a folder, None if it has none; raises ValueError if it cannot be read."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the tokenizer libraries raise exceptions of many classes
        raise ValueError(
            f"{folder}: the tokenizer cannot be read ({one_line(error)}); copy the base's tokenizer files into it"
        ) from error


def check_token_ids(folder: str, adapter_ids: dict[str, int], base_ids: dict[str, int]) -> None:
    """Raise ValueError unless the adapter's and the base's tokenizer have the same pieces with the same ids."""
    different = set(adapter_ids.items()) ^ set(base_ids.items())
    if not different:
        return
    piece = min(different, key=lambda entry: (entry[1], entry[0]))[0]
    adapter_id, base_id = (table.get(piece, "none") for table in (adapter_ids, base_ids))
    count = len({name for name, _ in different})
    raise ValueError(
        f"{folder} has another tokenizer than the base: {count} pieces differ, {piece!r} has id {adapter_id} in the "
        f"adapter and {base_id} in the base; give the base that the adapter was trained on, or merge it into that base"
    )
