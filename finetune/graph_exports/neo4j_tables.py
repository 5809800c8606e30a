"""Write nodes.csv and relationships.csv for `neo4j-admin database import` (header form of Neo4j 5).

neo4j-admin database import full --nodes=nodes.csv --relationships=relationships.csv --multiline-fields=true
"""

import csv
from pathlib import Path

from graph_exports.graph_triples import TripleStore


def write_neo4j(store: TripleStore, folder: Path) -> None:
    """Write the tables; a literal is a node whose id is "literal:" and its value."""
    with (folder / "nodes.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id:ID", "name", ":LABEL"])
        for node in store.nodes():
            # ";" separates labels
            label = (node.type or ("literal" if node.is_literal else "entity")).replace(";", ",")
            writer.writerow([_node_id(node.id, node.is_literal), node.id if node.is_literal else node.name, label])
    with (folder / "relationships.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([":START_ID", ":END_ID", ":TYPE", "sentences:int"])
        for edge in store.edges():
            writer.writerow([edge.subject, _node_id(edge.object, edge.is_literal), edge.relation, edge.sentences])


def _node_id(id: str, is_literal: bool) -> str:
    return f"literal:{id}" if is_literal else id
