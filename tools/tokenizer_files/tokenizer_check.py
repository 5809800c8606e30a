"""Compare a built tokenizer with the original on hard cases and real text, and write its files."""

import hashlib
import json
import shutil
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from json_rows.row_files import iterate_texts
from tokenizers import Tokenizer

LIBRARY_CHARACTERS = 2_000_000  # from the sources of Python's standard library

# Frequent errors of converters: spaces, control tokens as text, byte fallback, Chinese, emoji, code, digits.
HARD_TEXTS = (
    "", " ", "  two  spaces  ", "\n\n", "\ttab", "▁", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "\u0000 nul", "{{ x }} %s",
    "<s>literal</s> <unk> tokens", "<0x0A> is text", "def f(x):\n    return x  # ▁ underline", "3.14159 2,000 1e-5",
    "李白乘舟将欲行，忽闻岸上踏歌声。", "𠮷野家 🤖👩‍👩‍👧 e\u0301 \u200b \ufeff", "ａｂｃ全角 １２３", "don't—“quote”…",
    "Ünïcödé ﷺ naïve café Ⅷ ½",
)  # fmt: skip


def fingerprint(tokenizer: Tokenizer) -> str:
    """Return the sha256 of the pieces in id order, one `id<TAB>piece` line each (JSON-escaped)."""
    table = sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    return hashlib.sha256("".join(f"{i}\t{json.dumps(p)}\n" for p, i in table).encode()).hexdigest()


def write_tokenizer_files(target: Path, tokenizer: Tokenizer, config: dict[str, Any], model: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and a copy of tokenizer.model into target, replacing older ones."""
    target.mkdir(parents=True, exist_ok=True)
    partial = target / ".tokenizer.partial"
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed run
    partial.mkdir()
    try:
        tokenizer.save(str(partial / "tokenizer.json"))
        (partial / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
        shutil.copyfile(model, partial / "tokenizer.model")
        for file in sorted(partial.iterdir()):
            file.replace(target / file.name)
    finally:
        shutil.rmtree(partial)


def check_equal_ids(tokenizer: Tokenizer, reference: Any, texts: Iterable[str], name: str = "SentencePiece") -> int:
    """Compare ids on every text, without BOS and with control tokens treated as text; return the number of texts.

    reference: an object whose `encode` returns the original's ids; name: the original's name in the error message.
    Raises ValueError at the first difference.
    """
    tokenizer.encode_special_tokens = True
    count = 0
    for text in texts:
        ids, expected = tokenizer.encode(text, add_special_tokens=False).ids, reference.encode(text)
        if ids != expected:
            pairs = enumerate(zip(ids, expected, strict=False))
            at = next((i for i, (one, other) in pairs if one != other), min(len(ids), len(expected)))
            raise ValueError(
                f"the built tokenizer differs from {name} at token {at} of {text[:60]!r}: "
                f"{ids[at : at + 4]} instead of {expected[at : at + 4]}; use {name} itself for this model"
            )
        count += 1
    tokenizer.encode_special_tokens = False
    return count


def comparison_texts(check_path: str = "") -> Iterator[str]:
    """Yield HARD_TEXTS, then the texts of the file check_path, or by default sources of Python's standard library."""
    yield from HARD_TEXTS
    if check_path:
        yield from iterate_texts(check_path)
        return
    remaining = LIBRARY_CHARACTERS
    for source in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = source.read_text(encoding="utf-8", errors="ignore")
        yield text
        remaining -= len(text)
        if remaining < 0:
            return
