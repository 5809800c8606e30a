"""Read documents from JSONL (.jsonl, .json) and .txt with one document a line, both also .gz or .zst, and .parquet.

Uncompressed files are cut into shards at line ends, so that several processes can read one file; a compressed or
.parquet file is one shard. The shards depend only on file sizes. Lines are read here and not by json_rows because a
shard may begin at any byte. Error messages are those of json_rows.
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

from json_rows.json_stream import LONE_SURROGATE, READ_ERRORS, decompressed_file, syntax_error

ENDINGS = (".jsonl", ".json", ".txt", ".parquet")
PACKED = {".gz": 3, ".zst": 3, ".parquet": 2}  # lower bound of text size / file size, for the check of free space
FIELD = re.compile(r"\{(\w+)\}")  # a field in a text template
BUFFER_BYTES = 1 << 18
PARQUET_ROWS = 256  # rows read at a time
MOST_SHARDS = 4096  # most shards of one file; a very large file has larger shards


@dataclass(frozen=True)
class Shard:
    """The lines of a file that begin in bytes [start, end); size and modification time of the file, as a check."""

    path: str
    file_bytes: int
    modified: int  # ns
    start: int
    end: int

    @property
    def size(self) -> int:
        """The number of bytes on disk."""
        return self.end - self.start


@dataclass(frozen=True)
class TextSource:
    """Where rows have their text, and what to do with unreadable ones; the fields are named like the options."""

    text_key: str = "text"
    text_template: str = ""  # joins several fields: "{title}\\n{body}"
    do_keep_newlines: bool = False  # keep the newline at the end of each line of a .txt file
    on_error: str = "stop"

    @property
    def fields(self) -> list[str]:
        """The names of the fields that form the text."""
        return FIELD.findall(self.text_template) if self.text_template else [self.text_key]


class TextRow(NamedTuple):
    """A line of a shard: its number from 1, its text, and its row if it has one; or the reason why it has no text."""

    line: int
    text: str
    row: dict[str, Any]
    fault: str = ""


def add_input_options(parser: Any, required: bool) -> None:
    """Add the options of the text files to read; parser: an ArgumentParser or a group of its options."""
    parser.add_argument("--file_path", nargs="+", required=required, metavar="IN", help="text files and globs")
    parser.add_argument("--text_key", default="text", metavar="KEY", help="field of the text in a row (default: text)")
    parser.add_argument(
        "--text_template", type=text_template, default="", metavar="T",
        help="join several fields: '{title}\\n{content}'",
    )  # fmt: skip
    parser.add_argument(
        "--on_error", choices=("stop", "skip"), default="stop",
        help="unreadable rows: stop, or drop them (default: stop)",
    )  # fmt: skip
    parser.add_argument("--num_workers", type=at_least(1), default=1, metavar="N", help="processes (default: 1)")


def text_template(text: str) -> str:
    """argparse type of --text_template: replace \\n and \\t; raises ArgumentTypeError if the template has no field."""
    if text and not FIELD.search(text):
        raise argparse.ArgumentTypeError(f"{text!r} names no field; write '{{title}} {{content}}'")
    return text.replace("\\n", "\n").replace("\\t", "\t")


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
            if format_of(path) not in ENDINGS:
                raise ValueError(f"{path} is not {', '.join(ENDINGS)}, or text with .gz or .zst; convert or rename it")
            found[path] = None
    return list(found)


def format_of(path: str) -> str:
    """Return the ending that determines the format; for .gz and .zst the inner ending, else .jsonl."""
    name = Path(path)
    return (Path(name.stem).suffix or ".jsonl") if name.suffix in (".gz", ".zst") else name.suffix


def text_bytes(path: str) -> int:
    """Return a lower bound of the bytes of text in a file."""
    return Path(path).stat().st_size * PACKED.get(Path(path).suffix, 1)


def plan_shards(paths: list[str], shard_bytes: int) -> list[Shard]:
    """Divide files, in order, into shards of about `shard_bytes`; compressed and .parquet files are one shard."""
    shards = []
    for path in paths:
        size, modified = Path(path).stat().st_size, Path(path).stat().st_mtime_ns
        step = max(1, size if Path(path).suffix in PACKED else max(shard_bytes, -(-size // MOST_SHARDS)))
        shards += [Shard(path, size, modified, at, min(at + step, size)) for at in range(0, size, step)]
    return shards


def read_documents(shard: Shard, source: TextSource, all_columns: bool = False) -> Iterator[TextRow]:
    """Yield the lines of a shard; of a .parquet file, its rows with the columns of the text or with all columns.

    Raises ValueError, with file and line, if a line is not UTF-8, is not a JSON object or lacks a field, or if the file
    is damaged. If source.on_error is `skip`, yields a TextRow with the reason instead; the rest of a damaged file is
    one line.
    """
    is_parquet, is_text = shard.path.endswith(".parquet"), format_of(shard.path) == ".txt"
    with Path(shard.path).open("rb", BUFFER_BYTES) as raw:
        lines = _parquet_rows(raw, None if all_columns else source.fields) if is_parquet else _lines(shard, raw)
        for number in count(1):
            text, row, fault = "", dict[str, Any](), ""
            try:
                text, row = _text_and_row(next(lines), source, is_text, is_first=number == 1 and shard.start == 0)
            except StopIteration:
                return
            except READ_ERRORS as error:
                fault = f"cannot be read, since the file is damaged ({str(error).splitlines()[0]}); get it again"
                lines = iter(())
            except ValueError as error:
                fault = str(error)
            if fault and source.on_error == "stop":
                place = f", row {number}" if is_parquet else f":{_lines_before(shard) + number}"
                raise ValueError(f"{shard.path}{place} {fault}")
            yield TextRow(number, "" if fault else text, row, fault)


def _lines(shard: Shard, raw: Any) -> Iterator[bytes]:
    """Yield the lines that begin in a shard."""
    at, end = _first_line(shard, raw), inf if Path(shard.path).suffix in PACKED else shard.end
    for line in decompressed_file(raw, Path(shard.path)):
        if at >= end:
            return
        yield line
        at += len(line)


def _first_line(shard: Shard, raw: Any) -> int:
    """Move to the first line that begins in a shard; return its offset in bytes."""
    if shard.start:
        raw.seek(shard.start - 1)
        raw.readline()  # the rest of the previous line, at least its newline
    return int(raw.tell())


def _lines_before(shard: Shard) -> int:
    """Return the number of lines before a shard in its file."""
    with Path(shard.path).open("rb") as file:
        left, lines = _first_line(shard, file), 0
        file.seek(0)
        while left > 0 and (block := file.read(min(left, BUFFER_BYTES))):
            lines, left = lines + block.count(b"\n"), left - len(block)
    return lines


def _parquet_rows(raw: Any, columns: list[str] | None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .parquet file with the columns that exist; raises OSError if the file is damaged."""
    from pyarrow import ArrowException, parquet

    try:
        for batch in parquet.ParquetFile(raw).iter_batches(batch_size=PARQUET_ROWS, columns=columns):
            yield from batch.to_pylist()
    except ArrowException as error:
        raise OSError(str(error)) from None


