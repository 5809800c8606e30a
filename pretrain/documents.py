"""Documents out of text files: JSONL (.jsonl, .json) with a text key, or .txt with a document a line; .gz too.

Files are read in batches of whole lines, so that batches can be worked on elsewhere and put in order again.

No main program here: `pretrain/preprocess.py` is the command line.
"""

import glob
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

ENDINGS = (".jsonl", ".json", ".txt")
BATCH_BYTES = 1 << 19


@dataclass(frozen=True)
class Batch:
    """Neighbouring lines of a file, undecoded; `first` counts from 1."""

    path: str
    first: int
    lines: list[bytes]


def find_files(patterns: list[str]) -> list[str]:
    """Paths of files and globs, in order, each once; raises FileNotFoundError or ValueError for what cannot be read."""
    found: dict[str, None] = {}
    for pattern in patterns:
        paths = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (absolute, too)
        if not paths:
            raise FileNotFoundError(f"{pattern} matches no file; --file_path takes files and globs")
        for path in paths:
            if not Path(path).is_file():
                raise ValueError(f"{path} is no file; name files, or all in a folder: '{path}/*.jsonl'")
            if kind(path) not in ENDINGS:
                raise ValueError(f"{path} is not {', '.join(ENDINGS)} or one of these with .gz; convert or rename it")
            found[path] = None
    return list(found)


def kind(path: str) -> str:
    """The ending that tells how a file is read: a .gz is named for what is packed in it, else taken for .jsonl."""
    name = Path(path)
    if name.suffix == ".gz":
        return Path(name.stem).suffix or ".jsonl"
    return name.suffix


def read_batches(paths: list[str]) -> Iterator[Batch]:
    """The lines of the files, in order, about half a megabyte at a time; raises ValueError where a .gz is damaged."""
    total = sum(Path(path).stat().st_size for path in paths)
    with tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1000, disable=None) as bar:
        for path in paths:
            with Path(path).open("rb") as raw:
                done = 0
                stream: Any = gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw
                for batch in _batches(path, stream):
                    yield batch
                    bar.update(raw.tell() - done)
                    done = raw.tell()


def _batches(path: str, stream: Any) -> Iterator[Batch]:
    lines: list[bytes] = []
    first, size = 1, 0
    try:
        for line in stream:
            lines.append(line)
            size += len(line)
            if size >= BATCH_BYTES:
                yield Batch(path, first, lines)
                first, lines, size = first + len(lines), [], 0
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged after line {first + len(lines) - 1} ({error}); get it again") from None
    if lines:
        yield Batch(path, first, lines)


def texts(batch: Batch, text_key: str, keep_newline: bool) -> Iterator[tuple[int, str]]:
    """(line number, text) of each line.

    keep_newline: in a .txt, the newline that ends a line belongs to its document.
    Raises ValueError, with file and line, on what is no UTF-8, no JSON object, or has no text under text_key.
    """
    is_json = kind(batch.path) != ".txt"
    for number, line in enumerate(batch.lines, batch.first):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{batch.path} line {number} is no UTF-8 ({error.reason} at byte {error.start + 1}); convert the file"
            ) from None
        if number == 1:
            text = text.removeprefix("\ufeff")
        if is_json:
            yield number, _field(text, text_key, f"{batch.path} line {number}") if text.strip() else ""
        else:
            yield number, text if keep_newline else text.removesuffix("\n").removesuffix("\r")


def _field(line: str, text_key: str, place: str) -> str:
    """The text of one JSON line; raises ValueError with the place where there is none."""
    try:
        row = json.loads(line)
    except ValueError as error:
        if not line.lstrip().startswith("["):
            raise ValueError(f"{place} is no JSON ({error}); correct or remove that line") from None
        row = []  # a list over several lines
    if isinstance(row, list):
        raise ValueError(f"{place}: a JSON list; one object a line is read, so write the file as JSONL")
    if not isinstance(row, dict):
        raise ValueError(f"{place} is no JSON object; each line needs one with its text under {text_key!r}")
    if text_key not in row:
        keys = ", ".join(list(row)[:6])
        raise ValueError(f"{place} has no key {text_key!r}; name the text's key with --text_key; there are: {keys}")
    text = row[text_key]
    if not isinstance(text, str):
        raise ValueError(f"{place}: {text_key!r} is {type(text).__name__}, not text; correct or remove that line")
    if "\\ud" in line.lower():  # an escape that may be half of a pair
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"{place} has half a surrogate pair (\\ud800 to \\udfff); correct that line") from None
    return text
