"""extraction_building/: schemas, descriptions, places of items, and the data card."""

import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import ie_build
import pytest
from conftest import RunScript
from extraction.extraction_form import prompts_for_types
from extraction.extraction_schema import check_schema
from extraction_building.data_card import histogram, percentile
from extraction_building.schema_items import read_schema

MERGER: dict[str, Any] = {
    "sentence": "Acme bought Bolt and Cog in May, after it fired Ann Lee.",
    "relation_list": [
        {"subject": "Acme", "relation": "owns", "object": name, "subject_type": "firm", "object_type": "firm"}
        for name in ("Bolt", "Cog")
    ],
    "event_list": [
        {"type": "purchase", "trigger": "bought", "trigger_spans": [[5, 11]], "arguments": [
            {"role": "buyer", "name": "Acme", "spans": [[0, 4]]}, {"role": "object", "name": "Bolt"},
            {"role": "object", "name": "Cog"},
        ]},
        {"type": "dismissal", "trigger": "fired", "arguments": []},
    ],
}  # fmt: skip
QUIET: dict[str, Any] = {"sentence": "Nothing happened.", "relation_list": [], "event_list": []}
EVENTS = {"dismissal": ["company", "person"], "purchase": ["buyer", "seller", "object"], "strike": ["company"]}
RELATIONS = [["firm", "owns", "firm"], ["person", "owns", "firm"], ["person", "leads", "firm"]]
TYPED = [{"subject_type": s, "predicate": p, "object_type": o} for s, p, o in RELATIONS]
FIRM = {"firm": ["owns", "seat"], "person": ["owns", "age"]}


def build(folder: Path, *sentences: Any, schema: Any, **options: Any) -> list[Any]:
    """Return the rows of a build of these sentences and this schema in the style schema_json."""
    folder.mkdir(exist_ok=True)
    (folder / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in sentences))
    (folder / "schema.json").write_text(json.dumps(schema))
    ie_build.main(
        str(folder / "in.jsonl"), str(folder / "rows.jsonl"), str(folder / "schema.json"),
        **{"style": "schema_json", **options},
    )  # fmt: skip
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]


def asked(row: Any) -> Any:
    return json.loads(row["instruction"])["schema"]


@pytest.mark.parametrize("task", ["ner", "re", "eet"])
def test_schemas_of_names_have_three_forms(tmp_path: Path, task: str) -> None:
    kind = {"ner": "entity", "re": "relation", "eet": "event"}[task]
    line = json.dumps(["a", "b", "a"])
    lines = {"ner": [line, "[]", "{}"], "re": ["[]", line, "{}"], "eet": [line, "[]", "{}"]}[task]
    for text in (line, f'{{"{kind}": {{"en": {line}}}}}', "\n".join(lines)):
        (tmp_path / "schema.json").write_text(text)
        assert read_schema(str(tmp_path / "schema.json"), task)["en"].labels == ("a", "b")


def test_schemas_with_parts_have_three_forms(tmp_path: Path) -> None:
    for task, kind, content, labels in (
        ("spo", "relation", TYPED, ("firm_owns_firm", "person_owns_firm", "person_leads_firm")),
        ("spo", "relation", ["firm_owns_firm"], ("firm_owns_firm",)),
        ("ee", "event", EVENTS, tuple(EVENTS)), ("eea", "event", EVENTS, tuple(EVENTS)),
        ("eet", "event", EVENTS, tuple(EVENTS)), ("kg", "attribute", FIRM, tuple(FIRM)),
    ):  # fmt: skip
        first = content if isinstance(content, list) else list(content)
        third = content if isinstance(content, dict) else {}
        texts = [json.dumps(content), json.dumps({kind: {"en": content}})]
        for text in (*texts, "\n".join(map(json.dumps, (first, ["x"], third)))):
            (tmp_path / "schema.json").write_text(text)
            assert read_schema(str(tmp_path / "schema.json"), task)["en"].labels == labels


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [("spo", '["a_b"]', "has the entry 'a_b', which does not fit"), ("kg", '{"a": "b"}', "which does not fit"),
     ("ee", '["a"]', "has no object of names and lists"), ("ner", "[] []", "has 2 JSON values"), ("ner", "", "has 0 "),
     ("ner", "[", "is not JSON"), ("ner", '["\\ud800"]', "half a surrogate pair")],
)  # fmt: skip
def test_error_for_invalid_schema_names_the_file(tmp_path: Path, task: str, text: str, message: str) -> None:
    (tmp_path / "schema.json").write_text(text)
    with pytest.raises(ValueError, match=f"schema.json.*{message}"):
        read_schema(str(tmp_path / "schema.json"), task)


