"""How an adapter is asked: with its own tokenizer and chat template, as far as they fit the base that answers.

vLLM itself renders, reads and writes with the base's tokenizer whatever adapter a request names, so an adapter's own
must give every piece the id that the base gives it. What an adapter's folder lacks is the base's.
"""

from pathlib import Path
from typing import Any

from chat_prompts.prompt_encoding import PromptEncoder
from chat_prompts.template_files import folder_template

TOKENIZERS = ("tokenizer.json", "vocab.json")  # a tokenizer.model alone would be converted anew, with other merges


def adapter_prompt(folder: str, base: PromptEncoder) -> PromptEncoder:
    """The prompt encoder of an adapter: its own template, else the base's (which --template_path may have given).

    Raises ValueError where its tokenizer cannot be read or has other ids than the base's.
    """
    here = Path(folder).expanduser()
    words = read_tokenizer(here)
    if words is None:
        return PromptEncoder(base.tokenizer, folder_template(here) or base.template)
    check_ids(folder, words.get_vocab(), base.tokenizer.get_vocab())
    return PromptEncoder(words, words.chat_template or base.template)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer in an adapter's folder, None where it has none; ValueError where it cannot be read."""
    if not any((folder / name).is_file() for name in TOKENIZERS):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # of whatever library reads it
        said = " ".join(str(error).split())
        raise ValueError(f"{folder}: the tokenizer cannot be read ({said}); copy the base's into it") from error


def check_ids(folder: str, own: dict[str, int], base: dict[str, int]) -> None:
    """Raise ValueError unless the two tables of pieces are the same."""
    other = set(own.items()) ^ set(base.items())
    if not other:
        return
    piece = min(other, key=lambda entry: (entry[1], entry[0]))[0]
    theirs, ours = (str(table.get(piece, "none")) for table in (base, own))
    raise ValueError(
        f"{folder} has another tokenizer than the base: {len({name for name, _ in other})} pieces differ; {piece!r}, "
        f"for one, has id {ours} here and {theirs} there; name the base it was tuned on, or merge it into that"
    )
