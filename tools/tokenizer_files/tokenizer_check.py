"""Compare a built tokenizer with the original on hard cases and real text, and write its files."""

import hashlib
import json
import shutil
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from checkpoint_io.tokenizer_sizes import check_tokenizer_size
from checkpoint_seals.seal_check import SEAL
from exact_tokenizers.tokenizer_folders import corrected_configurations, exact_tokenizer_files, read_object
from json_rows.row_files import iterate_texts
from partial_folders import resume_journal
from partial_folders.atomic_outputs import fsync_path
from partial_folders.output_paths import check_place, follow_last_link
from tokenizers import Tokenizer

KEPT = ("tokenizer.json", "tokenizer_config.json")
MERGED = ("special_tokens_map.json", "added_tokens.json")  # their content goes into the two files above
LIBRARY_CHARACTERS = 2_000_000  # about as many are compared from the sources of Python's standard library

# Inputs that converters often get wrong: spaces, special tokens as text, byte fallback, Chinese, emoji, code, digits.
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


def check_tokenizer_folder(target: Path) -> None:
    """Raise ValueError if a folder cannot be written, is sealed, or is inside a sealed folder."""
    if (target / SEAL).is_file():
        raise ValueError(
            f"{target} is sealed, so its files must not change; copy it without {SEAL}, or give a new folder"
        )
    check_place(follow_last_link(target) / KEPT[0], target)


def write_tokenizer_files(target: Path, model: Path) -> Tokenizer:
    """Write tokenizer.json, tokenizer_config.json and a copy of tokenizer.model into target; return the tokenizer.

    Added tokens, special tokens (BOS, EOS, UNK, PAD) and settings of tokenizer files in target are kept. Raises
    ValueError if target has a tokenizer.json with other pieces, has fewer embeddings than the tokenizer has tokens, or
    is refused by `check_tokenizer_folder`.
    """
    check_tokenizer_folder(target)
    partial = target / ".tokenizer.partial"
    with resume_journal.locked_folder(partial, ""):
        try:
            tokenizer, files = merged_tokenizer_files(target, partial, model)
            for name, text in files.items():
                (partial / name).write_text(text, encoding="utf-8")
            for name in ("tokenizer.model", *reversed(files)):  # tokenizer.json, which programs look for, is last
                fsync_path(partial / name)
                (partial / name).replace(target / name)
            for name in MERGED:
                (target / name).unlink(missing_ok=True)
        finally:
            resume_journal.remove_folder(partial)
    return tokenizer


def merged_tokenizer_files(target: Path, partial: Path, model: Path) -> tuple[Tokenizer, dict[str, str]]:
    """Return the tokenizer of `model` with the settings of target's files, and its files by name.

    partial: an empty folder, to which the original files are copied. Raises like `write_tokenizer_files`.
    """
    for name in (*KEPT, *MERGED):
        if (target / name).is_file():
            shutil.copyfile(target / name, partial / name)
    shutil.copyfile(model, partial / "tokenizer.model")
    files = exact_tokenizer_files(partial)
    files |= corrected_configurations(target, files)
    tokenizer = Tokenizer.from_str(files["tokenizer.json"])
    config, tokens = target / "config.json", tokenizer.get_vocab_size(with_added_tokens=True)
    if isinstance(rows := read_object(config).get("vocab_size"), int):
        check_tokenizer_size(tokens, rows, target, config)
    return tokenizer, files


def check_equal_ids(tokenizer: Tokenizer, reference: Any, texts: Iterable[str], name: str = "SentencePiece") -> int:
    """Compare ids on every text, without BOS and with special tokens treated as text; return the number of texts.

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
    """Yield HARD_TEXTS, then the texts of the file check_path, by default sources of Python's standard library.

    Raises ValueError if the file has no text.
    """
    yield from HARD_TEXTS
    if check_path:
        has_text = False
        for text in iterate_texts(check_path):
            has_text = has_text or bool(text.strip())
            yield text
        if not has_text:
            raise ValueError(f"{check_path} has no text to compare; --check_path takes lines of text or JSONL rows")
        return
    remaining = LIBRARY_CHARACTERS
    for source in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = source.read_text(encoding="utf-8", errors="ignore")
        yield text
        remaining -= len(text)
        if remaining < 0:
            return
