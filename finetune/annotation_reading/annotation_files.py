"""Read annotated sentences from a file or folder in any of the FORMATS; the format can be recognised by the content."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from json_rows.row_files import is_row_file, iterate_objects
from spacy_files.docbin_reader import is_docbin

from annotation_reading import data_set_rows as rows
from annotation_reading import tool_export_rows as exports
from annotation_reading.annotated_sentences import AnnotatedSentence
from annotation_reading.brat_documents import is_brat, read_brat
from annotation_reading.column_files import (
    conll04_sentences,
    conll_sentences,
    count_inconsistent_tags,
    is_comment,
    numbered_lines,
    read_conll,
    read_conll04,
    split_columns,
)
from annotation_reading.json_row_files import OWN_FORM, RowReader, key_names, read_own_row, read_rows
from annotation_reading.spacy_documents import read_spacy
from annotation_reading.tag_schemes import parse_tag

LINES_READ = 50  # first lines of a file, from which its format is recognised
JSON_START = re.compile(r'\s*(\{\s*(["}]|$)|\[\s*([\[{\]]|$))')
CONLL04_COLUMNS = re.compile(r"[0-9]+\t[^\t]+\t[^\t]+\t\[.*\]\t\[.*\]\s*")


class FileBeginning(NamedTuple):
    """The beginning of a file or folder, from which its format is recognised."""

    path: Path
    lines: list[str]  # first lines that are not blank; [] for JSON, parquet, binary files and folders
    row: dict[str, Any] | None = None  # first row of JSON or parquet
    location: str = ""  # "file:line" of the row


class AnnotationFormat(NamedTuple):
    """A format of annotated sentences. read: function of a path and a language ("auto": detect it by sentence)."""

    read: Callable[[Path, str], Iterator[AnnotatedSentence]]
    recognises: Callable[[FileBeginning], bool]


def row_format(read: RowReader, form: str, recognises: Callable[[dict[str, Any]], bool]) -> AnnotationFormat:
    """Return a format of one JSON object per text; `recognises` decides by the first one."""
    return AnnotationFormat(
        partial(read_rows, read=read, form=form),
        lambda beginning: beginning.row is not None and recognises(beginning.row),
    )


def has(row: dict[str, Any], key: str, item: type = object) -> bool:
    """Return whether row[key] is a list whose first item, if any, has the type `item`."""
    return isinstance(row.get(key), list) and all(isinstance(value, item) for value in row[key][:1])


def is_conll04(beginning: FileBeginning) -> bool:
    """Return whether a file has a line with the five columns of CoNLL04."""
    return any(CONLL04_COLUMNS.fullmatch(line) for line in beginning.lines)


def is_conll(beginning: FileBeginning) -> bool:
    """Return whether a file has a line of several columns that ends with a tag."""
    columns = [split_columns(line) for line in beginning.lines]
    return any(len(row) > 1 and parse_tag(row[-1]) is not None and not is_comment(row) for row in columns)


COLUMN_FORMATS = {"conll": conll_sentences, "conll04": conll04_sentences}

# Recognised in this order; no two recognise the same published file.
FORMATS: dict[str, AnnotationFormat] = {
    "json": row_format(read_own_row, OWN_FORM, lambda row: "sentence" in row),
    "iepile": row_format(
        rows.read_iepile_row,
        rows.IEPILE_FORM,
        lambda row: (
            "text" in row and "cate" not in row and any(has(row, key, dict) for key in ("entity", "relation", "event"))
        ),
    ),
    "instructie": row_format(
        rows.read_instructie_row,
        rows.INSTRUCTIE_FORM,
        lambda row: ("text" in row or "input" in row) and (has(row, "relation") or has(row, "kg")),
    ),
    "duie": row_format(rows.read_duie_row, rows.DUIE_FORM, lambda row: has(row, "spo_list", dict)),
    "duee": row_format(rows.read_duee_row, rows.DUEE_FORM, lambda row: "text" in row and has(row, "event_list", dict)),
    "fewfc": row_format(
        rows.read_fewfc_row, rows.FEWFC_FORM, lambda row: "content" in row and has(row, "events", dict)
    ),
    "nyt": row_format(
        rows.read_nyt_row,
        rows.NYT_FORM,
        lambda row: has(row, "relationMentions", dict) or has(row, "triple_list", list),
    ),
    "doccano": row_format(
        exports.read_doccano_row,
        exports.DOCCANO_FORM,
        lambda row: "text" in row and (has(row, "entities", dict) or has(row, "label") or has(row, "labels")),
    ),
    "labelstudio": row_format(
        exports.read_label_studio_row,
        exports.LABEL_STUDIO_FORM,
        lambda row: "data" in row and (has(row, "annotations", dict) or has(row, "completions", dict)),
    ),
    "spacy": AnnotationFormat(read_spacy, lambda beginning: beginning.path.is_file() and is_docbin(beginning.path)),
    "brat": AnnotationFormat(read_brat, lambda beginning: is_brat(beginning.path)),
    "conll04": AnnotationFormat(read_conll04, is_conll04),
    "conll": AnnotationFormat(read_conll, is_conll),
}


def read_annotation_files(
    path: str | Path, format: str = "auto", language: str = "auto"
) -> Iterator[AnnotatedSentence]:
    """Yield the annotated sentences of a file, or of a folder of JSON row files, one at a time.

    format: one of FORMATS, or "auto": recognised by the content. language: "en" or "zh", or "auto": detected for each
    sentence. Annotations that do not fit their text are yielded too; annotation_checks.check_sentence finds them.
    Raises FileNotFoundError, or ValueError with file and line for a malformed file.
    """
    path = Path(path)
    format = recognise_format(path) if format == "auto" else checked_format(format)
    if format in COLUMN_FORMATS and not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file; --format {format} takes a text file")
    yield from FORMATS[format].read(path, language)


def checked_format(format: str) -> str:
    """Return the name of a format; raises ValueError if there is no such format."""
    if format not in FORMATS:
        raise ValueError(f"--format {format} is not known; give auto or one of {', '.join(FORMATS)}")
    return format


def recognise_format(path: str | Path) -> str:
    """Return the name of the format of a file or folder.

    Raises FileNotFoundError, or ValueError if the format is not recognised or the first lines are damaged.
    """
    beginning = read_beginning(Path(path))
    found = next((name for name, format in FORMATS.items() if format.recognises(beginning)), "")
    if found:
        return found
    if beginning.row is not None:
        content = f"{beginning.location} is not recognised as a row of annotations (keys: {key_names(beginning.row)})"
    else:
        first = ", ".join(repr(line[:40]) for line in beginning.lines[:3])
        content = f"{path} is not recognised as a file of annotations (it begins with the lines {first})"
    raise ValueError(f"{content}; give annotations in one of the formats {', '.join(FORMATS)}, or give --format")


def read_beginning(path: Path) -> FileBeginning:
    """Return the first lines or the first row of a file; raises the errors of `recognise_format`."""
    lines: list[str] = []
    if is_brat(path) or (path.is_file() and is_docbin(path)):
        return FileBeginning(path, [])
    if path.is_file() and not is_parquet(path):
        lines = [line for _, line in islice(numbered_lines(path), LINES_READ)]
        lines = [line for line in lines if line.strip("\ufeff \t\r\n")]
        if lines and not JSON_START.match(lines[0].lstrip("\ufeff")) and not looks_like_broken_json(path, lines):
            return FileBeginning(path, lines)
    location, row = next(iterate_objects(path))
    return FileBeginning(path, [], row, location)


def looks_like_broken_json(path: Path, lines: list[str]) -> bool:
    """Return whether lines begin like JSON and have no columns; the JSON reader reports the error."""
    beginning = FileBeginning(path, lines)
    begins = lines[0].lstrip("\ufeff \t")[:1] in ("{", "[") or is_row_file(path)
    return begins and not is_conll(beginning) and not is_conll04(beginning)


def is_parquet(path: Path) -> bool:
    """Return whether a file is parquet."""
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def inconsistent_tags(path: str | Path, format: str = "auto") -> int:
    """Return how many tags of a CoNLL file are inconsistent with the tags beside them; 0 for other formats.

    Reads the file a second time. Raises the errors of `read_annotation_files`.
    """
    path = Path(path)
    format = recognise_format(path) if format == "auto" else checked_format(format)
    return count_inconsistent_tags(COLUMN_FORMATS[format](path)) if format in COLUMN_FORMATS else 0