def test_events_without_arguments_are_kept(tmp_path: Path) -> None:
    roles = {"buyer": "Acme", "seller": "NAN", "object": ["Bolt", "Cog"]}
    (ee, quiet) = build(tmp_path, MERGER, QUIET, schema=EVENTS, task="ee")
    assert json.loads(ee["output"]) == {
        "dismissal": [{"trigger": "fired", "arguments": {}}],
        "purchase": [{"trigger": "bought", "arguments": roles}],
        "strike": [],
    }
    assert json.loads(quiet["output"]) == {"dismissal": [], "purchase": [], "strike": []}
    assert asked(ee)[0] == {"event_type": "dismissal", "trigger": True, "arguments": ["company", "person"]}
    (eea,) = build(tmp_path / "eea", MERGER, QUIET, schema=EVENTS, task="eea")
    assert json.loads(eea["output"]) == {"dismissal": [{}], "purchase": [roles]}
    assert asked(eea)[1] == {"event_type": "purchase", "trigger": ["bought"], "arguments": EVENTS["purchase"]}
    assert "| texts without a row | 1 |" in (tmp_path / "eea/rows.card.md").read_text()
    (eet, _) = build(tmp_path / "eet", MERGER, QUIET, schema=EVENTS, task="eet")
    assert json.loads(eet["output"]) == {"dismissal": ["fired"], "purchase": ["bought"], "strike": []}


def test_items_that_fit_no_or_several_entries_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    untyped = {
        "sentence": "Acme owns Bolt.",
        "relation_list": [{"subject": "Acme", "relation": "owns", "object": "Bolt"}],
    }
    build(tmp_path, MERGER, untyped, schema=TYPED, task="spo")
    assert "in.jsonl:2 relation 'owns' ('Acme', 'Bolt') fits several entries of the schema" in capsys.readouterr().err
    typed = untyped | {"entity_list": [{"name": "Acme", "type": "firm"}]}
    kg = build(tmp_path, MERGER, typed, untyped, schema=FIRM, task="kg")
    assert "in.jsonl:3 relation 'owns' ('Acme', 'Bolt') fits several entries" in capsys.readouterr().err
    assert [json.loads(row["output"]) for row in kg] == [
        {"firm": {"Acme": {"owns": ["Bolt", "Cog"]}}}, {}, {"firm": {"Acme": {"owns": "Bolt"}}}, {}, {}, {},
    ]  # fmt: skip
    other = [{"type": "purchase", "arguments": [{"role": "price", "name": "May"}]}, {"type": "war", "arguments": []}]
    build(tmp_path, MERGER | {"event_list": other}, schema=EVENTS, task="ee")
    error = capsys.readouterr().err
    assert "event 'purchase' has the argument 'May' with the role 'price', which is not in the schema" in error
    assert "event 'war' has a type that is not in the schema" in error
    build(tmp_path / "eet", MERGER | {"event_list": other[:1]}, MERGER, schema=EVENTS, task="eet")
    assert "event 'purchase' has no trigger, which the task eet asks for" in capsys.readouterr().err


def test_relations_with_the_same_name_share_an_answer_key(tmp_path: Path) -> None:
    (row,) = build(tmp_path, MERGER, schema=TYPED, task="spo")
    owned = [{"subject": "Acme", "object": "Bolt"}, {"subject": "Acme", "object": "Cog"}]
    assert json.loads(row["output"]) == {"owns": owned, "leads": []}
    assert asked(row)[0] == {"subject_type": "firm", "predicate": "owns", "object_type": "firm"}


