"""Write triples as N-Triples (https://www.w3.org/TR/n-triples/).

An id, type or relation that is an IRI is kept; any other becomes a path below the base IRI.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from literal_values.literal_mentions import literal_keys

from graph_exports.graph_triples import TripleStore

_TYPE = "<http://www.w3.org/1999/02/22-rdf-syntax-ns#type>"
_LABEL = "<http://www.w3.org/2000/01/rdf-schema#label>"
_XSD = "http://www.w3.org/2001/XMLSchema#"
_IRI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[^\x00-\x20<>\"{}|^`\\]+")
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"})
_DATES = {1: "gYear", 2: "gYearMonth", 3: "date"}  # number of parts -> datatype


def check_base(base: str) -> None:
    """Raise ValueError if `base` is not a prefix of IRIs."""
    if not _IRI.fullmatch(base) or base[-1] not in "/#:":
        raise ValueError(f"--base {base} is not the beginning of IRIs; give one such as http://example.org/")


def iri(base: str, folder: str, id: str) -> str:
    """Return the IRI of an entity, a type or a relation."""
    return f"<{id}>" if _IRI.fullmatch(id) and "://" in id else f"<{base}{folder}/{quote(id, safe='')}>"


def literal(value: str) -> str:
    """Return a literal with the datatype of its value: a date, a year with or without month, a number, or text."""
    text = '"' + value.translate(_ESCAPES) + '"'
    for key in sorted(literal_keys(value)):
        kind, _, rest = key.partition(" ")
        if kind == "d":
            year, *others = rest.removeprefix("-").split("-")
            sign = "-" if rest.startswith("-") else ""
            return f'"{sign}{"-".join([year.zfill(4), *others])}"^^<{_XSD}{_DATES[len(others) + 1]}>'
        if " " not in rest:
            return f'"{rest}"^^<{_XSD}{"decimal" if "." in rest else "integer"}>'
    return text


def write_ntriples(store: TripleStore, folder: Path, base: str) -> None:
    """Write graph.nt: a label and a type for each entity, and the triples."""

    def lines() -> Iterator[str]:
        for node in store.nodes():
            if not node.is_literal:
                subject = iri(base, "entity", node.id)
                yield f'{subject} {_LABEL} "{node.name.translate(_ESCAPES)}" .\n'
                if node.type:
                    yield f"{subject} {_TYPE} {iri(base, 'type', node.type)} .\n"
        for edge in store.edges():
            object = literal(edge.object) if edge.is_literal else iri(base, "entity", edge.object)
            yield f"{iri(base, 'entity', edge.subject)} {iri(base, 'relation', edge.relation)} {object} .\n"

    with (folder / "graph.nt").open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines())
