"""Readers of rows, answers and request bodies return the right value of arbitrary content, or raise a one-line error.

The functions named *_holds are the properties. Every run of the tests checks them with a few examples, always the same.
With --slow, they are also checked with new random examples for a share of KNOWLM_FUZZ_SECONDS.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from extraction.extraction_form import check_extraction, prompts_for_types
from extraction.extraction_grammar import answer_rules, name_rules
from extraction.extraction_results import parse_partial_answer
from extraction.extraction_schema import EXAMPLES, check_schema
from extraction_building.annotation_source import AnnotationSource
from extraction_building.data_card import card_lines
from extraction_building.row_builder import BuildSettings, RowBuilder
from extraction_building.schema_items import TASKS, read_schema
from extraction_metrics.answer_items import gold_error, json_object_in
from extraction_metrics.answer_scores import score_answers
from extraction_metrics.row_scores import score_rows
from extraction_metrics.score_tables import scores_table
from extraction_metrics.scored_files import scored_rows
from fastapi import HTTPException
from fuzzing import ANY_TEXT, SCALAR, run_for, share_of_seconds, value_or_error, write_lines
from hypothesis import strategies as st
from instruction_data.extraction_wording import read_wording
from json_rows.instruction_rows import messages_of, row_error
from json_rows.row_files import iterate_rows
from pydantic import ValidationError
from routes.request_body import parse_body
from routes.sampling_parameters import Parameters, completion_fields


def json_values(keys: st.SearchStrategy[str] = ANY_TEXT, leaves: int = 6) -> st.SearchStrategy[Any]:
    return st.recursive(
        SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=leaves
    )


def objects_with(*keys: str, values: st.SearchStrategy[Any] | None = None) -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy for objects whose keys are some of `keys` or random text."""
    return st.dictionaries(
        st.sampled_from(keys) | ANY_TEXT, json_values() if values is None else values, max_size=len(keys)
    )


def line_of(value: Any, ascii: bool) -> str:
    text = json.dumps(value, ensure_ascii=ascii)
    return text if ascii or text.isascii() else text.encode("utf-8", "replace").decode()


def is_json(value: Any) -> bool:
    """Return whether a value is JSON: finite numbers, and text without lone surrogates."""
    if isinstance(value, dict):
        return all(is_json(each) for pair in value.items() for each in pair)
    if isinstance(value, list):
        return all(map(is_json, value))
    if isinstance(value, float):
        return value == value and abs(value) != float("inf")
    return not isinstance(value, str) or not any("\ud800" <= character <= "\udfff" for character in value)


LINE = st.one_of(
    st.tuples(st.just("row"), st.dictionaries(ANY_TEXT, json_values(), max_size=3)),
    st.tuples(st.just("scalar"), SCALAR),
    st.tuples(st.just("cut"), st.dictionaries(ANY_TEXT, json_values(), max_size=3)),
    st.tuples(st.just("noise"), st.text(st.characters(exclude_characters='\n[{"'), max_size=9)),
)


