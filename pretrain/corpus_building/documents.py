"""Read documents from JSONL (.jsonl, .json) and .txt (one document per line), both also as .gz or .zst, and .parquet.

Uncompressed files are divided into shards at line ends, so that several processes can read one file; a compressed or
.parquet file is one shard. The shards depend only on file sizes. This module does not use json_rows/row_files.py, which
cannot begin in the middle of a file; the error messages are worded alike.
"""

from command_line.strict_parsers import at_least

import argparse
import codecs
import glob
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from json_rows.compressed_files import COMPRESSED, READ_ERRORS, decompressed_file
from json_rows.json_stream import LONE_SURROGATE, syntax_error

SUFFIXES = (".jsonl", ".json", ".txt", ".parquet")
COMPRESSION_RATIOS = {".gz": 3, ".zst": 3, ".parquet": 2}  # lower bound of text size / file size
FIELD = re.compile(r"\{(\w+)\}")  # a field in a text template
BUFFER_BYTES = 1 << 18
PARQUET_ROWS = 256  # rows read at a time
MAX_SHARDS_PER_FILE = 4096  # a very large file has larger shards instead of more


@dataclass(frozen=True)
class Shard:
    """The lines of a file that begin in a range of its bytes."""

    path: str
    file_bytes: int  # size of the file; it and `modified` show whether the file has changed
    modified: int  # modification time of the file, in nanoseconds
    start: int  # the range is [start, end)
    end: int

    @property
    def size(self) -> int:
        """The number of bytes in the range."""
        return self.end - self.start


@dataclass(frozen=True)
class TextSource:
    """The fields of a row that contain the text, and how to read rows; the attributes are named like the options."""

    text_key: str = "text"
    text_template: str = ""  # joins several fields: "{title}\\n{body}"
    do_keep_newlines: bool = False  # keep the newline at the end of each line of a .txt file
    on_error: str = "stop"  # "stop" at an unreadable row, or "skip" it

    @property
    def fields(self) -> list[str]:
        """The names of the fields that contain the text."""
        return FIELD.findall(self.text_template) if self.text_template else [self.text_key]


class TextRow(NamedTuple):
    """A line of a shard, or a row of a .parquet file."""

    line: int  # number of the line or row in the shard, from 1
    text: str  # "" if the row has no text or is unreadable
    content: dict[str, Any]  # all fields of a JSON or .parquet row; empty for a line of .txt
    error: str = ""  # why the row is unreadable, and the remedy; "" if it is readable


def add_input_options(parser: Any, required: bool) -> None:
    """Add the options that name and describe the text files. parser: an ArgumentParser or a group of its options."""
    parser.add_argument("--file_path", nargs="+", required=required, metavar="IN", help="text files and globs")
    parser.add_argument("--text_key", default="text", metavar="KEY", help="field of the text in a row (default: text)")
    parser.add_argument(
        "--text_template", type=parse_text_template, default="", metavar="T",
        help="join several fields: '{title}\\n{content}'",
    )  # fmt: skip
    parser.add_argument(
        "--on_error", choices=("stop", "skip"), default="stop",
        help="unreadable rows: stop, or drop them (default: stop)",
    )  # fmt: skip
    parser.add_argument("--num_workers", type=at_least(1), default=1, metavar="N", help="processes (default: 1)")


def parse_text_template(text: str) -> str:
    """argparse type of --text_template: replace \\n and \\t; raises ArgumentTypeError if the template has no field."""
    if text and not FIELD.search(text):
        raise argparse.ArgumentTypeError(f"{text!r} names no field; write '{{title}} {{content}}'")
    return text.replace("\\n", "\n").replace("\\t", "\t")


