"""Write annotated sentences for brat: pairs of .txt and .ann files, and annotation.conf (https://brat.nlplab.org).

A document has SENTENCES sentences, one on each line. Names of types and relations may have letters, digits, "-" and "_"
in brat; other characters are replaced by "_". An item without spans is placed at the first occurrence of its name.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from json_rows.row_files import iterate_objects
from tqdm import tqdm

from graph_exports.graph_triples import items_of, text_of

SENTENCES = 100  # in a document
_OTHER = re.compile(r"[^\w-]")
Spans = tuple[tuple[int, int], ...]


def write_brat(path: str, folder: Path) -> tuple[int, int]:
    """Write the documents of a file of annotated sentences; return (documents, sentences).

    Raises ValueError with file and line for an item without place in its sentence.
    """
    entity_types, relations, documents, sentences = dict[str, None](), dict[str, None](), 0, 0
    for rows in _batches(tqdm(iterate_objects(path), "rows", unit=" rows", disable=None, leave=False)):
        document = BratDocument()
        for location, row in rows:
            document.add(location, row)
        entity_types |= document.entity_types
        relations |= document.relations
        (folder / f"{documents:05}.txt").write_text(document.text, encoding="utf-8", newline="\n")
        (folder / f"{documents:05}.ann").write_text("".join(document.lines), encoding="utf-8", newline="\n")
        documents, sentences = documents + 1, sentences + len(rows)
    configuration = ["[entities]", *entity_types, "", "[relations]"]
    configuration += [f"{name} Arg1:<ENTITY>, Arg2:<ENTITY>" for name in relations]
    configuration += ["", "[events]", "", "[attributes]"]
    (folder / "annotation.conf").write_text("\n".join(configuration) + "\n", encoding="utf-8")
    return documents, sentences


def _batches(rows: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == SENTENCES:
            yield batch
            batch = []
    if batch:
        yield batch


class BratDocument:
    """The text and the annotation lines of a document."""

    def __init__(self) -> None:
        self.text, self.lines = "", list[str]()
        self.entity_types, self.relations = dict[str, None](), dict[str, None]()
        self.count = 0  # of entities
        self.relation_count = 0

    def add(self, location: str, row: dict[str, Any]) -> None:
        """Add a sentence; raises ValueError, with the location, if an item has no place in it."""
        sentence = text_of(row, "sentence", location).replace("\n", " ").replace("\r", " ")
        places: dict[tuple[Spans, str], int] = {}
        numbers: dict[Spans, int] = {}
        for item in items_of(row, "entity_list", location):
            name, kind = text_of(item, "name", location), text_of(item, "type", location)
            spans = _spans(item, "spans", name, sentence, location)
            if (spans, kind) not in places:
                places[spans, kind] = self._add_entity(spans, kind, sentence)
            numbers.setdefault(spans, places[spans, kind])
        for item in items_of(row, "relation_list", location):
            arguments = []
            for role in ("subject", "object"):
                name = text_of(item, role, location)
                kind = str(item.get(f"{role}_type") or "entity")
                spans = _spans(item, f"{role}_spans", name, sentence, location)
                number = places.get((spans, kind), numbers.get(spans))
                if number is None:
                    number = numbers[spans] = self._add_entity(spans, kind, sentence)
                arguments.append(number)
            relation = _OTHER.sub("_", text_of(item, "relation", location))
            self.relations[relation] = None
            self.relation_count += 1
            first, second = arguments
            self.lines.append(f"R{self.relation_count}\t{relation} Arg1:T{first} Arg2:T{second}\n")
        self.text += sentence + "\n"

    def _add_entity(self, spans: Spans, kind: str, sentence: str) -> int:
        self.count += 1
        kind = _OTHER.sub("_", kind)
        self.entity_types[kind] = None
        places = ";".join(f"{start + len(self.text)} {end + len(self.text)}" for start, end in spans)
        text = " ".join(sentence[start:end] for start, end in spans)
        self.lines.append(f"T{self.count}\t{kind} {places}\t{text}\n")
        return self.count


def _spans(item: dict[str, Any], key: str, name: str, sentence: str, location: str) -> Spans:
    """Return the spans of an item, or those of the first occurrence of its name."""
    given = item.get(key)
    if not given:
        start = sentence.find(name.replace("\n", " "))
        if start < 0:
            raise ValueError(f"{location} has {name!r}, which is not in the sentence; correct the row")
        return ((start, start + len(name)),)
    is_list = isinstance(given, list) and all(isinstance(one, list) and len(one) == 2 for one in given)
    if not is_list or not all(type(at) is int and 0 <= at <= len(sentence) for one in given for at in one):
        raise ValueError(f"{location} has {key} {given!r}, which are not spans [[start, end]] of the sentence")
    return tuple((start, end) for start, end in given)
