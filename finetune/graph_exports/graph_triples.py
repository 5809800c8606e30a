"""Collect the distinct entities and triples of annotated sentences in an SQLite database, so that memory is bounded.

An entity is identified by its id in the graph, or by type and name if the annotations have no ids. The object of a
triple is a literal if its id is not the id of an entity of its sentence.
"""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from json_rows.row_files import iterate_objects
from tqdm import tqdm


class GraphNode(NamedTuple):
    """An entity or a literal. id: of an entity, unique; of a literal, its value."""

    id: str
    name: str
    type: str
    is_literal: bool


class GraphEdge(NamedTuple):
    """A triple, with the number of sentences that have it."""

    subject: str
    relation: str
    object: str
    is_literal: bool  # whether the object is a literal
    object_type: str
    sentences: int


class TripleStore:
    """The database of nodes and edges."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection = sqlite3.connect(path)
        self.connection.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
            "CREATE TABLE node (id TEXT, is_literal INTEGER, name TEXT, type TEXT, PRIMARY KEY (id, is_literal));"
            "CREATE TABLE edge (subject TEXT, relation TEXT, object TEXT, is_literal INTEGER, type TEXT, "
            "sentences INTEGER, PRIMARY KEY (subject, relation, object, is_literal)) WITHOUT ROWID"
        )

    def add_node(self, node: GraphNode) -> None:
        """Add a node; of nodes with equal id, the first name and the first type that is not empty are kept."""
        self.connection.execute(
            "INSERT INTO node VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET type = excluded.type WHERE type = ''",
            (node.id, node.is_literal, node.name, node.type),
        )

    def add_edge(self, edge: GraphEdge) -> None:
        """Add a triple, or the number of its sentences if the triple is stored."""
        self.connection.execute(
            "INSERT INTO edge VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE "
            "SET sentences = sentences + excluded.sentences",
            (edge.subject, edge.relation, edge.object, edge.is_literal, edge.object_type, edge.sentences),
        )

    def nodes(self) -> Iterator[GraphNode]:
        """Yield the nodes in the order of their ids."""
        for id, name, type, is_literal in self.connection.execute(
            "SELECT id, name, type, is_literal FROM node ORDER BY id, is_literal"
        ):
            yield GraphNode(id, name, type, bool(is_literal))

    def edges(self) -> Iterator[GraphEdge]:
        """Yield the triples in order."""
        for subject, relation, object, is_literal, type, sentences in self.connection.execute(
            "SELECT * FROM edge ORDER BY subject, relation, object, is_literal"
        ):
            yield GraphEdge(subject, relation, object, bool(is_literal), type, sentences)

    def counts(self) -> tuple[int, int]:
        """Return the numbers of nodes and of triples."""
        query = "SELECT (SELECT count(*) FROM node), (SELECT count(*) FROM edge)"
        nodes, edges = self.connection.execute(query).fetchone()
        return int(nodes), int(edges)

    def close(self) -> None:
        """Close and remove the database."""
        self.connection.close()
        self.path.unlink(missing_ok=True)


def text_of(item: Any, key: str, location: str) -> str:
    """Return the text under a key of an item; raises ValueError with the location if there is none."""
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{location} has an item without text under {key!r}; give annotated sentences")
    return value


def items_of(row: dict[str, Any], key: str, location: str) -> list[Any]:
    """Return the list under a key, [] if there is none; raises ValueError if it is not a list."""
    items = row.get(key) or []
    if not isinstance(items, list):
        raise ValueError(f"{location} has no list under {key!r}; give annotated sentences")
    return items


def collect_triples(path: str, store: TripleStore) -> None:
    """Add the entities and relations of a file of annotated sentences to a store.

    Raises ValueError with file and line.
    """
    for location, row in tqdm(iterate_objects(path), "rows", unit=" rows", disable=None, leave=False):
        types: dict[tuple[str, str], str] = {}
        ids = set[str]()
        for item in items_of(row, "entity_list", location):
            name, kind = text_of(item, "name", location), text_of(item, "type", location)
            id = str(item.get("id") or f"{kind}/{name}")
            store.add_node(GraphNode(id, name, kind, False))
            types.setdefault((name, ""), kind)
            ids.add(id)
        for item in items_of(row, "relation_list", location):
            subject, relation, object = (text_of(item, key, location) for key in ("subject", "relation", "object"))
            subject_type = str(item.get("subject_type") or types.get((subject, ""), ""))
            object_type = str(item.get("object_type") or types.get((object, ""), ""))
            subject_id = str(item.get("subject_id") or f"{subject_type}/{subject}")
            is_literal = bool(item.get("object_id")) and item["object_id"] not in ids
            object_id = str(item.get("object_id") or f"{object_type}/{object}")
            store.add_node(GraphNode(subject_id, subject, subject_type, False))
            store.add_node(GraphNode(object_id, object, object_type, is_literal))
            store.add_edge(GraphEdge(subject_id, relation, object_id, is_literal, object_type, 1))
