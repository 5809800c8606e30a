"""Read a file of annotated sentences: JSON, CoNLL columns or CoNLL04; the format can be recognised by the content."""

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from instruction_data.annotations import Annotation, read_annotations
from instruction_data.column_files import (
    READERS,
    TagCounts,
    annotate,
    is_comment,
    numbered_lines,
    parse_tag,
    split_columns,
)

FORMATS = ("auto", "json", "conll", "conll04")
LINES_READ = 50  # first lines of a file, from which its format is recognised
JSON_START = re.compile(r'\s*(\{\s*(["}]|$)|\[\s*([\[{\]]|$))')
CONLL04_COLUMNS = re.compile(r"[0-9]+\t[^\t]+\t[^\t]+\t\[.*\]\t\[.*\]\s*")


def recognise_format(lines: Sequence[str]) -> str:
    """Return the format of a file by its first lines: "json", "conll" or "conll04", or "" if it is not recognised.

    The format of an empty file is "json"; the JSON reader reports the error.
    """
    lines = [line for line in lines if line.strip("\ufeff \t\r\n")]
    if not lines or JSON_START.match(lines[0].lstrip("\ufeff")):
        return "json"
    if any(CONLL04_COLUMNS.fullmatch(line) for line in lines):
        return "conll04"
    columns = [split_columns(line) for line in lines]
    if any(len(row) > 1 and parse_tag(row[-1]) is not None and not is_comment(row) for row in columns):
        return "conll"
    return "json" if lines[0].lstrip("\ufeff \t")[:1] in ("{", "[") else ""


def file_format(path: str) -> str:
    """Return the format of a file; raises ValueError if it is not recognised, or if one of its first lines is damaged.

    The format of a folder, a parquet file or a missing file is "json": the JSON reader reads it or reports the error.
    """
    file = Path(path)
    if not file.is_file():
        return "json"
    with file.open("rb") as beginning:
        if beginning.read(4) == b"PAR1":
            return "json"
    lines = [line for _, line in islice(numbered_lines(file), LINES_READ)]
    found = recognise_format(lines)
    if not found:
        first = ", ".join(repr(line[:40]) for line in [line for line in lines if line.strip()][:3])
        raise ValueError(
            f"{path} is not recognised as JSON, CoNLL columns or CoNLL04 (it begins with the lines {first}); give a "
            "file of annotated sentences, or its --format"
        )
    return found


def read_annotation_file(
    path: str, task: str, language: str = "auto", format: str = "auto"
) -> tuple[list[Annotation], int]:
    """Return the annotated sentences of a file with their items for `task`, and the number of inconsistent tags.

    language: language of the sentences; "auto" detects it for each sentence. format: one of FORMATS. Raises
    FileNotFoundError, or ValueError with file and line.
    """
    format = file_format(path) if format == "auto" else format
    if format == "json":
        return read_annotations(path, task, language), 0
    if format == "conll" and task != "ner":
        raise ValueError(f"{path} has CoNLL columns, which annotate entities only; give --task ner, or a CoNLL04 file")
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file; --format {format} takes a text file")
    annotations, counts = [], TagCounts()
    for sentence in READERS[format](file):
        annotations.append(annotate(file, sentence, task, language))
        counts.add(sentence.tags)
    if not annotations:
        raise ValueError(f"{path} holds no sentences; give a file with one token and its tag per line")
    return annotations, counts.inconsistent()
