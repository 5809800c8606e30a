"""graph_exports: N-Triples, tables for Neo4j and files for brat from annotated sentences."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import kg2instruct
import pytest

Row = dict[str, Any]
ROWS: list[Row] = [
    {
        "sentence": "Ann \"A\" Lee was born in Oslo on 14 March 1879.",
        "entity_list": [
            {"name": 'Ann "A" Lee', "type": "person", "spans": [[0, 11]], "id": "Q1"},
            {"name": "Oslo", "type": "city; capital", "spans": [[24, 28]], "id": "http://example.com/Oslo"},
        ],
        "relation_list": [
            {
                "subject": 'Ann "A" Lee', "relation": "born in", "object": "Oslo", "subject_type": "person",
                "object_type": "city; capital", "subject_spans": [[0, 11]], "object_spans": [[24, 28]],
                "subject_id": "Q1", "object_id": "http://example.com/Oslo",
            },
            {
                "subject": 'Ann "A" Lee', "relation": "date of birth", "object": "14 March 1879",
                "subject_type": "person", "object_type": "date", "subject_spans": [[0, 11]],
                "object_spans": [[32, 45]], "subject_id": "Q1", "object_id": "1879-03-14",
            },
        ],
    },
    {
        "sentence": "北京和Ann Lee去了Ann、Bo Lee。",
        "entity_list": [
            {"name": "北京", "type": "地点"}, {"name": "Ann Lee", "type": "person", "spans": [[12, 15], [19, 22]]},
        ],
        "relation_list": [{"subject": "Ann Lee", "relation": "visited", "object": "北京"}],
    },
]  # fmt: skip
IRI = r"<[^<>\"{}|^`\\\x00-\x20]+>"
LITERAL = r'"(?:[^"\\\n\r]|\\["\\nr])*"(?:\^\^' + IRI + ")?"


def export(folder: Path, form: str, rows: list[Row] = ROWS, *options: str) -> Path:
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    kg2instruct.main(["export", "--format", form, "--input", str(source), "--out", str(folder / "out"), *options])
    return folder / "out"


def test_ntriples_are_valid_and_have_typed_literals(tmp_path: Path) -> None:
    lines = (export(tmp_path, "ntriples", [*ROWS, ROWS[0]]) / "graph.nt").read_text().splitlines()
    assert all(re.fullmatch(rf"{IRI} {IRI} (?:{IRI}|{LITERAL}) \.", line) for line in lines)
    assert len(lines) == len(set(lines))
    subject = "<http://example.org/entity/Q1>"
    assert f'{subject} <http://www.w3.org/2000/01/rdf-schema#label> "Ann \\"A\\" Lee" .' in lines
    assert f"{subject} <http://example.org/relation/born%20in> <http://example.com/Oslo> ." in lines
    date = '"1879-03-14"^^<http://www.w3.org/2001/XMLSchema#date>'
    assert f"{subject} <http://example.org/relation/date%20of%20birth> {date} ." in lines


def test_neo4j_tables_have_unique_ids_and_known_ends(tmp_path: Path) -> None:
    folder = export(tmp_path, "neo4j", [*ROWS, ROWS[0]])
    nodes, edges = (list(csv.DictReader((folder / f"{name}.csv").open())) for name in ("nodes", "relationships"))
    ids = [node["id:ID"] for node in nodes]
    assert len(set(ids)) == len(ids) and {"Q1", "literal:1879-03-14"} <= set(ids)
    assert {node["name"]: node[":LABEL"] for node in nodes}["Oslo"] == "city, capital"
    assert all(edge[":START_ID"] in ids and edge[":END_ID"] in ids for edge in edges)
    assert {edge[":TYPE"]: edge["sentences:int"] for edge in edges} == {
        "born in": "2", "date of birth": "2", "visited": "1",
    }  # fmt: skip


def test_brat_annotations_spell_their_text(tmp_path: Path) -> None:
    folder = export(tmp_path, "brat", ROWS * 75)
    assert [path.name for path in sorted(folder.iterdir())] == [
        "00000.ann", "00000.txt", "00001.ann", "00001.txt", "annotation.conf",
    ]  # fmt: skip
    for name in ("00000", "00001"):
        text, entities = (folder / f"{name}.txt").read_text(), set()
        for line in (folder / f"{name}.ann").read_text().splitlines():
            if line.startswith("T"):
                number, place, covered = line.split("\t")
                kind, _, spans = place.partition(" ")
                pieces = [text[int(start) : int(end)] for start, end in (span.split() for span in spans.split(";"))]
                assert " ".join(pieces) == covered and re.fullmatch(r"[\w-]+", kind)
                entities.add(number)
            else:
                assert {part.partition(":")[2] for part in line.split()[2:]} <= entities
    assert "born_in Arg1:<ENTITY>, Arg2:<ENTITY>" in (folder / "annotation.conf").read_text()


@pytest.mark.parametrize(
    ("form", "row", "message"),
    [
        ("neo4j", {"sentence": "a", "entity_list": [{"name": "a"}]}, "jsonl:1 has an item without text under 'type'"),
        ("ntriples", {"sentence": "a", "relation_list": 3}, r"rows.jsonl:1 has no list under 'relation_list'"),
        ("brat", {"sentence": "a", "entity_list": [{"name": "b", "type": "c"}]}, "jsonl:1 has 'b', which"),
        ("brat", {"sentence": "a", "entity_list": [{"name": "a", "type": "c", "spans": [[0, 9]]}]}, ":1 has spans"),
    ],
)  # fmt: skip
def test_invalid_row_is_named_and_nothing_is_written(tmp_path: Path, form: str, row: Row, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export(tmp_path, form, [row])
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_base_that_is_not_an_iri_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not the beginning of IRIs"):
        export(tmp_path, "ntriples", ROWS, "--base", "example")
