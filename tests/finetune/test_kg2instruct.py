"""finetune/kg2instruct.py: precision and recall on the demo world, rows, evidence, tasks, resuming, invalid files."""

import json
import os
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ie_build
import kg2instruct
import pytest
from conftest import RunScript
from demo_world.world_builder import make_world
from graph_linking.graph_index import GraphIndex
from graph_linking.index_build import build_index

Row = dict[str, Any]
TRIPLES = 'Q1\tborn in\tQ2\nQ1\tdate of birth\t1879-03-14\nQ2\tpopulation\t709000\nQ1\tmotto\t"Always on"\n'
ALIASES = "Q1\tAnn Lee\ten\nQ1\t李安\tzh\nQ2\tOslo\nQ2\t奥斯陆\tzh\n"
TYPES = "Q1\tperson\nQ2\tplace\n"
TEXTS = [
    "Ann Lee was born in Oslo on 14 March 1879. It rained. Oslo has 709,000 people.",
    "李安出生在奥斯陆，生于一八七九年三月十四日。奥斯陆有70.9万人。",
    "Always on, said Ann Lee.",
]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a graph and texts."""
    monkeypatch.chdir(tmp_path)
    for name, content in (("kg", TRIPLES), ("aliases", ALIASES), ("types", TYPES)):
        Path(f"{name}.tsv").write_text(content, encoding="utf-8")
    write_texts("texts.jsonl", TEXTS)
    return tmp_path


def write_texts(path: str, texts: list[str]) -> None:
    Path(path).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def rows_of(path: str | Path) -> list[Row]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


GRAPH = ("--kg", "kg.tsv", "--aliases", "aliases.tsv", "--types", "types.tsv")


def run(*options: str) -> list[Row]:
    """Link the texts of the current folder, and return the rows."""
    kg2instruct.main(["--text", "texts.jsonl", *GRAPH, "--output", "rows.jsonl", *options])
    return rows_of("rows.jsonl")


def triples(rows: list[Row]) -> list[tuple[str, str, str]]:
    return [(one["subject"], one["relation"], one["object"]) for row in rows for one in row["relation_list"]]


def test_relations_and_entities_of_the_demo_world_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short names, names of several entities, dates and numbers in both languages; 2% of relations are not stated."""
    make_world(str(tmp_path / "world"), people=300, documents_per_language=1, rows=1200, real_megabytes=0)
    monkeypatch.chdir(tmp_path / "world/graph")
    graph = ("--kg", "triples.tsv", *GRAPH[2:])
    kg2instruct.main(["--text", "texts.jsonl", *graph, "--schema", "schema.json", "--output", "../rows.jsonl"])
    found, gold = rows_of("../rows.jsonl"), rows_of("texts_annotated.jsonl")

    def scores(items: Callable[[Row], list[Any]]) -> tuple[float, float]:
        predicted, expected = (Counter(item for row in rows for item in items(row)) for rows in (found, gold))
        correct = (predicted & expected).total()
        return correct / predicted.total(), correct / expected.total()

    relations = scores(lambda row: [(row["sentence"], *triple) for triple in triples([row])])
    entities = scores(
        lambda row: [(row["sentence"], one["name"], one["type"], one["id"]) for one in row["entity_list"]]
    )
    assert relations[0] >= 0.95 and relations[1] >= 0.90
    assert entities[0] >= 0.95 and entities[1] >= 0.90
    ambiguous = GraphIndex("../rows.jsonl.index").seal["counts"]["ambiguous names"]
    assert ambiguous > 50


