"""Read documents from JSONL (.jsonl, .json) and .txt with one document a line, both also .gz or .zst, and .parquet.

Uncompressed files are cut into shards at line ends, so that several processes can read one file; a compressed or
.parquet file is one shard. The shards depend only on file sizes. Lines are read here and not by json_rows because a
shard may begin at any byte and orjson extracts the text of a line several times faster. Error messages are those of
json_rows.
"""

import codecs
import glob
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, BinaryIO

import orjson
from json_rows.json_stream import DAMAGED, HALF_PAIR, json_fault, unpacked

ENDINGS = (".jsonl", ".json", ".txt", ".parquet")
PACKED = {
    ".gz": 3,
    ".zst": 3,
    ".parquet": 2,
}  # lower bound of text size / file size, for the check of free space
FIELD = re.compile(r"\{(\w+)\}")  # a field in a text template
BATCH_BYTES = 1 << 18
PARQUET_ROWS = 256  # rows of a batch
MOST_SHARDS = 4096  # most shards of one file; a very large file has larger shards


class UnreadableError(ValueError):
    """A line or file has no readable text; the message has place, reason and remedy."""


@dataclass(frozen=True)
class Shard:
    """The lines of a file that begin in bytes [start, end), or all lines if end < 0; file size and time as a check."""

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
class TextSource:
    """Selects the text of a row: the field `key`, or several fields in `template`, such as "{title}\\n{body}".

    keep_newline: keep the newline at the end of each line of a .txt file.
    """

    key: str = "text"
    template: str = ""
    keep_newline: bool = False

    @cached_property
    def fields(self) -> list[str]:
        """The names of the fields that form the text."""
        return FIELD.findall(self.template) if self.template else [self.key]


@dataclass(frozen=True)
class Batch:
    """Consecutive undecoded lines of a shard; `first` is the number of the first line within the shard, from 1."""

    shard: Shard
    first: int
    lines: list[bytes] | list[dict[str, Any]]  # rows of a .parquet file

    def place(self, number: int) -> str:
        """Return file and line (.parquet: row) of the shard's line `number`; reads the file up to the shard."""
        if self.shard.path.endswith(".parquet"):
            return f"{self.shard.path}, row {number}"
        before = 0
        with Path(self.shard.path).open("rb") as file:
            left = _position(file, self.shard.start)
            file.seek(0)
            while left > 0 and (block := file.read(min(left, 1 << 20))):
                before += block.count(b"\n")
                left -= len(block)
        return f"{self.shard.path}:{before + number}"


