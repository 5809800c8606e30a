"""Read the files of a knowledge graph: triples, aliases and types in columns separated by tabs, and the schema in JSON.

    triples   head id, relation, tail id or literal               or: head id, head name, relation, tail id, tail name
    aliases   id, name [, language]
    types     id, type
    schema    [{"subject_type", "predicate", "object_type", "label"?}]      or strings "person_born in_place"

Files may end in .gz or .zst. A type "*" in the schema allows any type. "label" is the name of the relation in the
output, for graphs whose relations are not words, such as /people/person/place_of_birth.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from json_rows.compressed_files import READ_ERRORS, decompressed_file
from json_rows.row_files import read_json

ANY_TYPE = "*"
LONGEST_FIELD = 10_000  # characters
SCHEMA_FORM = '[{"subject_type": "person", "predicate": "born in", "object_type": "place"}]'


class GraphTriple(NamedTuple):
    """A line of a file of triples. The names are "" in files of three columns."""

    head: str
    relation: str
    tail: str
    head_name: str = ""
    tail_name: str = ""


class SchemaRule(NamedTuple):
    """A kind of triple that the schema allows. label: the name of the relation in the output."""

    subject_type: str
    object_type: str
    label: str


Schema = dict[str, list[SchemaRule]]  # relation of the graph -> its rules


def read_columns(path: str, widths: tuple[int, ...], form: str) -> Iterator[list[str]]:
    """Yield the fields of each line; see `located_columns`."""
    return (fields for _, fields in located_columns(path, widths, form))


def located_columns(path: str, widths: tuple[int, ...], form: str) -> Iterator[tuple[str, list[str]]]:
    """Yield "file:line" and the fields, without surrounding spaces, of each line that is not blank.

    widths: the permitted numbers of columns; form: the columns in words, for messages. Raises FileNotFoundError, or
    ValueError with file and line if a line is not UTF-8, has another number of columns or an empty one.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; give a file with the tab-separated columns {form}")
    number = 0
    with Path(path).open("rb") as raw:
        try:
            for number, line in enumerate(decompressed_file(raw, Path(path)), 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if not text.strip():
                    continue
                fields = [field.strip() for field in text.split("\t")]
                if len(fields) not in widths:
                    count = " or ".join(map(str, widths))
                    raise ValueError(f"{path}:{number} has {len(fields)} columns, not {count}; expected: {form}")
                if not all(fields):
                    raise ValueError(f"{path}:{number} has an empty column; expected: {form}")
                if len(text) > LONGEST_FIELD:
                    raise ValueError(f"{path}:{number} has more than {LONGEST_FIELD:,} characters; remove the line")
                yield f"{path}:{number}", fields
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise ValueError(f"{path}:{number} is not UTF-8 (byte 0x{byte:02x}); convert the file to UTF-8") from None
        except READ_ERRORS as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path}:{number + 1} cannot be read ({reason}); get the file again") from None


def read_triples(path: str) -> Iterator[GraphTriple]:
    """Yield the triples of a file; raises ValueError with file and line unless all lines have 3, or all 5 columns."""
    form = "head id, relation, tail id or literal (or: head id, head name, relation, tail id, tail name)"
    width = 0
    for location, fields in located_columns(path, (3, 5), form):
        width = width or len(fields)
        if len(fields) != width:
            raise ValueError(f"{location} has {len(fields)} columns, the first line {width}; use one form")
        if width == 3:
            yield GraphTriple(*fields)
        else:
            head, head_name, relation, tail, tail_name = fields
            yield GraphTriple(head, relation, tail, head_name, tail_name)


def read_schema(path: str) -> Schema:
    """Return the rules of a schema file by relation. Raises FileNotFoundError or ValueError."""
    content: Any = read_json(path, f"--schema takes {SCHEMA_FORM}")
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path} is not a list of allowed triples; --schema takes {SCHEMA_FORM}")
    schema: Schema = {}
    for number, entry in enumerate(content, 1):
        if isinstance(entry, str) and entry.count("_") == 2:
            entry = dict(zip(("subject_type", "predicate", "object_type"), entry.split("_"), strict=True))
        keys = ("subject_type", "predicate", "object_type")
        is_rule = isinstance(entry, dict) and all(isinstance(entry.get(key), str) and entry[key] for key in keys)
        if not is_rule or not isinstance(entry.get("label", ""), str):
            raise ValueError(f"{path}, entry {number} is not an allowed triple; --schema takes {SCHEMA_FORM}")
        subject_type, predicate, object_type = (entry[key] for key in keys)
        rule = SchemaRule(subject_type, object_type, entry.get("label") or predicate)
        schema.setdefault(predicate, []).append(rule)
    return schema