def test_rows_have_entities_relations_and_literals_with_spans(files: Path) -> None:
    rows = run()
    assert triples(rows) == [
        ("Ann Lee", "born in", "Oslo"), ("Ann Lee", "date of birth", "14 March 1879"),
        ("Oslo", "population", "709,000"), ("李安", "born in", "奥斯陆"),
        ("李安", "date of birth", "一八七九年三月十四日"), ("奥斯陆", "population", "70.9万"),
        ("Ann Lee", "motto", "Always on"),
    ]  # fmt: skip
    assert rows[0] == {
        "sentence": "Ann Lee was born in Oslo on 14 March 1879.",
        "entity_list": [
            {"name": "Ann Lee", "type": "person", "spans": [[0, 7]], "id": "Q1"},
            {"name": "Oslo", "type": "place", "spans": [[20, 24]], "id": "Q2"},
        ],
        "relation_list": [
            {
                "subject": "Ann Lee", "relation": "born in", "object": "Oslo", "subject_type": "person",
                "object_type": "place", "subject_spans": [[0, 7]], "object_spans": [[20, 24]], "subject_id": "Q1",
                "object_id": "Q2",
            },
            {
                "subject": "Ann Lee", "relation": "date of birth", "object": "14 March 1879", "subject_type": "person",
                "object_type": "date", "subject_spans": [[0, 7]], "object_spans": [[28, 41]], "subject_id": "Q1",
                "object_id": "1879-03-14",
            },
        ],
    }  # fmt: skip
    assert [entity["name"] for entity in rows[-1]["entity_list"]] == ["Ann Lee"]  # a text literal is no entity


def test_ie_build_makes_instructions_of_the_rows(files: Path) -> None:
    run()
    ie_build.main(input="rows.jsonl", output="examples.jsonl", task="re")
    answer = json.loads(rows_of("examples.jsonl")[0]["output"])
    assert answer["born in"] == [{"subject": "Ann Lee", "object": "Oslo"}]


@pytest.mark.parametrize(
    ("options", "sentences"),
    [
        ((), 5),
        (("--sentences", "all"), 6),
        (("--sentences", "related", "--largest_gap", "5"), 3),
        (("--sentences_per_row", "9"), 3),
        (("--sentences_per_row", "2", "--sentences", "all"), 4),
    ],
)
def test_options_decide_which_sentences_are_rows(files: Path, options: tuple[str, ...], sentences: int) -> None:
    rows = run(*options)
    assert len(rows) == sentences
    for row in rows:
        for item in row["entity_list"]:
            assert row["sentence"][slice(*item["spans"][0])] == item["name"]
        for item in row["relation_list"]:
            assert row["sentence"][slice(*item["object_spans"][0])] == item["object"]


def test_schema_keeps_allowed_triples_and_renames_relations(files: Path) -> None:
    rule = {"subject_type": "person", "predicate": "born in", "object_type": "place", "label": "birthplace"}
    Path("schema.json").write_text(json.dumps([rule, "place_population_Number", "place_motto_*"]))
    rows = run("--schema", "schema.json")
    assert {triple[1] for triple in triples(rows)} == {"birthplace", "population"}
    assert {one["object_type"] for row in rows for one in row["relation_list"]} == {"place", "Number"}


@pytest.mark.parametrize(
    ("relation", "sentence", "is_kept"),
    [
        ("/people/person/place_of_birth", "Ann Lee was born in Oslo.", True),
        ("/people/person/place_of_birth", "Ann Lee left Oslo.", False),
        ("出生地", "Ann Lee的出生地是Oslo。", True),
        ("出生地", "Ann Lee离开了Oslo。", False),
        ("/location/location/country", "We met in Ann Lee, Oslo.", True),
        ("/location/location/country", "Ann Lee and Oslo were there.", False),
        ("/location/location/country", "Oslo's second city Ann Lee was there.", True),
        ("met", "Ann Lee met Oslo.", True),
    ],
)
def test_evidence_words_reject_sentences_without_words_of_the_relation(
    files: Path, relation: str, sentence: str, is_kept: bool
) -> None:
    Path("kg.tsv").write_text(f"Q1\t{relation}\tQ2\n")
    write_texts("texts.jsonl", [sentence])
    assert len(triples(run("--evidence", "words"))) == is_kept
    assert len(triples(run())) == 1


