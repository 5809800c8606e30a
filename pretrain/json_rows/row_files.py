"""Read rows from files or folders: JSON lists, JSONL and multi-line objects, also as .gz or .zst, and parquet.

Text is UTF-8 with or without a byte order mark, or UTF-16 with one. A file may hold several lists and objects one after
another. If the first object is on one line, the file is read as JSONL: each invalid line becomes a row with an error.
NaN, infinite numbers and lone surrogates are errors; the last of duplicate keys is kept. JSON rows are read one at a
time.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from json_rows.compressed_files import COMPRESSED
from json_rows.json_stream import INLINE_SPACE, WHITESPACE, InvalidJsonError, TextWindow, encoding_error

SUFFIXES = (".json", ".jsonl", ".parquet")
METADATA_FILES = ("extraction.json", "types.json", "run.json")  # JSON files beside row files, without rows
PARQUET_ROWS = 1024  # rows read at a time


class Row(NamedTuple):
    """A record of a file."""

    location: str  # "a.jsonl:3", "a.json:7, row 2" in a list, "a.parquet, row 2"
    content: dict[str, Any] | None  # None for an error or a blank line
    error: str = ""  # reason and remedy; the whole message is `location` followed by `error`


def list_files(path: str | Path) -> list[Path]:
    """Return the file, or a folder's row files sorted by name; raises FileNotFoundError if there is no file."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist; give a .json, .jsonl or .parquet file, or a folder of them")
    files = [file for file in sorted(path.iterdir()) if is_row_file(file)]
    if not files:
        raise FileNotFoundError(f"{path} holds no .json, .jsonl or .parquet file; give another folder")
    return files


def is_row_file(path: Path) -> bool:
    """Return whether a file exists and has the name of a row file."""
    lower = Path(path.name.lower())
    name = lower.with_suffix("") if lower.suffix in COMPRESSED else lower
    if name.suffix == ".parquet" and name != lower:  # parquet compresses its columns itself
        return False
    return name.suffix in SUFFIXES and name.name not in METADATA_FILES and path.is_file()


def iterate_rows(path: str | Path, blank_lines: bool = False) -> Iterator[Row]:
    """Yield the rows of a file or of a folder's files; an unreadable row has an error instead of its content.

    blank_lines: also yield a Row for each blank line, without content or error. Raises FileNotFoundError if the path
    does not exist. Raises ValueError if there are no rows, or if the rest of a file cannot be read.
    """
    is_empty = True
    for file in list_files(path):
        for row in _parquet_rows(file) if file.suffix.lower() == ".parquet" else _json_rows(file, blank_lines):
            is_empty = is_empty and row.content is None and not row.error
            yield row
    if is_empty:
        raise ValueError(f"{path} holds no rows; it must be a JSON list, one JSON object per line, or parquet")


def iterate_objects(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (location, object) for each row; raises the errors of `iterate_rows`, and ValueError at an invalid row."""
    for row in iterate_rows(path):
        if row.content is None:
            raise ValueError(f"{row.location} {row.error}")
        yield row.location, row.content


def _json_rows(path: Path, blank_lines: bool) -> Iterator[Row]:
    with path.open("rb") as file:
        window = TextWindow(file, path)
        items, line_is_blank = 0, True
        while window.at < len(window.text) or window.read_line():
            character, line = window.skip(INLINE_SPACE), window.line
            if character in ("\n", ""):
                if character and line_is_blank and blank_lines:
                    yield Row(f"{path}:{line}", None)
                window.advance(window.at + len(character))
                line_is_blank = True
                continue
            line_is_blank, is_list = False, character == "["
            try:
                for value in window.list_items() if is_list else [window.parse()]:
                    items += is_list
                    location = f"{path}:{value.line}" + (f", row {items}" if is_list else "")
                    message = value.error or ("" if is_list else window.extra_data())
                    if not message and not isinstance(value.content, dict):
                        message = "is not a JSON object; a row must be one"
                    yield Row(location, None if message else value.content, message)  # type: ignore[arg-type]  # a dict
            except InvalidJsonError as error:
                location = f"{path}:{window.line}, row {items + 1}" if is_list else f"{path}:{line}"
                message = encoding_error(window.current_line()) or str(error)
                if not window.is_one_line() or (is_list and not window.one_row_per_line):
                    raise ValueError(f"{location} {message}") from None
                yield Row(location, None, message)
                window.at = window.line_end()
            if not is_list and window.one_row_per_line is None:
                window.one_row_per_line = window.is_one_line()


def _parquet_rows(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(PARQUET_ROWS):
                for number, content in enumerate(batch.to_pylist(), number + 1):  # noqa: B020 (continues the count)
                    yield Row(f"{path}, row {number}", content)
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}, row {number + 1} cannot be read as parquet ({reason}); write it again") from None


def read_json(path: str | Path, remedy: str = "give a JSON file") -> Any:
    """Return the only JSON value of a file, which may have the encodings and compressions of row files.

    remedy: the end of the message if the file does not exist. Raises FileNotFoundError, or ValueError with file
    and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; {remedy}")
    with path.open("rb") as file:
        window = TextWindow(file, path)
        window.skip(WHITESPACE)
        try:
            content, message = window.parse()[1:]
            if not message and window.skip(WHITESPACE):
                message = "is not JSON (extra data after the value); correct it"
        except InvalidJsonError as error:
            message = encoding_error(window.current_line()) or str(error)
        if message:
            raise ValueError(f"{path}:{window.line} {message}")
        return content


def iterate_texts(path: str | Path, key: str = "text") -> Iterator[str]:
    """Yield the text under `key` of each row; if the file's name is not that of a row file, yield its lines.

    Raises FileNotFoundError, or ValueError with file and line.
    """
    path = Path(path)
    if path.is_file() and not is_row_file(path):
        with path.open("rb") as file:
            window = TextWindow(file, path)
            while window.read_line():
                if message := encoding_error(window.text):
                    raise ValueError(f"{path}:{window.line} {message}")
                yield window.text.rstrip("\r\n")
                window.advance(len(window.text))
        return
    for location, row in iterate_objects(path):
        if not isinstance(row.get(key), str):
            keys = ", ".join(map(str, row)) or "none"
            raise ValueError(f"{location} has no text under {key!r} (keys: {keys}); add it")
        yield row[key]