def find_files(patterns: list[str]) -> list[str]:
    """Return the files that match paths and globs, in order, each once: `a.jsonl` and `./a.jsonl` are one file.

    Raises FileNotFoundError if a pattern matches no file, ValueError if a match is not a file or has another suffix.
    """
    found: dict[Path, str] = {}
    for pattern in patterns:
        paths = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (may be absolute)
        if not paths:
            raise FileNotFoundError(f"{pattern} matches no file; --file_path takes files and globs")
        for path in paths:
            if not Path(path).is_file():
                raise ValueError(f"{path} is not a file; name files, or all files of a folder: '{path}/*.jsonl'")
            if file_format(path) not in SUFFIXES:
                raise ValueError(
                    f"{path} is not {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, nor one of the first three with .gz "
                    "or .zst; convert or rename it"
                )
            found.setdefault(Path(path).resolve(), path)
    return list(found.values())


def file_format(path: str) -> str:
    """Return the suffix that determines the format; for .gz and .zst the suffix before it, .jsonl if there is none."""
    name = Path(path.lower())
    return (Path(name.stem).suffix or ".jsonl") if name.suffix in COMPRESSED else name.suffix


def compression_ratio(path: str) -> int | None:
    """Return a lower bound of text size / file size, None for a file that is not compressed."""
    return COMPRESSION_RATIOS.get(Path(path).suffix.lower())


def text_bytes(path: str) -> int:
    """Return a lower bound of the bytes of text in a file."""
    return Path(path).stat().st_size * (compression_ratio(path) or 1)


