"""finetune/ie_build.py: published and generated annotations, wording, counts, and invalid inputs."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import ie_build
import pytest
from annotation_builds import ANN, LI_MING, TYPES, build_rows, extraction, read, write_json
from conftest import RunScript
from demo_pages import extraction_prompts
from demo_world import world_builder
from extraction.extraction_form import prompts_for_types
from extraction.extraction_schema import check_schema
from extraction_metrics.answer_items import parse_answer
from extraction_metrics.item_kinds import AnswerItem
from instruction_data.default_wordings import PROSE
from text_language.language_detection import language_of


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "world"
    world_builder.make_world(
        str(folder), people=60, documents_per_language=5, rows=400, heldout_rows=40, real_megabytes=0.001, seed=3
    )
    return folder


@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_hold_all_published_annotations(tmp_path: Path, shared_data: Path, split: str) -> None:
    source = shared_data / "crossner" / "ai"
    target = tmp_path / "rows.jsonl"
    ie_build.main(str(source / f"{split}.json"), str(target), schema=str(source / "class.json"))
    classes = json.loads((source / "class.json").read_text())
    annotated = json.loads((source / f"{split}.json").read_text())
    rows = read(target)
    assert [row["input"] for row in rows] == [entry["sentence"] for entry in annotated]
    assert {row["instruction"] for row in rows} == {PROSE["ner"]["en"].replace("{schema}", ", ".join(classes))}
    for row, entry in zip(rows, annotated, strict=True):
        assert row.keys() == {"task", "instruction", "input", "output", "gold"}
        gold = [(item["type"], item["name"]) for item in row["gold"]["entities"]]
        assert sorted(gold) == sorted({(e["type"], e["name"]) for e in entry["entity_list"]})
        assert list(json.loads(row["output"])) == classes
        assert parse_answer(row["output"]) == Counter(
            {AnswerItem("entity", (e["type"], e["name"])) for e in entry["entity_list"]}
        )


@pytest.mark.parametrize(("task", "kind"), [("ner", "entity"), ("re", "triple")])
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_demo_examples_are_built_from_their_annotations(
    tmp_path: Path, world: Path, task: Literal["ner", "re"], kind: str, split: str
) -> None:
    target = tmp_path / "rows.jsonl"
    ie_build.main(
        str(world / f"{split}_annotated.jsonl"), str(target), schema=str(world / "types.json"), task=task,
        wording=str(world / "extraction.json"),
    )  # fmt: skip
    wordings = {
        one["instruction"] for one in json.loads((world / "extraction.json").read_text())["tasks"][task].values()
    }
    built, theirs = read(target), read(world / f"{split}.jsonl")
    assert [row["input"] for row in built] == [row["input"] for row in theirs]
    pairs = [pair for pair in zip(built, theirs, strict=True) if pair[1]["instruction"] in wordings]
    assert len(pairs) >= 8
    for ours, row in pairs:
        assert {key: ours[key] for key in ("instruction", "input", "output")} == row
        assert {item.kind for item in parse_answer(row["output"]) or ()} == {kind}
    languages = extraction(tmp_path)[task]
    assert {entry["answer"]["absent"] for entry in languages.values()} == {"left out"}


@pytest.mark.parametrize("task", ["ner", "re"])
def test_demos_ask_a_tuned_model_with_the_wording_of_its_examples(tmp_path: Path, task: str) -> None:
    rows = build_rows(tmp_path, ANN, LI_MING, types=TYPES, task=task)
    kept = {"tasks": extraction(tmp_path)}
    kinds = TYPES["entity" if task == "ner" else "relation"]
    for row, language in zip(rows, ("en", "zh"), strict=True):
        instruction = extraction_prompts.extraction_instruction(task, kinds[language], language_of(row["input"]), kept)
        assert instruction == row["instruction"]


def test_answer_lists_every_type_in_the_requested_order(tmp_path: Path) -> None:
    english, chinese = build_rows(tmp_path, ANN, LI_MING, types=TYPES)
    assert english["output"] == '{"place": ["Oslo"], "person": ["Ann Lee"], "work": []}'
    assert "place, person, work" in english["instruction"]
    assert chinese["output"] == '{"人物": ["李明"], "作品": [], "地点": ["北京"]}'
    assert "人物、作品、地点" in chinese["instruction"]


def test_relation_answer_lists_subjects_and_objects(tmp_path: Path) -> None:
    english, chinese = build_rows(tmp_path, ANN, LI_MING, types=TYPES, task="re")
    assert english["output"] == '{"born in": [{"subject": "Ann Lee", "object": "Oslo"}]}'
    assert chinese["output"] == '{"出生地": [{"subject": "李明", "object": "北京"}], "任职": []}'


def test_default_types_are_the_annotated_types(tmp_path: Path) -> None:
    english, chinese = build_rows(tmp_path, ANN, LI_MING)
    assert "person, place" in english["instruction"]
    assert "人物、地点" in chinese["instruction"]


def test_json_list_and_jsonl_are_distinguished_by_content(tmp_path: Path) -> None:
    rows = build_rows(tmp_path, ANN, LI_MING)
    listed = write_json(tmp_path / "listed.jsonl", [ANN, LI_MING], lines=False)
    ie_build.main(str(listed), str(tmp_path / "same.jsonl"))
    assert read(tmp_path / "same.jsonl") == rows


def test_name_in_brackets_does_not_change_the_language_of_a_sentence(tmp_path: Path) -> None:
    mixed = ANN | {"sentence": "Ann Lee (安李) was born in Oslo."}
    assert "entities" in build_rows(tmp_path / "auto", mixed)[0]["instruction"]
    assert "实体" in build_rows(tmp_path / "zh", mixed, language="zh")[0]["instruction"]


def test_braces_and_percent_signs_in_data_stay_text(tmp_path: Path) -> None:
    names = ["{0}", "%s", "{schema}"]
    odd = {"sentence": "{x} and {0} at %d\u2028.", "entity_list": [{"name": "{x}", "type": name} for name in names]}
    (row,) = build_rows(tmp_path, odd, types=names)
    assert "{0}, %s, {schema}" in row["instruction"]
    assert row["input"] == odd["sentence"]
    assert json.loads(row["output"]) == {name: ["{x}"] for name in names}


def test_dropped_items_are_counted_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [("Ann Lee", "person"), ("Ann Lee", "person"), ("Ann Lee", "work"), ("Ann", "else"), ("Bo", "person")]
    sentence = {"sentence": "Ann Lee came.", "entity_list": [{"name": name, "type": kind} for name, kind in found]}
    none = {"sentence": "Nobody came.", "entity_list": []}
    rows = build_rows(tmp_path, sentence, none, LI_MING | {"entity_list": []}, types=["person", "work"])
    assert [json.loads(row["output"]) for row in rows] == [
        {"person": ["Ann Lee"], "work": ["Ann Lee"]}, {"person": [], "work": []}, {"person": [], "work": []},
    ]  # fmt: skip
    printed = capsys.readouterr()
    assert printed.out.splitlines()[:3] == [
        f"{tmp_path}/rows.jsonl: 3 examples of the task ner, 66.7% with an empty answer",
        "texts: en 2 (types: 2), zh 1 (types: 2), 2 of them without any item",
        "items: 2 kept, 1 repeated in one text, 1 not in the text as annotated, 1 not in the schema (else 1)",
    ]
    lines = [
        f"{tmp_path}/annotated.jsonl:1 entity 'Bo' is not in the text",
        f"{tmp_path}/annotated.jsonl:1 entity 'Ann' of the type 'else' has a type that is not in the schema",
    ]
    assert printed.err.splitlines() == [f"notice: {line}" for line in lines]
    assert "\n".join(["~~~~text", *lines, "~~~~"]) in (tmp_path / "rows.card.md").read_text(encoding="utf-8")


def test_strict_stops_at_items_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = {"sentence": "Ann Lee came.", "entity_list": [{"name": f"Bo {n}", "type": "person"} for n in range(25)]}
    with pytest.raises(
        ValueError, match="25 items cannot be used: 25 not in the text as annotated, 0 not in the schema;"
    ):
        build_rows(tmp_path, ANN, named, strict=True)
    assert len(capsys.readouterr().err.splitlines()) == 21
    assert [file.name for file in tmp_path.iterdir()] == ["annotated.jsonl"]


def test_tasks_and_languages_are_added_to_the_extraction_file(tmp_path: Path) -> None:
    write_json(
        tmp_path / "extraction.json", {"note": "mine", "tasks": {"ee": {"en": {"instruction": "Find {schema}."}}}}
    )
    build_rows(tmp_path, ANN, types=TYPES)
    build_rows(tmp_path, ANN, LI_MING, types=TYPES)
    build_rows(tmp_path, LI_MING, types=TYPES, task="re")
    tasks = extraction(tmp_path)
    assert {task: sorted(languages) for task, languages in tasks.items()} == {
        "ee": ["en"],
        "ner": ["en", "zh"],
        "re": ["zh"],
    }
    assert json.loads((tmp_path / "extraction.json").read_text())["note"] == "mine"
    assert tasks["ner"]["en"] == {
        "instruction": PROSE["ner"]["en"],
        "answer": {"shape": {"<type>": ["<name>"]}, "absent": "empty list"},
        "text_characters": len(ANN["sentence"]),
    }
    shape = tasks["re"]["zh"]["answer"]["shape"]
    assert shape == {"<relation>": [{"subject": "<name>", "object": "<name>"}]}


def test_text_characters_is_the_median_length_of_the_first_build(tmp_path: Path) -> None:
    longer, longest = (ANN | {"sentence": ANN["sentence"] + " Yes." * count} for count in (3, 50))
    build_rows(tmp_path, ANN, longer, longest, LI_MING, types=TYPES)
    assert extraction(tmp_path)["ner"]["en"]["text_characters"] == len(longer["sentence"])
    build_rows(tmp_path, ANN, types=TYPES)
    assert extraction(tmp_path)["ner"]["en"]["text_characters"] == len(longer["sentence"])


def test_other_wording_in_extraction_json_is_an_error_and_is_kept(tmp_path: Path) -> None:
    other = write_json(tmp_path / "extraction.json", {"tasks": {"ner": {"en": {"instruction": "Name the {schema}."}}}})
    before = other.read_bytes()
    with pytest.raises(ValueError, match=r"extraction.json has another instruction for ner in en.*--wording"):
        build_rows(tmp_path, ANN)
    assert other.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["annotated.jsonl", "extraction.json"]
    (row,) = build_rows(tmp_path, ANN, wording=other)
    assert row["instruction"] == "Name the person, place."
    assert extraction(tmp_path)["ner"]["en"]["answer"]["absent"] == "empty list"


def test_answer_in_extraction_json_that_contradicts_its_instruction_is_an_error_with_the_right_answer(
    tmp_path: Path,
) -> None:
    entry: dict[str, Any] = {"instruction": PROSE["ner"]["en"], "answer": {"shape": {}, "absent": "left out"}}
    file = write_json(tmp_path / "extraction.json", {"tasks": {"ner": {"en": entry}}})
    with pytest.raises(ValueError, match='has an "answer" for ner in en that does not fit its instruction') as raised:
        build_rows(tmp_path, ANN)
    entry["answer"] = json.loads(str(raised.value).partition("set it to ")[2])
    file.write_text(json.dumps({"tasks": {"ner": {"en": entry}}}))
    assert len(build_rows(tmp_path, ANN)) == 1


def test_failed_write_leaves_neither_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writing = Path.write_text

    def full(path: Path, text: str, **options: Any) -> int:
        if path.name.startswith("extraction.json"):
            raise OSError("no space left on device")
        return writing(path, text, **options)

    source = write_json(tmp_path / "in.jsonl", ANN)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        ie_build.main(str(source), str(tmp_path / "rows.jsonl"))
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]


NER = '{"sentence": "Ann came.", "entity_list": [{"name": "Ann", "type": "person"}]}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no rows"),
        ("[]", "holds no rows"),
        (NER + "{broken", r"in.jsonl:2 is not JSON"),
        (f"[\n{NER},\n{{broken}}]", r"in.jsonl:4, row 2 is not JSON"),
        ("[" * 100_000, "nested too deep"),
        (NER + "\n3\n", "in.jsonl:3 is not a JSON object"),
        ("[{}]", r"in.jsonl:1, row 1 is not recognised as a row of annotations \(keys: none\)"),
        ('{"sentence": "Ann"}', r"in.jsonl:1 has no list under 'entity_list'"),
        (NER.replace("name", "text"), "no text under 'name'"),
        (NER.replace('"person"', "7"), "no text under 'type'"),
        (NER.replace("came", r"\ud83d"), "has half a surrogate pair"),
    ],
)
def test_error_for_invalid_annotation_names_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "in.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        ie_build.main(str(tmp_path / "in.jsonl"), str(tmp_path / "rows.jsonl"))
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]


def test_error_for_annotations_that_are_not_utf8_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(json.dumps(LI_MING, ensure_ascii=False).encode("gb18030"))
    with pytest.raises(ValueError, match="is not UTF-8"):
        ie_build.main(str(tmp_path / "in.jsonl"), str(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ("person", "types.json has no list of names; --schema takes a file such as"),
        ([1], "types.json has the entry 1, which does not fit; --schema takes a file such as"),
        ([], "no types are known for the sentences in en"),
        (["person", "city, state"], "the type 'city, state' contains a comma, which separates the types"),
        (["person", "省、市"], "the type '省、市' contains a comma"),
        ({"relation": {"en": ["born in"]}}, 'no schemas by language under "entity"; --schema takes'),
        ({"entity": {"en": "person"}}, 'types.json, "entity", "en", has no list of names'),
        ({"entity": {"zh": ["人物"]}}, "no types are known for the sentences in en"),
        (["人物"], "no item has a requested type .*; the annotated types with their counts are person 1, place 1;"),
    ],
)
def test_error_for_invalid_types_names_the_file(tmp_path: Path, types: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_rows(tmp_path, ANN, types=types)
    assert not (tmp_path / "rows.jsonl").exists()


def test_error_for_unknown_types_names_the_sentence_and_the_first_unusable_item(tmp_path: Path) -> None:
    absent = [{"name": name, "type": "place"} for name in ("Bergen", "Rome")]
    source = write_json(tmp_path / "in.jsonl", {"sentence": "Ann came.", "entity_list": absent})
    fact = r"in.jsonl:1: no types are known .*, which have no usable entities; "
    message = fact + r".* cannot be used: .*in.jsonl:1 entity 'Bergen' is not in the text$"
    with pytest.raises(ValueError, match=message):
        ie_build.main(str(source), str(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize(
    ("wording", "message"),
    [
        ([], "is not an extraction.json of the form"),
        ({"tasks": {"ner": {"en": "Extract."}}}, "is not an extraction.json"),
        ({"tasks": {"ner": {"zh": {"instruction": "抽取实体。"}}}}, "no instruction for ner in en"),
        (
            {"tasks": {"ner": {"en": {"instruction": "{schema}?", "answer": {"shape": {}, "absent": "left out"}}}}},
            'has an "answer" for ner in en that does not fit its instruction',
        ),
    ],
)
def test_error_for_invalid_wording_names_the_file(tmp_path: Path, wording: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_rows(tmp_path, ANN, wording=write_json(tmp_path / "wording.json", wording))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input": "gone.json"}, "gone.json does not exist; give a .json"),
        ({"input": ","}, "--input names no file"),
        ({"schema": "gone.json"}, "gone.json does not exist; --schema takes"),
        ({"descriptions": "gone.json"}, "gone.json does not exist; --descriptions takes"),
        ({"hard_negatives": "gone.json", "schema_batch": 2}, "gone.json does not exist; --hard_negatives takes auto"),
        ({"hard_negatives": "auto"}, "--hard_negatives needs batches.*give --schema_batch or --style schema_json"),
        ({"hard_negatives": "auto", "split": "test"}, "--hard_negatives is for training"),
        ({"negative_batches": -1, "schema_batch": 1}, "--negative_batches -1 is out of range"),
        ({"schema_batch": -1}, "--schema_batch -1 is out of range"),
        ({"task": "kg"}, "--task kg has no instructions in prose; give --style schema_json"),
        ({"task": "kg", "style": "schema_json", "requests": "x"}, "--requests is for /extract, which has the tasks"),
        ({"format": "word"}, "--format word is not known; give auto or one of json, "),
        ({"wording": "gone.json"}, "gone.json does not exist; --wording takes"),
        ({"output": "no/folder/rows.jsonl"}, "no/folder does not exist; create the folder"),
        ({"output": "in.jsonl"}, "in.jsonl is an input file; give --output another name"),
        ({"output": "extraction.json"}, "is the file that records the wording; give --output another name"),
        ({"requests": "extraction.json"}, "give --requests another name"),
        ({"requests": "rows.jsonl"}, "--output and --requests are both rows.jsonl; give --requests another name"),
        ({"requests": "in.jsonl"}, "in.jsonl is an input file; give --requests another name"),
        ({"requests": "no/folder/x.jsonl"}, "no/folder does not exist; create the folder of --requests"),
        ({"format": "conll"}, "in.jsonl:1 has the invalid tag"),
        ({"order_augmentation": 0}, "--order_augmentation 0 is out of range; give 1 to 16"),
        ({"order_augmentation": 17}, "--order_augmentation 17 is out of range; give 1 to 16"),
    ],
)
def test_error_for_invalid_option_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "in.jsonl", ANN)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ie_build.main(**{"input": "in.jsonl", "output": "rows.jsonl", **changed})
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("task", ["ner", "re"])
@pytest.mark.parametrize("orders", [1, 2])
def test_requests_are_accepted_by_the_server_and_ask_for_the_examples(
    tmp_path: Path, task: Literal["ner", "re"], orders: int
) -> None:
    rows = build_rows(
        tmp_path, ANN, LI_MING, types=TYPES, task=task, requests=str(tmp_path / "requests.jsonl"),
        order_augmentation=orders,
    )  # fmt: skip
    requests = read(tmp_path / "requests.jsonl")
    assert [request["language"] for request in requests] == ["en"] * orders + ["zh"] * orders
    for row, request in zip(rows, requests, strict=True):
        assert request.pop("output") == row["output"]
        assert request.pop("order", None) == row.get("order")
        [prompt] = prompts_for_types(
            task, check_schema(task, request["schema"]), request["text"], request["language"],
            {"tasks": extraction(tmp_path)},
        )  # fmt: skip
        assert (prompt.instruction, request["text"]) == (row["instruction"], row["input"])
        assert request.keys() == {"task", "schema", "text", "language"}
        assert request["task"] == task


def test_requests_are_not_written_without_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opening = Path.open

    def full(path: Path, mode: str = "r", **options: Any) -> Any:
        if path.name.startswith("requests") and mode == "w":
            raise OSError("no space left on device")
        return opening(path, mode, **options)

    source = write_json(tmp_path / "in.jsonl", ANN)
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="no space"):
        ie_build.main(str(source), str(tmp_path / "rows.jsonl"), requests=str(tmp_path / "requests.jsonl"))
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]


def test_invalid_input_is_an_error_of_one_line(tmp_path: Path, run_script: RunScript) -> None:
    source = write_json(tmp_path / "in.jsonl", ANN, {"sentence": "Bo came.", "relation_list": []})
    done = run_script("finetune/ie_build.py", "--input", source, "--output", tmp_path / "rows.jsonl", status=2)
    assert done.stderr == (
        f"error: {source}:2 has no annotated entities, which --task ner needs; give other --input, or write an empty "
        "list if the text has none\n"
    )
    done = run_script("finetune/ie_build.py", "--input", source, "--output", "x", "--task", "x", status=2)
    assert done.stderr == "error: --task takes one of ner, re, spo, ee, eet, eea, kg, not 'x'\n"
