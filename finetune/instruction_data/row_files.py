"""Instruction rows from files: JSON lists, JSONL, parquet, folders of these, one row in memory at a time.

finetune.py and ie_run.py read through it. A row is {"instruction", "input", "output"} or {"messages"};
other keys are carried along.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SUFFIXES = (".json", ".jsonl", ".parquet")
NOT_ROWS = ("extraction.json", "types.json", "run.json")  # JSON that lies beside rows
BLOCK = 1 << 20  # characters of a JSON list read at a time
SHAPE = '{"instruction", "input", "output"} or {"messages"}'

Message = dict[str, str]
Row = dict[str, Any]


class Source(NamedTuple):
    """A file of rows and the name that proportions and losses call it by."""

    name: str
    path: Path


def find_sources(given: Sequence[str]) -> tuple[list[Source], list[str]]:
    """The files of --data_path, and what was skipped in folders.

    given: paths of files or folders, each perhaps as name=path; several may stand in one word with commas between
    them. A file is called after its stem, a folder's files so, too. Raises FileNotFoundError or ValueError.
    """
    words = [part for word in given for part in ([word] if Path(word).exists() else word.split(",")) if part]
    found: list[Source] = []
    skipped: list[str] = []
    for word in words:
        name, equals, path = ("", "", word) if Path(word).exists() else word.partition("=")
        place = Path(path if equals else word)
        if place.is_dir():
            files = [file for file in sorted(place.iterdir()) if file.suffix in SUFFIXES and file.name not in NOT_ROWS]
            skipped += [str(file) for file in sorted(place.iterdir()) if file not in files]
            if not files:
                raise FileNotFoundError(
                    f"{place} holds no .json, .jsonl or .parquet file; --data_path takes such files"
                )
            found += [Source(file.stem if not name else f"{name}-{file.stem}", file) for file in files]
        elif place.is_file():
            found.append(Source(name if equals else place.stem, place))
        else:
            raise FileNotFoundError(f"{place} does not exist; --data_path takes files of rows, or folders of them")
    names = [source.name for source in found]
    twice = next((source for source in found if names.count(source.name) > 1), None)
    if twice:
        raise ValueError(f"two sources are called {twice.name}; name them: --data_path first={twice.path},second=…")
    return found, skipped


def iterate_rows(path: str | Path, answers: bool = True) -> Iterator[Row]:
    """The rows of a file, checked one by one; `answers`: every row must have one, too.

    Raises FileNotFoundError or ValueError that names the file and the line (for lists and parquet: the row).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a .json, .jsonl or .parquet file of instruction rows")
    count = 0
    for count, (place, row) in enumerate(_placed(path), 1):  # noqa: B007
        complaint = complain(row, answers)
        if complaint:
            raise ValueError(f"{place}: {complaint}; a row is {SHAPE}")
        yield row
    if not count:
        raise ValueError(f"{path} holds no rows; it must be a JSON list, one JSON object a line, or parquet")


def read_rows(path: str | Path, answers: bool = True) -> list[Row]:
    """All rows of a file at once; see `iterate_rows`."""
    return list(iterate_rows(path, answers))


def _placed(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows, each with the words that say where it stands."""
    if path.suffix == ".parquet":
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(_parquet(path), 1))
        return
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head[:1] == b"[":
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(_list_items(path), 1))
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield f"{path}:{number}", json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number} is not JSON ({error.msg}); one object a line is expected") from None
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number} is not UTF-8 ({error.reason}); convert the file first") from None


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as parquet ({error}); write it again") from None


def _list_items(path: Path) -> Iterator[Any]:
    """The items of a JSON list, read piece by piece."""
    decoder, number, text, due = json.JSONDecoder(), 1, "", "["
    with path.open(encoding="utf-8-sig") as file:
        try:
            while True:
                text = text.lstrip()
                while not text and (more := file.read(BLOCK)):
                    text = more.lstrip()
                if text[:1] == "]" and due == ",":
                    return
                if due:
                    if text[:1] != due:
                        raise ValueError(f"{path}, before row {number}: {due!r} or the list's end is missing there")
                    text, due = text[1:], ""
                    continue
                if text[:1] == "]" and number == 1:
                    return
                try:
                    item, end = decoder.raw_decode(text)
                except json.JSONDecodeError as error:
                    more = file.read(max(BLOCK, len(text)))
                    if not more:
                        raise ValueError(f"{path}, row {number} is not JSON ({error.msg}); repair it there") from None
                    text += more
                    continue
                yield item
                number, text, due = number + 1, text[end:], ","
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, near row {number} is not UTF-8 ({error.reason}); convert it first") from None


def complain(row: Any, answers: bool) -> str:
    """What is wrong with a row, or nothing."""
    if not isinstance(row, dict):
        return "not a JSON object"
    if row.get("messages") is not None:
        turns = row["messages"]
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            return "messages is not a list of objects"
        if not all(isinstance(turn.get(key), str) for turn in turns for key in ("role", "content")):
            return "a message lacks a textual role or content"
        if not turns or turns[0]["role"] == "assistant":
            return "messages does not begin with a question"
        answered = any(turn["role"] == "assistant" for turn in turns)
        return "no message has the role assistant" if answers and not answered else ""
    for key in ("instruction", "output") if answers else ("instruction",):
        if not isinstance(row.get(key), str):
            return f"no text under {key!r} (keys: {', '.join(map(str, row)) or 'none'})"
    return "" if isinstance(row.get("input") or "", str) else "input is not text"


def messages_of(row: Row) -> list[Message]:
    """The conversation that a row stands for; the template chooses its layout with or without input."""
    if row.get("messages") is not None:
        return row["messages"]
    question = {"role": "user", "content": row["instruction"], "input": row.get("input") or ""}
    return [question, {"role": "assistant", "content": row.get("output") or ""}]


def question_of(row: Row) -> list[Message]:
    """The conversation up to the last answer, which is what the model is to give."""
    messages = messages_of(row)
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    return messages[: answers[-1]] if answers else messages
