"""Divide text files into tasks, and read the documents of a task.

Files: JSONL with a text field (.jsonl, .json), text with one document per line (any other name), both also as .gz or
.zst, and .parquet. Uncompressed .jsonl and text files are divided at line ends; any other file is read as a whole, by
the task whose share of all bytes contains its beginning.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from json_rows.compressed_files import COMPRESSED
from json_rows.row_files import is_row_file, iterate_objects, iterate_texts, list_files


class TextShard(NamedTuple):
    """The lines of a file that begin in a range of its bytes; end: -1 for a file that is read as a whole."""

    path: str
    start: int
    end: int


def text_files(paths: Sequence[str]) -> list[Path]:
    """Return the files of paths that are files or folders; raises FileNotFoundError or ValueError."""
    files = [file for path in paths for file in list_files(path)]
    if sum(file.stat().st_size for file in files) == 0:
        raise ValueError(f"{', '.join(paths)}: all files are empty; give files with text")
    return files


def is_divisible(path: Path) -> bool:
    """Return whether each line of a file is a document, so that a task can begin at any line."""
    return path.suffix.lower() not in (*COMPRESSED, ".json", ".parquet")


def plan_tasks(files: Sequence[Path], task_bytes: int) -> list[list[TextShard]]:
    """Return the shards of each task; a task has about `task_bytes` of the files, in order."""
    tasks: list[list[TextShard]] = [[]]
    room = task_bytes
    for file in files:
        size, at = file.stat().st_size, 0
        while at < size:
            if room <= 0:
                tasks.append([])
                room = task_bytes
            step = min(room, size - at) if is_divisible(file) else size
            tasks[-1].append(TextShard(str(file), at, at + step) if is_divisible(file) else TextShard(str(file), 0, -1))
            at, room = at + step, room - step
    return [task for task in tasks if task]


def read_shard(shard: TextShard, text_key: str) -> Iterator[str]:
    """Yield the documents of a shard; raises ValueError with file and line if a row has no text."""
    path = Path(shard.path)
    is_rows = is_row_file(path)
    if shard.end == -1 and is_rows:
        for location, row in iterate_objects(path):
            try:
                yield _text_of_row(row, text_key)
            except ValueError as error:
                raise ValueError(f"{location} {error}") from None
    elif shard.end == -1:
        yield from iterate_texts(path)
    else:
        with path.open("rb") as file:
            at = 0
            if shard.start:
                file.seek(shard.start - 1)
                at = shard.start - 1 + len(file.readline())  # the rest of the previous line, at least its newline
            for line in file:
                if at >= shard.end:
                    return
                at += len(line)
                try:
                    text = _text_of_line(line, text_key, is_rows, is_first=at == len(line))
                except ValueError as error:
                    raise ValueError(f"{path}:{_lines_before(path, at)} {error}") from None
                if text:
                    yield text


def _lines_before(path: Path, end: int) -> int:
    """Return the number of the line that ends at a byte."""
    with path.open("rb") as file:
        count, last = 0, b"\n"
        while end > 0 and (block := file.read(min(end, 1 << 20))):
            count, end, last = count + block.count(b"\n"), end - len(block), block[-1:]
    return count + (last != b"\n")


def _text_of_line(line: bytes, text_key: str, is_rows: bool, is_first: bool) -> str:
    """Return the text of a line, "" for a blank one; raises ValueError with fact and remedy."""
    try:
        text = line.decode("utf-8-sig" if is_first else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte 0x{error.object[error.start]:02x}); convert the file to UTF-8") from None
    text = text.rstrip("\r\n")
    if not is_rows or not text.strip():
        return text if text.strip() else ""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("is not a JSON object on one line; correct it") from None
    return _text_of_row(row, text_key)


def _text_of_row(row: Any, text_key: str) -> str:
    text = row.get(text_key) if isinstance(row, dict) else None
    if not isinstance(text, str):
        keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"has no text under {text_key!r} (keys: {keys}); give --text_key or add it")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("has a lone surrogate, which is not a character; remove it") from None
    return text