@pytest.mark.parametrize("style", ["prose", "schema_json"])
@pytest.mark.parametrize(("task", "schema"), [("spo", TYPED), ("ee", EVENTS), ("re", ["owns", "leads", "sold"])])
def test_server_asks_the_questions_of_the_rows(tmp_path: Path, task: Any, schema: Any, style: str) -> None:
    """With descriptions and batches of two types; a row is also a request to /extract, as ie_build.py writes it."""
    (tmp_path / "descriptions.json").write_text('{"owns": "Has bought.", "purchase": "A firm buys another."}')
    rows = build(
        tmp_path, MERGER, QUIET, schema=schema, task=task, style=style, requests=str(tmp_path / "requests.jsonl"),
        split="test", schema_batch=2, descriptions=str(tmp_path / "descriptions.json"),
    )  # fmt: skip
    extraction = json.loads((tmp_path / "extraction.json").read_text())
    for row, line in zip(rows, (tmp_path / "requests.jsonl").read_text().splitlines(), strict=True):
        request = json.loads(line)
        types = check_schema(task, request["schema"])
        [prompt] = prompts_for_types(task, types, request["text"], "en", extraction)
        assert prompt.question(request["text"]) == (row["instruction"], row.get("input", ""))
        assert request["output"] == row["output"]
    if task == "ee" and style == "prose":
        assert "dismissal (company, person); purchase" in rows[0]["instruction"]
        (purchase,) = json.loads(rows[0]["output"])["purchase"]
        assert purchase == {"trigger": "bought", "arguments": {"buyer": "Acme", "object": ["Bolt", "Cog"]}}


def test_descriptions_are_in_the_instructions_of_both_styles(tmp_path: Path) -> None:
    given = {
        "purchase": {"description": "A firm buys another.", "examples": ["bought", "took over"]},
        "strike": "No work.",
    }
    (tmp_path / "descriptions.json").write_text(json.dumps(given))
    options: dict[str, Any] = {"descriptions": str(tmp_path / "descriptions.json"), "schema": EVENTS}
    text = "A firm buys another. Examples: bought, took over."
    (row,) = build(tmp_path / "eet", MERGER, task="eet", **options)
    assert asked(row) == {"dismissal": "", "purchase": text, "strike": "No work."}
    (row,) = build(tmp_path / "ee", MERGER, task="ee", **options)
    assert [entry.get("description") for entry in asked(row)] == [None, text, "No work."]
    (row,) = build(tmp_path / "prose", MERGER, task="eet", style="prose", **options)
    assert row["instruction"].endswith(f"[] for none.\npurchase: {text}\nstrike: No work.")
    with pytest.raises(ValueError, match="--descriptions has no type of the schema in en"):
        build(tmp_path / "re", MERGER, schema=["owns"], task="re", descriptions=options["descriptions"])
    entry = json.loads((tmp_path / "ee/extraction.json").read_text())["tasks"]["ee"]["en"]
    assert entry["descriptions"] == {"purchase": text, "strike": "No work."}


def test_style_and_batch_size_are_in_extraction_json_and_must_not_change(tmp_path: Path) -> None:
    build(tmp_path, MERGER, schema=EVENTS, task="ee", schema_batch=2)
    entry = json.loads((tmp_path / "extraction.json").read_text())["tasks"]["ee"]["en"]
    assert (entry["style"], entry["schema_batch"]) == ("schema_json", 2)
    with pytest.raises(ValueError, match=r'has another "schema_batch" for ee in en.*give the same --schema_batch'):
        build(tmp_path, MERGER, schema=EVENTS, task="ee")
    with pytest.raises(ValueError, match="has the wording of ee in en for --style schema_json; give this style"):
        build(
            tmp_path / "b", MERGER, schema=EVENTS, task="ee", style="prose", wording=str(tmp_path / "extraction.json")
        )


@pytest.mark.parametrize(
    ("key", "answer"),
    [("<subject_type>_<predicate>_<object_type>", ["firm_owns_firm", "person_leads_firm", "person_owns_firm"]),
     ("relation: <r>", ["relation: owns", "relation: leads"])],
)  # fmt: skip
def test_answers_have_the_shape_of_the_wording(tmp_path: Path, key: str, answer: list[str]) -> None:
    shape = {key: [{"tail": "<o>", "head": "<s>"}]}
    entry = {"instruction": "Extract.", "answer": {"shape": shape}}
    (tmp_path / "wording.json").write_text(json.dumps({"tasks": {"spo": {"en": entry}}}))
    (row,) = build(tmp_path, MERGER, schema=TYPED, task="spo", wording=str(tmp_path / "wording.json"))
    assert list(json.loads(row["output"])) == answer
    assert json.loads(row["output"])[answer[0]] == [{"head": "Acme", "tail": name} for name in ("Bolt", "Cog")]
    written = json.loads((tmp_path / "extraction.json").read_text())["tasks"]["spo"]["en"]
    assert written["answer"] == {"shape": shape, "absent": "empty list"}