def find_files(patterns: list[str]) -> list[str]:
    """Return the files that match paths and globs, in order, without duplicates.

    Raises FileNotFoundError if a pattern matches no file, ValueError if a match is not a file or has another ending.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        paths = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (absolute, too)
        if not paths:
            raise FileNotFoundError(f"{pattern} matches no file; --file_path takes files and globs")
        for path in paths:
            if not Path(path).is_file():
                raise ValueError(f"{path} is not a file; name files, or all files of a folder: '{path}/*.jsonl'")
            if kind(path) not in ENDINGS:
                raise ValueError(f"{path} is not {', '.join(ENDINGS)}, or text with .gz or .zst; convert or rename it")
            found[path] = None
    return list(found)


@cache
def kind(path: str) -> str:
    """Return the ending that determines the format; for .gz and .zst the inner ending, else .jsonl."""
    name = Path(path)
    if name.suffix in (".gz", ".zst"):
        return Path(name.stem).suffix or ".jsonl"
    return name.suffix


def text_bytes(path: str) -> int:
    """Return a lower bound of the bytes of text in a file."""
    return Path(path).stat().st_size * PACKED.get(Path(path).suffix, 1)


def plan_shards(paths: list[str], shard_bytes: int) -> list[Shard]:
    """Divide files, in order, into shards of about `shard_bytes`; compressed and .parquet files are one shard."""
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


def read_shard(shard: Shard, source: TextSource) -> Iterator[Batch]:
    """Yield the lines of a shard in batches of about 0.25 MB; raises UnreadableError if the file is damaged."""
    try:
        raw = Path(shard.path).open("rb", BATCH_BYTES)  # noqa: SIM115 (closed by the `with` below)
    except OSError as error:
        raise UnreadableError(f"{shard.path} cannot be read ({error.strerror}); check its permissions") from None
    with raw:
        if shard.path.endswith(".parquet"):
            yield from _rows(shard, raw, source.fields)
        elif shard.end >= 0:
            yield from _batches(shard, raw, _position(raw, shard.start), shard.end)
        else:
            yield from _batches(shard, unpacked(raw, Path(shard.path)), 0, -1)


def _rows(shard: Shard, raw: Any, fields: list[str]) -> Iterator[Batch]:
    """Yield the rows of a .parquet file with the given fields."""
    import pyarrow
    from pyarrow import parquet

    first = 1
    try:
        table = parquet.ParquetFile(raw)
        known = [name for name in fields if name in table.schema_arrow.names]
        for part in table.iter_batches(batch_size=PARQUET_ROWS, columns=known or table.schema_arrow.names[:6]):
            rows = part.to_pylist()
            yield Batch(shard, first, rows)
            first += len(rows)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UnreadableError(f"{shard.path} is damaged after row {first - 1} ({reason}); get it again") from None


def _position(raw: BinaryIO, start: int) -> int:
    """Move to the first line that begins at or after byte `start`; return its offset."""
    if start:
        raw.seek(start - 1)
        raw.readline()  # the rest of the previous line, at least its newline
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
    except DAMAGED as error:
        raise UnreadableError(
            f"{shard.path} is damaged after line {first + len(lines) - 1} ({error}); get it again"
        ) from None
    if lines:
        yield Batch(shard, first, lines)


def text_of(batch: Batch, number: int, source: TextSource) -> str:
    """Return the text of line `number` of the shard, which must be in the batch; "" for a blank JSONL line.

    Raises UnreadableError, with file and line, if the line is not UTF-8, is not a JSON object or lacks a field.
    """
    line = batch.lines[number - batch.first]
    if isinstance(line, dict):
        return _from_row(line, source, batch, number)
    is_text = kind(batch.shard.path) == ".txt"
    if number == 1 and batch.shard.start == 0 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UnreadableError(f"{batch.place(1)} is UTF-16, which is not cut into shards; convert the file to UTF-8")
    if not is_text:
        with suppress(ValueError):  # json, used below, accepts more than orjson and has better messages
            row = orjson.loads(line)
            if isinstance(row, dict) and not source.template and isinstance(text := row.get(source.key), str):
                return text  # orjson has checked that it is UTF-8
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        fault = f"is not UTF-8 (byte 0x{line[error.start]:02x}); convert the file to UTF-8"
        raise UnreadableError(f"{batch.place(number)} {fault}") from None
    if number == 1 and batch.shard.start == 0:
        text = text.removeprefix("\ufeff")
    if is_text:
        return text if source.keep_newline else text.removesuffix("\n").removesuffix("\r")
    return _from_row(_parsed(text, batch, number), source, batch, number) if text.strip() else ""


def _parsed(line: str, batch: Batch, number: int) -> dict[str, Any]:
    """Return the JSON object of a line."""
    try:
        row = json.loads(line)
    except RecursionError:
        raise UnreadableError(f"{batch.place(number)} is nested too deep; write it with fewer levels") from None
    except ValueError as error:
        if not line.lstrip().startswith("["):
            fault = json_fault(error) if isinstance(error, json.JSONDecodeError) else f"has {error}; correct it"
            raise UnreadableError(f"{batch.place(number)} {fault}") from None
        row = []  # the start of a list over several lines
    if isinstance(row, list):
        place = batch.place(number)
        raise UnreadableError(f"{place}: a JSON list; one object a line is read, so write the file as JSONL")
    if not isinstance(row, dict):
        raise UnreadableError(f"{batch.place(number)} is not a JSON object; each line must be one")
    return row


def _from_row(row: dict[str, Any], source: TextSource, batch: Batch, number: int) -> str:
    """Return the text of a row; braces in inserted fields are not interpreted."""
    for name in source.fields:
        if name not in row:
            keys, option = ", ".join(list(row)[:6]), "--text_template" if source.template else "--text_key"
            raise UnreadableError(
                f"{batch.place(number)} has no key {name!r}; name the text's key with {option}; there are: {keys}"
            )
        if not isinstance(row[name], str):
            found = type(row[name]).__name__
            raise UnreadableError(f"{batch.place(number)}: {name!r} is {found}, not text; correct or remove that line")
    text = FIELD.sub(lambda field: row[field[1]], source.template) if source.template else row[source.key]
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UnreadableError(f"{batch.place(number)} {HALF_PAIR}") from None
    return text