def test_given_words_are_evidence(files: Path) -> None:
    Path("kg.tsv").write_text("Q1\tP19\tQ2\n")
    write_texts("texts.jsonl", ["Ann Lee left Oslo.", "Ann Lee, a child of Oslo."])
    Path("words.tsv").write_text("P19\tchild\n")
    rows = run("--evidence", "words", "--evidence_words", "words.tsv")
    assert [len(row["relation_list"]) for row in rows] == [0, 1]


def write_long_texts(megabytes: int) -> None:
    filler = "It rained all day. " * 1000
    write_texts("texts.jsonl", [f"{filler} {text}" for text in TEXTS] * (17 * megabytes))


def test_output_does_not_depend_on_tasks_and_workers(files: Path) -> None:
    write_long_texts(3)
    once = run("--task_megabytes", "100")
    assert run("--task_megabytes", "1", "--num_workers", "2") == once and len(once) == 5 * 17 * 3
    assert not list(Path().glob("*.partial"))


def test_three_and_five_columns_and_plain_names_are_read(files: Path) -> None:
    Path("kg.tsv").write_text("/m/1\tAnn Lee\tborn in\t/m/2\tOslo\n")
    kg2instruct.main(["--text", "texts.jsonl", "--kg", "kg.tsv", "--output", "rows.jsonl"])
    assert triples(rows_of("rows.jsonl")) == [("Ann Lee", "born in", "Oslo")]
    Path("kg.tsv").write_text("Ann Lee\tborn in\tOslo\n")
    Path("texts.txt").write_text("Ann Lee, Oslo\n\nNothing\nOslo\n")
    kg2instruct.main(["--text", "texts.txt", "--kg", "kg.tsv", "--output", "rows.jsonl"])
    assert [row["sentence"] for row in rows_of("rows.jsonl")] == ["Ann Lee, Oslo", "Oslo"]