def rows_holds(lines: list[tuple[str, Any]], end: str) -> None:
    """Assert that each line of a JSONL file gives a row with its value, or an error, with the number of the line."""
    texts, expected = ['{"first": 1}'], list[Any]([{"first": 1}])
    for kind, value in lines:
        text = value if kind == "noise" else json.dumps(value)
        if kind == "cut":
            text = text[: len(text) // 2]
        if not text.strip(" \t\r"):
            continue
        texts.append(text)
        is_kept = kind == "row" and is_json(value)
        expected.append(value if is_kept else None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.jsonl")
        path.write_bytes((end.join(texts) + end).encode("utf-8", "surrogatepass"))
        rows = list(iterate_rows(path))
    assert [row.content for row in rows] == expected
    assert all("\n" not in row.error and bool(row.error) == (row.content is None) for row in rows)
    assert [row.location for row in rows] == [f"{path}:{number}" for number in range(1, len(texts) + 1)]


MESSAGE = objects_with("role", "content", "input", "weight", "tool_calls", values=SCALAR | st.sampled_from(["user"]))
ROW = st.one_of(
    objects_with("instruction", "input", "output", "system", "history", "messages"),
    st.fixed_dictionaries(
        {"instruction": ANY_TEXT, "output": ANY_TEXT},
        optional={
            "input": ANY_TEXT, "system": ANY_TEXT, "history": st.lists(st.lists(ANY_TEXT, max_size=3), max_size=2)
        },
    ),
    st.fixed_dictionaries({
        "messages": st.lists(
            MESSAGE | st.fixed_dictionaries(
                {"role": st.sampled_from(["user", "assistant", "system"]), "content": ANY_TEXT}
            ),
            max_size=4,
        )
    }),
)  # fmt: skip


def instructions_holds(row: dict[str, Any], answers: bool) -> None:
    """Assert that a row has an error, or messages of text with a question and, if `answers`, an answer at the end."""
    error = row_error(row, answers)
    if not error:
        messages = messages_of(row)
        assert all(isinstance(text, str) for message in messages for text in message.values())
        assert not answers or messages[-1]["role"] == "assistant"
        assert {"user"} <= {message["role"] for message in messages}


def answer_texts() -> st.SearchStrategy[str]:
    names = st.text("ab ", min_size=1, max_size=2)
    triple = st.fixed_dictionaries({"subject": names, "object": names})
    labelled = st.dictionaries(names, st.lists(names, max_size=3), max_size=3)
    relations = st.dictionaries(names, st.lists(triple, max_size=3), max_size=3)
    return st.one_of(
        (labelled | relations | json_values()).map(json.dumps), ANY_TEXT, st.sampled_from(["[" * 9999, "1" * 5000])
    )


def scores_holds(pairs: list[tuple[str, str]]) -> None:
    """Assert that scores agree with their counts, and that correct answers scored against themselves get 1."""
    if any(gold_error(gold) for _, gold in pairs) or not pairs:
        with pytest.raises(ValueError, match=r"\A[^\n]+\Z"):
            score_answers(pairs)
        return
    scores, perfect = score_answers(pairs), score_answers([(gold, gold) for _, gold in pairs])
    lenient = score_answers([(json_object_in(prediction), gold) for prediction, gold in pairs])
    assert perfect["exact"] == perfect["parsed"] == 1
    for task in ("entity", "triple"):
        score = scores[task]
        assert 0 <= score["correct"] <= min(score["predicted"], score["gold"])
        assert score["gold"] == perfect[task]["gold"] == perfect[task]["correct"] == lenient[task]["gold"]
        whole = score["predicted"] + score["gold"]
        assert score["f1"] == (2 * score["correct"] / whole if whole else 0)
    listed = Counter(kind for _, gold in pairs for kind in items_of(gold))
    assert (listed["entity"], listed["triple"]) == (scores["entity"]["gold"], scores["triple"]["gold"])


def items_of(gold: str) -> list[str]:
    """Return the kind of each item of a correct answer, counted without the scorer."""
    return ["entity" if isinstance(item, str) else "triple" for items in json.loads(gold).values() for item in items]


def scored_files_holds(rows: list[dict[str, Any]]) -> None:
    """Assert that a file gives one scored row for each row, and scores that can be printed, or an error."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_lines(Path(folder, "x.jsonl"), rows)
        if scored := value_or_error(scored_rows, path):
            assert len(scored) == len(rows)
            scores = score_rows(scored)
            assert all(0 <= scores.get(share, 0) <= 1 for share in ("not_in_text", "stopped"))
            scores_table(scores, by_type=True).encode()


PREDICTION = st.builds(
    lambda row, more: {**row, **more},
    objects_with(
        "instruction",
        "input",
        "messages",
        "prediction",
        "generated_text",
        "error",
        "output",
        "text",
        "entities",
        "triples",
        "complete",
        "finish_reason",
        "order",
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "prediction": answer_texts(),
            "output": answer_texts(),
            "entities": st.lists(
                st.fixed_dictionaries({"type": SCALAR | ANY_TEXT, "name": SCALAR | ANY_TEXT}), max_size=2
            ),
        },
    ),
)
NAMED = objects_with("name", "type", "subject", "object", "relation", values=SCALAR | st.sampled_from(["a", "b,c"]))
NAME = st.sampled_from("ab")
TYPE = st.sampled_from(["p", "q", "q,r"])
ANNOTATION = st.one_of(
    objects_with("sentence", "entity_list", "relation_list", "event_list"),
    st.fixed_dictionaries(
        {"sentence": ANY_TEXT | st.just("a b")},
        optional={
            "entity_list": st.lists(NAMED | st.fixed_dictionaries({"name": NAME, "type": TYPE}), max_size=3),
            "relation_list": st.lists(st.fixed_dictionaries(
                {"subject": NAME, "relation": TYPE, "object": NAME},
                optional={"subject_type": TYPE, "object_type": TYPE},
            ), max_size=3),
            "event_list": st.lists(st.fixed_dictionaries(
                {"type": TYPE, "arguments": st.lists(st.fixed_dictionaries({"role": TYPE, "name": NAME}), max_size=2)},
                optional={"trigger": NAME},
            ), max_size=3),
        },
    ),
)  # fmt: skip


def annotations_holds(
    rows: list[dict[str, Any]], schema: Any, task: str, style: str, split: str, schema_batch: int
) -> None:
    """Assert that each text gets rows whose answers have its distinct items, or that an error is raised."""
    with tempfile.TemporaryDirectory() as folder:
        annotated = write_lines(Path(folder, "x.jsonl"), rows)
        types = write_lines(Path(folder, "types.json"), [schema])
        schemas = value_or_error(lambda path: read_schema(str(path), task), types)
        wordings = value_or_error(lambda given: read_wording("", *given), (task, style))
        if wordings is None:
            return
        source = AnnotationSource(str(annotated), "json", "auto")
        settings = BuildSettings(task, style, split, schema_batch)
        builder = value_or_error(lambda by: RowBuilder(source, by, wordings, settings), schemas)
        built = builder and value_or_error(lambda given: list(given.rows()), builder)
        if built:
            assert builder.counts.rows == len(built)
            assert task != "ner" or builder.counts.items == sum(
                len(names) for _, _, row in built for names in json.loads(row.row["output"]).values()
            )
            lines = [*card_lines("x", builder.counts, builder.labels(), {}, [], "", builder.problems.lines())]
            assert len(list(builder.problems.lines())) == len(builder.problems) <= len(lines)


def body_holds(value: Any, cut: int) -> None:
    """Assert that a body is parsed to its value, or refused with status 400."""
    text = json.dumps(value).encode()
    text = text[:cut] if cut else text
    try:
        assert parse_body(text) == json.loads(text)
    except HTTPException as error:
        assert error.status_code == 400 and "\n" not in error.detail
    except json.JSONDecodeError:
        assert cut


PARAMETER = objects_with(*Parameters.model_fields, values=SCALAR | st.lists(SCALAR, max_size=2))


def parameters_holds(content: dict[str, Any], room: int) -> None:
    """Assert that parameters are refused, or give fields with max_tokens or the settings of a beam search."""
    try:
        fields = completion_fields(Parameters.model_validate(content), room)
    except ValidationError as error:
        assert all(each["loc"] or each["type"] != "value_error" for each in error.errors())
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(fields, tuple) or "max_tokens" in fields


SCHEMA = json_values() | st.lists(st.text("ab,_、 ", max_size=5), max_size=4) | st.dictionaries(
    st.text("ab ", max_size=3), st.lists(st.text("cd(;", max_size=3), max_size=3), max_size=3
)  # fmt: skip
SHAPE = json_values(st.sampled_from(["<type>", "<name>", "a", "subject", "object", "<role>"]))
ENTRY = st.fixed_dictionaries(
    {"instruction": ANY_TEXT | st.just("List {schema}.")},
    optional={
        "answer": objects_with("shape", "absent") | st.fixed_dictionaries({"shape": SHAPE}), "text_characters": SCALAR
    },
)  # fmt: skip
ENTRIES = st.dictionaries(st.sampled_from(["en", "zh"]), ENTRY, max_size=2)
EXTRACTION = st.one_of(
    json_values(st.sampled_from(["tasks", "ner", "en", "answer", "shape", "instruction", "<type>"]), 12),
    st.fixed_dictionaries({"tasks": st.dictionaries(st.sampled_from(list(EXAMPLES)), ENTRIES, max_size=2)}),
)


def extraction_holds(task: str, schema: Any, extraction: Any, text: str) -> None:
    """Assert that a schema and an extraction.json give an instruction and a grammar, or an error is raised."""
    types = value_or_error(lambda given: check_schema(task, given), schema)

    def checked(content: Any) -> bool:
        check_extraction(content, "x")
        return True

    if types is None or not value_or_error(checked, extraction):
        return
    for prompt in value_or_error(lambda given: prompts_for_types(task, types, text, "auto", given), extraction) or ():
        assert (answer_rules(prompt.form, prompt.types) + name_rules(prompt.form, "")).startswith("root ::= ")
        assert prompt.instruction.strip()


def partial_answer_holds(answer: Any, cut: int) -> None:
    """Assert that the beginning of an answer is read as an object, and a complete answer completely."""
    text = json.dumps(answer)
    found, complete = parse_partial_answer(text[:cut] if cut else text)
    assert isinstance(found, dict)
    if not cut and isinstance(answer, dict) and len(answer) == len({*answer}):
        assert complete and (found == answer or not is_json(answer))


PROPERTIES: dict[Callable[..., None], list[st.SearchStrategy[Any]]] = {
    rows_holds: [st.lists(LINE, max_size=6), st.sampled_from(["\n", "\r\n"])],
    instructions_holds: [ROW, st.booleans()],
    scores_holds: [st.lists(st.tuples(answer_texts(), answer_texts()), max_size=3)],
    scored_files_holds: [st.lists(PREDICTION, min_size=1, max_size=3)],
    annotations_holds: [
        st.lists(ANNOTATION, min_size=1, max_size=3),
        json_values() | st.lists(st.sampled_from(["p", "q", "q,r"])) | st.just({"p": ["q", "r"]}),
        st.sampled_from(TASKS), st.sampled_from(["prose", "schema_json"]), st.sampled_from(["train", "test"]),
        st.integers(0, 2),
    ],
    body_holds: [json_values(), st.integers(0, 30)],
    parameters_holds: [PARAMETER, st.integers(1, 100)],
    extraction_holds: [st.sampled_from(list(EXAMPLES)), SCHEMA, EXTRACTION, ANY_TEXT],
    partial_answer_holds: [json_values(st.text("ab", max_size=2), 9), st.integers(0, 40)],
}  # fmt: skip


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_content_is_read_or_refused_in_one_line(holds: Callable[..., None]) -> None:
    run_for(0, holds, PROPERTIES[holds])


@pytest.mark.slow
@pytest.mark.timeout(share_of_seconds(1) + 1200)
@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_random_content_is_read_or_refused_in_one_line(holds: Callable[..., None]) -> None:
    run_for(share_of_seconds(0.125) / len(PROPERTIES), holds, PROPERTIES[holds])