@pytest.mark.parametrize(
    ("task", "shape"),
    [("spo", {"<subject_type>": [{"subject": "<a>", "object": "<b>"}]}), ("spo", {"<p>": ["<a>"]}), ("spo", []),
     ("spo", {"<p>": [{"subject": "<a>", "tail": "<b>"}]}), ("ee", {"<type>": ["<trigger>"]}), ("ee", {})],
)  # fmt: skip
def test_answer_shape_that_cannot_be_written_is_an_error(tmp_path: Path, task: str, shape: Any) -> None:
    tasks = {task: {"en": {"instruction": "Extract.", "answer": {"shape": shape}}}}
    (tmp_path / "wording.json").write_text(json.dumps({"tasks": tasks}))
    with pytest.raises(ValueError, match=f'has an "answer" for {task} in en that does not fit its instruction'):
        build(tmp_path, MERGER, schema=TYPED, task=task, wording=str(tmp_path / "wording.json"))


def test_each_order_asks_for_all_types_in_batches(tmp_path: Path) -> None:
    rows = build(
        tmp_path, MERGER, QUIET, schema=[f"t{n}" for n in range(8)] + ["owns"], task="re", order_augmentation=3
    )
    assert [row["order"] for row in rows] == [0, 0, 1, 1, 2, 2] * 2
    orders = [asked(rows[at]) + asked(rows[at + 1]) for at in range(0, 12, 2)]
    assert orders[:3] == orders[3:] and len({*map(tuple, orders)}) == 3
    assert all(sorted(order) == sorted(orders[0]) for order in orders)


def test_gold_items_have_the_places_of_real_annotations(tmp_path: Path, shared_data: Path) -> None:
    files: tuple[tuple[str, Any, str, Any], ...] = (
        ("real/relations/conll04.dev.txt", "re", "triples", "en"),
        ("real/events/fewfc_test.jsonl", "ee", "events", "zh"),
        ("real/ner/weibo.dev.conll", "ner", "entities", "zh"),
    )
    for name, task, kind, language in files:
        source, target = str(shared_data / name), str(tmp_path / "rows.jsonl")
        ie_build.main(source, target, task=task, style="schema_json", language=language)
        mentions = 0
        for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            text = json.loads(row["instruction"])["input"]
            for item in row["gold"][kind]:
                found = [item.get("subject"), item.get("object"), item.get("trigger"), *item.get("arguments", [])]
                for mention in filter(None, found if kind != "entities" else [item]):
                    mentions += 1
                    assert "".join(text[start:end] for start, end in mention["spans"]) == mention["name"]
        assert mentions > 300


def test_same_input_and_seed_give_the_same_bytes(tmp_path: Path, run_script: RunScript) -> None:
    relations = [{"subject": "Acme", "relation": f"r{n % 3}", "object": "Bolt"} for n in range(3)]
    sentences = [{"sentence": f"Acme bought Bolt {n}.", "relation_list": relations[n % 4 :]} for n in range(40)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in sentences))
    (tmp_path / "more.jsonl").write_text(json.dumps(MERGER) + "\n")
    (tmp_path / "schema.json").write_text(json.dumps([f"r{n}" for n in range(30)]))
    seen = []
    for hash_seed in (1, 2):
        (tmp_path / str(hash_seed)).mkdir()
        run_script(
            "finetune/ie_build.py", "--input", "in.jsonl,more.jsonl", "--schema", "schema.json", "--task", "re",
            "--style", "schema_json", "--hard_negatives", "auto", "--negative_batches", 2, "--order_augmentation", 2,
            "--output", f"{hash_seed}/rows.jsonl", cwd=tmp_path, env=os.environ | {"PYTHONHASHSEED": str(hash_seed)},
        )  # fmt: skip
        seen.append({file.name: file.read_bytes() for file in (tmp_path / str(hash_seed)).iterdir()})
    assert seen[0] == seen[1]
    assert sorted(seen[0]) == ["extraction.json", "rows.card.md", "rows.jsonl"]


