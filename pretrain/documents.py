"""Documents out of text files: JSONL (.jsonl, .json) with a text key, or .txt with a document a line; .gz and .zst too.

Plain files are cut into shards at line ends, wherever they lie, so that a large file can be worked on in many places; a
packed file is one shard. What a shard is depends on the files' sizes alone.

No main program here: `pretrain/preprocess.py` is the command line.
"""

import glob
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENDINGS = (".jsonl", ".json", ".txt")
PACKED = {".gz": 3, ".zst": 3}  # ending: how much larger text is at least, for the check of the disk
BATCH_BYTES = 1 << 19
MOST_SHARDS = 4096  # of one file: a larger one has larger shards


@dataclass(frozen=True)
class Shard:
    """Bytes start to end of a file, of the size and time it had; lines that begin there belong to it. end < 0: all."""

    path: str
    file_bytes: int
    modified: int  # ns
    start: int
    end: int

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.file_bytes if self.end < 0 else self.end - self.start


@dataclass(frozen=True)
class Batch:
    """Neighbouring lines of a shard, undecoded; `first` counts from 1 at the shard's beginning."""

    shard: Shard
    first: int
    lines: list[bytes]

    def place(self, number: int) -> str:
        """File and line of the shard's line `number`, for a message: the lines before the shard are counted now."""
        before = 0
        with Path(self.shard.path).open("rb") as file:
            left = _position(file, self.shard.start)
            file.seek(0)
            while left > 0 and (block := file.read(min(left, 1 << 20))):
                before += block.count(b"\n")
                left -= len(block)
        return f"{self.shard.path} line {before + number}"


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
                raise ValueError(
                    f"{path} is not {', '.join(ENDINGS)} or one of these with .gz or .zst; convert or rename it"
                )
            found[path] = None
    return list(found)


def kind(path: str) -> str:
    """The ending that tells how a file is read: a packed one is named for what is in it, else taken for .jsonl."""
    name = Path(path)
    if name.suffix in PACKED:
        return Path(name.stem).suffix or ".jsonl"
    return name.suffix


def text_bytes(path: str) -> int:
    """How much text is in a file, at the least that is likely."""
    return Path(path).stat().st_size * PACKED.get(Path(path).suffix, 1)


def plan_shards(paths: list[str], shard_bytes: int) -> list[Shard]:
    """The shards of files, in order, of about shard_bytes where a file can be cut."""
    shards = []
    for path in paths:
        status = Path(path).stat()
        size, modified = status.st_size, status.st_mtime_ns
        if Path(path).suffix in PACKED:
            shards.append(Shard(path, size, modified, 0, -1))
            continue
        step = max(shard_bytes, -(-size // MOST_SHARDS))
        shards += [Shard(path, size, modified, at, min(at + step, size)) for at in range(0, size, step)]
    return shards


def read_shard(shard: Shard) -> Iterator[Batch]:
    """The lines that begin in a shard, about half a megabyte at a time; raises ValueError where a file is damaged."""
    with Path(shard.path).open("rb") as raw:
        if shard.end >= 0:
            yield from _batches(shard, raw, _position(raw, shard.start), shard.end)
        elif shard.path.endswith(".gz"):
            yield from _batches(shard, gzip.GzipFile(fileobj=raw), 0, -1)
        else:
            import pyarrow

            packed = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw), "zstd")
            yield from _batches(shard, io.BufferedReader(packed), 0, -1)


def _position(raw: io.BufferedReader, start: int) -> int:
    """Move to the first line that begins at `start` or after it; returns where that is."""
    if start:
        raw.seek(start - 1)
        raw.readline()  # the rest of the line before, or just the end of it
    return raw.tell()


def _batches(shard: Shard, stream: Any, at: int, end: int) -> Iterator[Batch]:
    lines: list[bytes] = []
    first, size = 1, 0
    try:
        while (end < 0 or at + size < end) and (line := stream.readline()):
            lines.append(line)
            size += len(line)
            if size >= BATCH_BYTES:
                yield Batch(shard, first, lines)
                at, first, lines, size = at + size, first + len(lines), [], 0
    except (EOFError, gzip.BadGzipFile, zlib.error, OSError) as error:
        raise ValueError(
            f"{shard.path} is damaged after line {first + len(lines) - 1} ({error}); get it again"
        ) from None
    if lines:
        yield Batch(shard, first, lines)


def texts(batch: Batch, text_key: str, keep_newline: bool) -> Iterator[tuple[int, str]]:
    """(line number in the shard, text) of each line.

    keep_newline: in a .txt, the newline that ends a line belongs to its document.
    Raises ValueError, with file and line, on what is no UTF-8, no JSON object, or has no text under text_key.
    """
    is_json = kind(batch.shard.path) != ".txt"
    for number, line in enumerate(batch.lines, batch.first):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{batch.place(number)} is no UTF-8 ({error.reason} at byte {error.start + 1}); convert the file"
            ) from None
        if number == 1 and batch.shard.start == 0:
            text = text.removeprefix("\ufeff")
        if is_json:
            yield number, _field(text, text_key, batch, number) if text.strip() else ""
        else:
            yield number, text if keep_newline else text.removesuffix("\n").removesuffix("\r")


def _field(line: str, text_key: str, batch: Batch, number: int) -> str:
    """The text of one JSON line; raises ValueError with the place where there is none."""
    try:
        row = json.loads(line)
    except ValueError as error:
        if not line.lstrip().startswith("["):
            raise ValueError(f"{batch.place(number)} is no JSON ({error}); correct or remove that line") from None
        row = []  # a list over several lines
    if isinstance(row, dict) and isinstance(text := row.get(text_key), str):
        if "\\ud" in line or "\\uD" in line:  # an escape that may be half of a pair
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError(
                    f"{batch.place(number)} has half a surrogate pair (\\ud800 to \\udfff); correct that line"
                ) from None
        return text
    place = batch.place(number)
    if isinstance(row, list):
        raise ValueError(f"{place}: a JSON list; one object a line is read, so write the file as JSONL")
    if not isinstance(row, dict):
        raise ValueError(f"{place} is no JSON object; each line needs one with its text under {text_key!r}")
    if text_key not in row:
        keys = ", ".join(list(row)[:6])
        raise ValueError(f"{place} has no key {text_key!r}; name the text's key with --text_key; there are: {keys}")
    raise ValueError(f"{place}: {text_key!r} is {type(row[text_key]).__name__}, not text; correct or remove that line")