def _text_and_row(line: Any, source: TextSource, is_text: bool, is_first: bool) -> tuple[str, dict[str, Any]]:
    """Return the text of a line or of a .parquet row, and its row; raises ValueError if it is unreadable."""
    if isinstance(line, dict):
        return _joined(line, source), line
    text = _decoded(line, is_first)
    if is_text:
        return text if source.do_keep_newlines else text.removesuffix("\n").removesuffix("\r"), {}
    row = _parsed(text) if text.strip() else {}
    return _joined(row, source) if text.strip() else "", row


def _decoded(line: bytes, is_first: bool) -> str:
    """Return the text of a line; is_first: the file begins with it. Raises ValueError if it is not UTF-8."""
    if is_first and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("is UTF-16, which is not cut into shards; convert the file to UTF-8")
    try:
        return line.decode("utf-8-sig" if is_first else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte 0x{error.object[error.start]:02x}); convert the file to UTF-8") from None


def _parsed(line: str) -> dict[str, Any]:
    """Return the JSON object of a line; raises ValueError if it is none."""
    try:
        row = json.loads(line)
    except RecursionError:
        raise ValueError("is nested too deep; write it with fewer levels") from None
    except json.JSONDecodeError as error:
        row = [] if line.lstrip().startswith("[") else None  # [: the start of a list over several lines
        if row is None:
            raise ValueError(syntax_error(error)) from None
    except ValueError as error:  # a number with too many digits
        raise ValueError(f"has {error}; correct it") from None
    if isinstance(row, list):
        raise ValueError("is a JSON list; one object a line is read, so write the file as JSONL")
    if not isinstance(row, dict):
        raise ValueError("is not a JSON object; each line must be one")
    return row


def _joined(row: dict[str, Any], source: TextSource) -> str:
    """Return the text of a row; braces in inserted fields are not interpreted. Raises ValueError if it has none."""
    for name in source.fields:
        if name not in row:
            keys, option = ", ".join(list(row)[:6]), "--text_template" if source.text_template else "--text_key"
            raise ValueError(f"has no key {name!r}; name the text's key with {option}; there are: {keys}")
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
