"""Answers of models as instructions, instances and questions, in the forms that models use."""

import pytest
from endpoint_requests.request_journal import Completion
from instruction_generation.generation_prompts import fill
from instruction_generation.generation_run import without_heading
from instruction_generation.graph_questions import GraphPath, question_fault
from instruction_generation.instruction_evolution import answer_fault, evolution_fault
from instruction_generation.self_instruction import instance_pairs, instruction_fault, numbered_items, valid_pairs


def answer(text: str, finish_reason: str = "stop") -> Completion:
    return Completion(text, finish_reason, 1, 1)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        (" Name a river.\n10. Name a lake.", ["Name a river.", "Name a lake."]),
        ("9. **Name** a river.\n10) Name\na lake.", ["Name a river.", "Name a lake."]),
        ("Task 9: Name a river.\n任务10：说出一个湖。", ["Name a river.", "说出一个湖。"]),
        ("9. 8. Task: Name a river.", ["Name a river."]),
        ("Sure!\n9. Name a river.", ["Name a river."]),
        ("I cannot do this.", []),
        ("9.\n10.\n", []),
    ],
)
def test_items_of_a_numbered_list(text: str, items: list[str]) -> None:
    assert list(numbered_items(answer(text))) == items


def test_last_item_of_a_cut_answer_is_left_out() -> None:
    assert list(numbered_items(answer("9. Name a river.\n10. Name a", "length"))) == ["Name a river."]


@pytest.mark.parametrize(
    ("text", "labelled", "pairs"),
    [
        ("\nInput: x\nOutput: y\nExample 2\nInput: none\nOutput: z", False, [("x", "y"), ("", "z")]),
        ("Output: y\ntwo lines\n\nTask: another\nInput: q\nOutput: r", False, [("", "y\ntwo lines")]),
        ("**Input:** x\n**Output:** y", False, [("x", "y")]),
        ("输入：甲\n输出：乙\n\n示例2\n输入：无\n输出：丙", False, [("甲", "乙"), ("", "丙")]),
        ("Label: good\nInput: x\nLabel: bad\nInput: y", True, [("x", "good"), ("y", "bad")]),
        ("标签：好\n输入：甲", True, [("甲", "好")]),
        ("nothing of this form", False, []),
    ],
)
def test_instances_of_an_answer(text: str, labelled: bool, pairs: list[tuple[str, str]]) -> None:
    assert instance_pairs(answer(text), labelled) == pairs


def test_instances_without_output_or_with_contradicting_outputs_are_dropped() -> None:
    pairs = [("a", "1"), ("a", "2"), ("b", ""), ("c", "c"), ("d", "4"), ("d", "4"), ("e:", "5"), ("f", "see:")]
    assert valid_pairs(pairs) == [("d", "4")]
    assert instance_pairs(answer("Input: x\nOutput: y\nInput: z\nOutput: cut he", "length"), False) == [("x", "y")]


@pytest.mark.parametrize(
    ("text", "language", "usable"),
    [
        ("Name three rivers in Asia.", "en", True),
        ("Draw a map of Asia now.", "en", False),
        ("Name it.", "en", False),
        ("- Name three rivers in Asia.", "en", False),
        ("Write a program that sorts numbers.", "en", False),
        ("说出亚洲的三条河。", "zh", True),
        ("《红楼梦》的作者是谁？", "zh", True),
        ("请绘制一张地图。", "zh", False),
        ("说出亚洲的三条河。", "en", False),
    ],
)
def test_instructions_that_can_be_used(text: str, language: str, usable: bool) -> None:
    assert (instruction_fault(text, language) == "") is usable


def test_headings_before_a_text_are_removed() -> None:
    assert without_heading("#New instruction#: Name it") == "Name it" == without_heading("Question: Name it")
    assert without_heading("问题：河有多长？") == "河有多长？"
    for kept in ("3.5 is a number", "Answer the question: why?"):
        assert without_heading(kept) == kept


def test_faults_of_evolved_instructions_and_their_answers() -> None:
    assert evolution_fault(answer("the Rewritten Prompt is"), "Name it.").endswith("repeats its prompt")
    assert not evolution_fault(answer("Name it twice."), "Name it.")
    assert evolution_fault(answer("Name it", "length"), "x") and evolution_fault(answer(" "), "x")
    assert answer_fault(answer("Sorry, no."), "en") == "answer refuses" == answer_fault(answer("抱歉，我不会。"), "zh")
    assert not answer_fault(answer("Sorry " + "useful word " * 60), "en")
    assert answer_fault(answer("It is. The, of!"), "en") == answer_fault(answer("是的。"), "zh")
    assert answer_fault(answer("…"), "en") == "answer has only stop words"


def test_question_must_name_the_head_and_no_answer() -> None:
    path = GraphPath(
        "Ann Lee", ("born in", "in"), (("Ann Lee", "born in", "Oslo"), ("Oslo", "in", "Norway")), ("Norway",)
    )
    assert not question_fault("In which country was ann lee born?", path, "en")
    assert question_fault("In which country is Oslo?", path, "en") == "question does not name the head"
    assert "an answer" in question_fault("Was Ann Lee born in Norway?", path, "en")
    assert "between" in question_fault("In which country is Oslo, where Ann Lee was born?", path, "en")
    assert "language" in question_fault("Ann Lee出生在哪个国家？", path, "en")
    assert not question_fault("Ann Lee出生在哪个国家？", path, "zh")


def test_values_with_braces_are_inserted_unchanged() -> None:
    assert fill("{a} and {b} and { c }", a="{b}", b="{x} %s") == "{b} and {x} %s and { c }"