def plan_shards(paths: list[str], shard_bytes: int) -> list[Shard]:
    """Divide files, in order, into shards of about `shard_bytes`; compressed and .parquet files are one shard."""
    shards = []
    for path in paths:
        size, modified = Path(path).stat().st_size, Path(path).stat().st_mtime_ns
        largest = size if compression_ratio(path) else max(shard_bytes, -(-size // MAX_SHARDS_PER_FILE))
        step = max(1, largest)
        shards += [Shard(path, size, modified, at, min(at + step, size)) for at in range(0, size, step)]
    return shards


def read_documents(shard: Shard, source: TextSource, all_columns: bool = False) -> Iterator[TextRow]:
    """Yield the lines of a shard, or the rows of a .parquet file.

    all_columns: read all columns of a .parquet file, not only those with the text. Raises ValueError, with file and
    line, if a line is not UTF-8, is not a JSON object or lacks a field, or if the file is damaged. If source.on_error
    is `skip`, yields a TextRow with the error instead; the rest of a damaged file is one TextRow.
    """
    is_parquet, is_text = (file_format(shard.path) == suffix for suffix in (".parquet", ".txt"))
    with Path(shard.path).open("rb", BUFFER_BYTES) as raw:
        columns = None if all_columns else source.fields
        lines = _read_parquet_rows(raw, columns) if is_parquet else _read_lines(shard, raw)
        for number in count(1):
            text, content, message = "", dict[str, Any](), ""
            try:
                text, content = _parse_line(next(lines), source, is_text, is_first=number == 1 and shard.start == 0)
            except StopIteration:
                return
            except READ_ERRORS as error:
                message = f"cannot be read, since the file is damaged ({str(error).splitlines()[0]}); get it again"
                lines = iter(())
            except ValueError as error:
                message = str(error)
            if message and source.on_error == "stop":
                location = f", row {number}" if is_parquet else f":{_count_lines_before(shard) + number}"
                raise ValueError(f"{shard.path}{location} {message}")
            yield TextRow(number, text, content, message)


def _read_lines(shard: Shard, raw: Any) -> Iterator[bytes]:
    """Yield the lines that begin in a shard."""
    at, end = _seek_first_line(shard, raw), inf if compression_ratio(shard.path) else shard.end
    for line in decompressed_file(raw, Path(shard.path)):
        if at >= end:
            return
        yield line
        at += len(line)


def _seek_first_line(shard: Shard, raw: Any) -> int:
    """Move an open file to the first line that begins in a shard; return the offset of that line in bytes."""
    if shard.start:
        raw.seek(shard.start - 1)
        raw.readline()  # the rest of the previous line, at least its newline
    return int(raw.tell())


def _count_lines_before(shard: Shard) -> int:
    """Return the number of lines before a shard in its file."""
    with Path(shard.path).open("rb") as file:
        remaining, lines = _seek_first_line(shard, file), 0
        file.seek(0)
        while remaining > 0 and (block := file.read(min(remaining, BUFFER_BYTES))):
            lines, remaining = lines + block.count(b"\n"), remaining - len(block)
    return lines


def _read_parquet_rows(raw: Any, columns: list[str] | None) -> Iterator[dict[str, Any] | None]:
    """Yield the rows of a .parquet file, None for a row that is not UTF-8; raises OSError at the first damaged row.

    columns: the columns to read, of which some may not exist; None: all.
    """
    from pyarrow import ArrowException, parquet

    yielded = 0
    for size in (PARQUET_ROWS, 1):  # the second pass yields the rows before the damage in the batch that failed
        try:
            at = 0
            for batch in parquet.ParquetFile(raw).iter_batches(batch_size=size, columns=columns):
                for row in _rows_of_batch(batch)[max(0, yielded - at) :]:
                    yield row
                    yielded += 1
                at += batch.num_rows
            return
        except (ArrowException, OSError) as error:
            failure = OSError(str(error))
    raise failure


def _rows_of_batch(batch: Any) -> list[dict[str, Any] | None]:
    """Return the rows of a pyarrow.RecordBatch, None for a row that is not UTF-8."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            return [None]
        return [row for number in range(batch.num_rows) for row in _rows_of_batch(batch.slice(number, 1))]


def _parse_line(line: Any, source: TextSource, is_text: bool, is_first: bool) -> tuple[str, dict[str, Any]]:
    """Return `text` and `content` of a TextRow; raises ValueError if the line is unreadable.

    line: bytes, or a row of `_read_parquet_rows`. is_text: the file is .txt. is_first: the file begins with this line.
    """
    if line is None:
        raise ValueError("is not UTF-8; write the file again")
    if isinstance(line, dict):
        return _text_of_row(line, source), line
    text = _decode_line(line, is_first)
    if is_text:
        return text if source.do_keep_newlines else text.removesuffix("\n").removesuffix("\r"), {}
    if not text.strip():
        return "", {}
    row = _parse_row(text)
    return _text_of_row(row, source), row


def _decode_line(line: bytes, is_first: bool) -> str:
    """Return a line as text without its byte order mark; in joined files, later lines may also begin with one.

    Raises ValueError if the line is not UTF-8.
    """
    if is_first and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("is UTF-16, which cannot be divided into shards; convert the file to UTF-8")
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte 0x{error.object[error.start]:02x}); convert the file to UTF-8") from None


def _parse_row(line: str) -> dict[str, Any]:
    """Return the JSON object in a line; raises ValueError if the line is not a JSON object."""
    try:
        row = json.loads(line)
    except RecursionError:
        raise ValueError("is nested too deep; write it with fewer levels") from None
    except json.JSONDecodeError as error:
        if not line.lstrip().startswith("["):
            raise ValueError(syntax_error(error)) from None
        row = []  # the first line of a JSON list of several lines
    except ValueError:
        raise ValueError("has an integer of more than 4300 digits; write it as text") from None
    if isinstance(row, list):
        raise ValueError("is a JSON list; each line must be one JSON object, so write the file as JSONL")
    if not isinstance(row, dict):
        raise ValueError("is not a JSON object; each line must be one")
    return row


def _text_of_row(row: dict[str, Any], source: TextSource) -> str:
    """Return the text of a row; braces in the text of a field are not interpreted.

    Raises ValueError if a field is missing or is not text that can be encoded.
    """
    for name in source.fields:
        if name not in row:
            keys, option = ", ".join(list(row)[:6]), "--text_template" if source.text_template else "--text_key"
            raise ValueError(f"has no key {name!r}; name the key of the text with {option}; the row has: {keys}")
        if not isinstance(row[name], str):
            raise ValueError(f"has {type(row[name]).__name__} under {name!r}, not text; correct or remove that line")
    if source.text_template:
        text = FIELD.sub(lambda field: row[field[1]], source.text_template)
    else:
        text = row[source.text_key]
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(LONE_SURROGATE) from None
    return text