def test_index_of_unchanged_files_is_kept_and_of_changed_files_replaced(files: Path) -> None:
    assert build_index("kg.tsv", "index", "aliases.tsv", "types.tsv")[1] is False
    made = Path("index/index.json").stat().st_mtime_ns
    assert build_index("kg.tsv", "index", "aliases.tsv", "types.tsv")[1] is True
    assert Path("index/index.json").stat().st_mtime_ns == made
    Path("types.tsv").write_text("Q1\thuman\n")
    seal, was_there = build_index("kg.tsv", "index", "aliases.tsv", "types.tsv")
    assert seal["types"] == ["human"] and not was_there


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("kg.tsv", "Q1\tborn in\tQ2\nQ1\tborn in\n", r"kg.tsv:2 has 2 columns, not 3 or 5"),
        ("kg.tsv", "Q1\t\tQ2\n", r"kg.tsv:1 has an empty column"),
        ("kg.tsv", "Q1\ta\tQ2\na\tb\tc\td\te\n", r"kg.tsv:2 has 5 columns, the first line 3"),
        ("aliases.tsv", "Q1\n", r"aliases.tsv:1 has 1 columns, not 2 or 3"),
        ("types.tsv", "Q1\tperson\tx\n", r"types.tsv:1 has 3 columns, not 2"),
        ("types.tsv", "Q1\t\udcff\n", r"types.tsv:1 is not UTF-8"),
        ("texts.jsonl", '{"text": "a"}\n{"body": "b"}\n', r"texts.jsonl:2 has no text under 'text' \(keys: body\)"),
        ("texts.jsonl", '{"text": "a"}\n{"text"\n', r"texts.jsonl:2 is not a JSON object on one line"),
        ("texts.jsonl", "", r"texts.jsonl: all files are empty"),
        ("schema.json", "[1]", r"schema.json, entry 1 is not an allowed triple"),
        ("schema.json", '["a_b_c"]', r"schema.json names no relation of the graph"),
    ],
)
def test_invalid_file_is_named_with_its_line_and_nothing_is_written(
    files: Path, file: str, content: str, message: str
) -> None:
    Path("schema.json").write_text('["*_born in_*"]')
    Path(file).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message):
        run("--schema", "schema.json")
    assert not Path("rows.jsonl").exists() and not list(Path().glob("*.partial"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--url", "localhost:1"], "is not the URL of a server"),
        (["--llm", "http://h", "--timeout", "0"], "--timeout 0 is out of range"),
        (["--model", "m"], "--model has no effect without --url"),
        (["--templates", "t.tsv"], "--templates has no effect without --nli"),
        (["--nli", "none"], "none has no config.json"),
        (["--evidence_words", "w.tsv"], "has no effect without --evidence words"),
        (["--executor", "slurm"], "needs --slurm_partition"),
        (["--sentences_per_row", "0"], "'0' is not a whole number of 1 or more"),
    ],
)
def test_options_without_effect_are_refused(files: Path, options: list[str], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(*options)


def test_folder_with_other_files_is_not_replaced_by_an_index(files: Path) -> None:
    Path("folder").mkdir()
    Path("folder/precious").write_text("data")
    with pytest.raises(ValueError, match="folder exists and is not an index"):
        kg2instruct.main(["index", *GRAPH, "--out", "folder"])
    assert Path("folder/precious").read_text() == "data"


SBATCH = r"""#!/bin/bash
# Replaces Slurm's sbatch: runs the script at once, one index of the array after another.
set -e
script=${!#}
[[ "$*" =~ RUN_OFFSET=([0-9]+) ]] && export RUN_OFFSET=${BASH_REMATCH[1]}
for index in $(seq 0 "$(grep -oP '(?<=--array=0-)\d+' "$script")"); do
    SLURM_ARRAY_TASK_ID=$index SLURM_JOB_ID=1 SLURM_NODELIST=node1 bash "$script" >> jobs.log 2>&1
done
echo "Submitted batch job 1"
"""


@pytest.mark.integration
def test_slurm_jobs_give_the_local_result(files: Path, run_script: RunScript) -> None:
    write_long_texts(1)
    local = run("--task_megabytes", "1")
    Path("bin").mkdir()
    for name, text in {"sbatch": SBATCH, "scontrol": "#!/bin/bash\necho node1\n", "squeue": "#!/bin/bash\n"}.items():
        Path("bin", name).write_text(text)
        Path("bin", name).chmod(stat.S_IRWXU)
    options = (
        "--index",
        "rows.jsonl.index",
        "--text",
        "texts.jsonl",
        "--output",
        "slurm.jsonl",
        "--task_megabytes",
        "1",
    )
    slurm = ("--executor", "slurm", "--slurm_partition", "cpu")
    for _ in range(2):  # a repeated command begins anew once the jobs have ended
        Path("slurm.jsonl").unlink(missing_ok=True)
        done = run_script(
            "finetune/kg2instruct.py", "link", *options, *slurm, cwd=files,
            env={"PATH": f"{files / 'bin'}:{os.environ['PATH']}"},
        )  # fmt: skip
        assert "submitted; slurm.jsonl is complete when the last job, kg-join, has ended" in str(done)
        assert rows_of("slurm.jsonl") == local


def test_unusable_options_are_refused_before_the_graph_is_indexed(tmp_path: Path, run_script: RunScript) -> None:
    graph, text = tmp_path / "kg.tsv", tmp_path / "text.jsonl"
    graph.write_text("Ann\tknows\tBob\n", encoding="utf-8")
    text.write_text('{"text": "Ann met Bob."}\n', encoding="utf-8")
    for output, options, message in (
        (text, (), "is an input file; give --output another name"),
        (graph, (), "is an input file; give --output another name"),
        (tmp_path / "rows.jsonl", ("--model", "m"), "--model has no effect without --url"),
    ):
        arguments = ("--kg", graph, "--text", text, "--output", output, *options)
        done = run_script("finetune/kg2instruct.py", *arguments, status=2)
        assert message in done.stderr
    arguments = ("--format", "brat", "--input", text, "--out", tmp_path / "brat", "--base", "http://x/")
    done = run_script("finetune/kg2instruct.py", "export", *arguments, status=2)
    assert "--base has no effect on --format brat" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"kg.tsv", "text.jsonl"}
