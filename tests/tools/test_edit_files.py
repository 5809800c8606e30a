"""Files of edits: our own format and the published ones, and what is wrong with a row."""

import json
from pathlib import Path
from typing import Any

import pytest
from knowledge_editing.edit_files import Edit, Probe, consistent_edits, edit_row, make_edit, read_edits


def edit_of(**row: Any) -> Edit:
    return make_edit(row, "e.jsonl:1")


@pytest.mark.parametrize(("name", "count", "kind"), [("counterfact", 2000, "neighbour"), ("qaedit", 500, "other")])
def test_every_row_of_a_published_file_is_an_edit_with_its_questions(
    shared_data: Path, name: str, count: int, kind: str
) -> None:
    edits = read_edits(shared_data / f"real/edits/{name}.jsonl", require_subject=True)
    assert len(edits) == count
    assert all(edit.prompt.count("{}") == 1 and edit.subject in edit.question for edit in edits)
    assert all(edit.rephrasings and edit.locality for edit in edits)
    assert {probe.kind for edit in edits for probe in edit.locality} == {kind}


def test_zsre_and_knowedit_and_original_counterfact_rows_are_recognised() -> None:
    zsre = edit_of(
        src="Who made Nest?", alt="Ann", subject="Nest", rephrase="Nest's maker?", loc="nq question: why", loc_ans="so"
    )
    assert (zsre.prompt, zsre.target, zsre.locality) == ("Who made {}?", "Ann", (Probe("other", "why", "so"),))
    knowedit = edit_of(
        prompt="The head of Oslo is", subject="oslo", target_new="Ann", ground_truth=["Bob"],
        portability={"Reasoning": [{"prompt": "Her sex is", "ground_truth": [["female", "f"]]}]},
        locality={"Relation_Specificity": [{"prompt": "Oslo lies in", "ground_truth": ["Norway"]}]},
    )  # fmt: skip
    assert (knowedit.prompt, knowedit.subject, knowedit.ground_truth) == ("The head of {} is", "Oslo", "Bob")
    assert knowedit.portability == (Probe("hop", "Her sex is", "female"),)
    assert knowedit.locality == (Probe("same_subject", "Oslo lies in", "Norway"),)
    rewrite = {"prompt": "{} speaks", "subject": "Ann", "target_new": {"str": "Thai"}, "target_true": {"str": "Lao"}}
    original = edit_of(requested_rewrite=rewrite, paraphrase_prompts=["a"], neighborhood_prompts=["b"])
    assert (original.question, original.target, original.ground_truth) == ("Ann speaks", "Thai", "Lao")
    assert (original.rephrasings, original.locality) == (("a",), (Probe("neighbour", "b", None),))


def test_subject_text_is_no_format_string_and_chinese_subject_is_found() -> None:
    assert edit_of(prompt="{} is", subject="{0} %s", target_new="x").question == "{0} %s is"
    assert edit_of(prompt="法国的首都是", subject="法国", target_new="里昂").prompt == "{}的首都是"


def test_written_row_is_read_as_the_same_edit() -> None:
    edit = edit_of(
        prompt="{} is", subject="Ann", target_new="x", ground_truth="y", rephrase=["r"],
        locality=[{"kind": "neighbour", "prompt": "p", "answer": "a"}], portability=[{"prompt": "q", "answer": "b"}],
    )  # fmt: skip
    assert make_edit(json.loads(json.dumps(edit_row(edit))), "e.jsonl:1") == edit


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "e.jsonl:1: the edit has no text under target_new or target or alt; write one"),
        ({"prompt": "a", "target_new": " "}, "the edit has no text under target_new"),
        ({"target_new": "a"}, "the edit has no text under prompt or src"),
        ({"prompt": "a", "target_new": "b", "subject": 3}, "the subject is not a text"),
        ({"prompt": "a", "target_new": "b", "locality": ["c"]}, "a question of the edit is not"),
        ({"prompt": "a", "target_new": "b", "locality": [{"kind": "d", "prompt": "c"}]}, "the kind 'd' of a question"),
        ({"requested_rewrite": {"prompt": "a"}}, "requested_rewrite has no prompt, subject or target_new"),
    ],
)
def test_error_for_a_faulty_row_names_its_place(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"e.jsonl:1.*{message.removeprefix('e.jsonl:1: ')}"):
        edit_of(**row)


def test_subject_outside_its_prompt_is_an_error_only_if_it_is_required() -> None:
    row = {"prompt": "Who is it?", "target_new": "b", "subject": "Ann"}
    assert make_edit(row, "e.jsonl:1").subject == ""
    with pytest.raises(ValueError, match="the subject 'Ann' is not in the prompt"):
        make_edit(row, "e.jsonl:1", require_subject=True)


def test_two_targets_for_one_question_are_refused_and_repetitions_are_omitted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, same, other = (
        make_edit({"prompt": "{} is", "subject": "Ann", "target_new": target}, f"e.jsonl:{line}")
        for line, target in ((1, "x"), (2, "x"), (3, "y"))
    )
    assert consistent_edits([first, same]) == [first]
    assert capsys.readouterr().err == "notice: 1 repeated edits are omitted\n"
    with pytest.raises(ValueError, match=r"contradicts .*: 'Ann is' has the targets 'y' and 'x'"):
        consistent_edits([first, other])
