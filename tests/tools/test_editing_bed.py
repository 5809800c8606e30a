"""benchmarks/editing_bed.py and editing_world.py: facts, wordings, probes, and a model that knows the facts."""

import json
from pathlib import Path
from typing import Any

import pytest
from editing_world import RELATIONS, held_out_texts, make_edits, make_world, training_sentences
from knowledge_editing.edit_files import read_edits


def test_surnames_are_unique_and_half_of_the_facts_are_chinese() -> None:
    world = make_world(384, seed=0)
    subjects = {fact.subject for fact in [*world.facts, *world.bystanders]}
    surnames = {name.split()[1] if " " in name else name[0] for name in subjects}
    assert len(surnames) == len(subjects) == 64 + 8
    assert len(world.facts) == 384
    assert sum(fact.language == "zh" for fact in world.facts) == 192


def test_held_out_wordings_are_trained_with_other_people_only() -> None:
    world = make_world(384, seed=1)
    sentences = {text for _, text in training_sentences(world)}
    for fact in world.facts:
        assert len(fact.trained) == 4
        assert len(fact.held_out) == 2
        assert not {fact.sentence(each) for each in fact.held_out} & sentences
        assert all(each.startswith("{}") for each in (*fact.trained, *fact.held_out))
    trained = {(fact.relation, each) for fact in world.facts for each in fact.trained}
    assert {(fact.relation, each) for fact in world.facts for each in fact.held_out} <= trained


def test_texts_without_edits_name_no_edited_person() -> None:
    world = make_world(96, seed=2)
    subjects = {fact.subject for fact in world.facts}
    assert not any(subject in text for text in held_out_texts(world) for subject in subjects)


def test_edits_have_probes_of_every_kind_with_true_answers(tmp_path: Path) -> None:
    world = make_world(96, seed=3)
    rows = make_edits(world, seed=3)
    file = tmp_path / "edits.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    edits = read_edits(file)
    assert len(edits) == 96
    sentences = {text.rstrip(".。").replace(" ", "") for _, text in training_sentences(world)}
    for edit in edits:
        assert edit.target != edit.ground_truth
        assert (edit.question + str(edit.ground_truth)).replace(" ", "") in sentences
        assert len(edit.rephrasings) == 2
        kinds = [probe.kind for probe in edit.locality]
        assert [kinds.count(kind) for kind in ("neighbour", "same_subject", "other")] == [2, len(RELATIONS) - 1, 1]
        for probe in edit.locality:
            assert (edit.subject in probe.prompt) == (probe.kind == "same_subject")
            assert (probe.prompt + str(probe.answer)).replace(" ", "") in sentences


@pytest.mark.parametrize(("facts", "text"), [(7, "not a multiple of 12"), (12_000, "lower --facts")])
def test_number_of_facts_out_of_range_is_refused(facts: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_world(facts, seed=0)


def test_small_bed_knows_its_facts_in_trained_wordings(small_bed: Path) -> None:
    result: dict[str, Any] = json.loads((small_bed / "run.json").read_text())
    assert result["trained"] > 0.95
    assert {path.name for path in small_bed.iterdir()} == {
        "model", "edits.jsonl", "facts.jsonl", "text.jsonl", "run.json"
    }  # fmt: skip
    assert len((small_bed / "edits.jsonl").read_text(encoding="utf-8").splitlines()) == 24