def test_data_card_counts_the_rows_and_hashes_the_files(tmp_path: Path) -> None:
    rows = build(tmp_path, MERGER, QUIET, schema=TYPED, task="spo", schema_batch=1)
    card = (tmp_path / "rows.card.md").read_text()
    empty = sum(not any(json.loads(row["output"]).values()) for row in rows)
    assert len(rows) == 6
    for line in (
        "| task, style, split | spo, schema_json, train |", "| texts | 2 (en 2) |", "| texts without an item | 1 |",
        "| rows | 6 |", f"| rows with an empty answer | {empty} ({100 * empty / 6:.1f}%) |", "| items | 2 |",
        "| en | firm_owns_firm | 1 | 1 |", "| en | person_leads_firm | 0 | 2 |", "| schema_batch | 1 |",
        f"| text | en | 17 | 17 | 17 | 17 | 56 | 56 | {len(MERGER['sentence'])} |",
        f"| {tmp_path}/in.jsonl | {hashlib.sha256((tmp_path / 'in.jsonl').read_bytes()).hexdigest()} |",
        "0 not in the text as annotated, 0 not in the schema.", "| seed | 0 |",
    ):  # fmt: skip
        assert line in card.splitlines()


def test_percentiles_and_histograms_count_all_lengths() -> None:
    lengths = Counter({3: 1, 17: 5, 40: 2, 0: 1})
    assert [percentile(lengths, percent) for percent in (5, 50, 75, 95)] == [0, 17, 17, 40]
    lines = histogram(lengths)
    assert [line.split()[:2] for line in lines] == [
        ["0-0", "1"], ["1-1", "0"], ["2-3", "1"], ["4-7", "0"], ["8-15", "0"], ["16-31", "5"], ["32-63", "2"],
    ]  # fmt: skip
    assert lines[5].endswith("#" * 40) and lines[0].endswith(" " + "#" * 8)


REGION = {"start": 0, "end": 3, "text": "Ann", "labels": ["person"]}
BLANK_ROWS: dict[str, tuple[Any, Any]] = {  # format -> a row with text, a blank row
    "json": (
        {"sentence": "Ann came.", "entity_list": [{"name": "Ann", "type": "person"}]},
        {"sentence": " \t", "entity_list": [{"name": "Bo", "type": "person"}]},
    ),
    "conll": ("Ann B-person\ncame O\n", "\u3000 B-person\n"),
    "iepile": (
        {"text": "Ann came.", "entity": [{"entity": "Ann", "entity_type": "person"}]},
        {"text": "", "entity": []},
    ),
    "doccano": ({"text": "Ann came.", "label": [[0, 3, "person"]]}, {"text": " ", "label": []}),
    "labelstudio": (
        {"data": {"text": "Ann came."}, "annotations": [{"result": [{"id": "a", "type": "labels", "value": REGION}]}]},
        {"data": {"text": ""}, "annotations": [{"result": []}]},
    ),
}


@pytest.mark.parametrize("form", BLANK_ROWS)
def test_blank_text_is_skipped_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    row, blank = (one if isinstance(one, str) else json.dumps(one) for one in BLANK_ROWS[form])
    given, output = tmp_path / "in.txt", str(tmp_path / "rows.jsonl")
    given.write_text(f"{row}\n{blank}\n{row}\n")
    ie_build.main(str(given), output, format=form)
    captured = capsys.readouterr()
    assert "2 examples of the task ner" in captured.out
    assert "1 not in the text as annotated" in captured.out
    assert captured.err.startswith("notice: ")
    assert captured.err.endswith("has a blank text and is skipped\n")
    with pytest.raises(ValueError, match="1 items cannot be used"):
        ie_build.main(str(given), output, format=form, strict=True)
    given.write_text(f"{blank}\n{blank}\n")
    with pytest.raises(ValueError, match=r"all texts of --input are blank; the first: .*in\.txt:1 has a blank text"):
        ie_build.main(str(given), output, format=form)


@pytest.mark.parametrize(("task", "keys"), [("spo", ["owns"]), ("kg", ["firm"])])
def test_default_types_of_triples_are_those_of_the_entities(tmp_path: Path, task: Any, keys: list[str]) -> None:
    relations = [{"subject": "Acme", "relation": "owns", "object": name} for name in ("Bolt", "Cog")]
    entities = [{"name": name, "type": "firm"} for name in ("Acme", "Bolt", "Cog")]
    sentence = {"sentence": MERGER["sentence"], "relation_list": relations, "entity_list": entities}
    given = tmp_path / "in.jsonl"
    given.write_text(json.dumps(sentence))
    ie_build.main(str(given), str(tmp_path / "rows.jsonl"), task=task, style="schema_json")
    (row,) = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert list(json.loads(row["output"])) == keys
