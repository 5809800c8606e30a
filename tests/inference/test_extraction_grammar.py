"""extraction_grammar.py, extraction_results.py: grammars admit what json.dumps writes; partial answers are parsed."""

import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import xgrammar
from conftest import RunScript
from extraction.extraction_form import AnswerForm, answer_form
from extraction.extraction_results import parse_partial_answer
from extraction.extraction_schema import SchemaType, check_schema
from grammar_judge import Judge, answer_grammar
from hypothesis import given, settings
from hypothesis import strategies as st

PAIR = {"subject": "<name>", "object": "<name>"}
SHAPES: list[tuple[str, Any]] = [
    ("ner", {"<type>": ["<name>"]}),
    ("ner", {"<type>": [{"name": "<name>"}]}),
    ("re", {"<relation>": [{"head": "<name>", "tail": ["<name>"]}]}),
    ("spo", {"<predicate>": [PAIR]}),
    ("spo", {"<subject_type>_<predicate>_<object_type>": [PAIR]}),
    ("ee", {"<type>": [{"trigger": "<name>", "arguments": {"<role>": "<name>|[<name>]"}}]}),
    ("ee", {"<type>": [{"<role>": ["<name>"]}]}),
    ("ee", {"<type>": ["<trigger>"]}),
]
FORMS = [
    (task, answer_form(task, {"instruction": "x", "answer": {"shape": shape, "absent": absent}}))
    for task, shape in SHAPES
    for absent in ("empty list", "left out")
]
CHARACTERS = st.one_of(
    st.sampled_from('"\\/[]{}<>:,# \u2028\u200d\ufeff🤖人山a0'), st.characters(exclude_categories=["Cs"])
)
NAMES = st.text(CHARACTERS, min_size=1, max_size=8)
TYPES = st.text(
    st.one_of(st.sampled_from("\"\\[]{}<>|:=#'/ 🤖人ab"), st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"])),
    min_size=1,
    max_size=6,
).filter(str.strip)
Pairs = list[tuple[str, list[Any]]]  # an answer's keys and lists; a key may be repeated where empty types are omitted


@st.composite
def forms_and_types(draw: st.DrawFn) -> tuple[AnswerForm, tuple[SchemaType, ...]]:
    task, form = draw(st.sampled_from(FORMS))
    if task == "ee":
        schema: Any = draw(st.dictionaries(TYPES, st.lists(TYPES, max_size=3, unique=True), min_size=1, max_size=3))
    elif task == "spo":
        three = st.tuples(TYPES, TYPES, TYPES).map(
            lambda t: dict(zip(("subject_type", "predicate", "object_type"), t, strict=True))
        )
        schema = draw(st.lists(three, min_size=1, max_size=3, unique_by=str))
    else:
        schema = draw(st.lists(TYPES, min_size=1, max_size=3, unique=True))
    return form, check_schema(task, schema)


def values(value_kind: str, all_types: bool) -> st.SearchStrategy[Any]:
    several = st.lists(NAMES, min_size=2, max_size=3)
    a_list = st.lists(NAMES, min_size=0 if all_types else 1, max_size=2)
    return {"text": NAMES, "list": a_list, "either": st.one_of(NAMES, several)}[value_kind]


@st.composite
def items(draw: st.DrawFn, form: AnswerForm, type_: SchemaType) -> Any:
    item = {}
    for slot in form.item:
        value = values(slot.value_kind, form.all_types)
        if slot.by_role:
            roles = draw(st.lists(st.sampled_from(type_.roles), unique=True)) if type_.roles else []
            in_order = sorted(roles, key=type_.roles.index) if form.all_types else roles
            item[slot.key] = {role: draw(value) for role in in_order}
        else:
            item[slot.key] = draw(value)
    return item.get("", item)


@st.composite
def answers(draw: st.DrawFn, form: AnswerForm, types: tuple[SchemaType, ...]) -> Pairs:
    keys = form.types_by_key(types)
    chosen = list(keys) if form.all_types else draw(st.lists(st.sampled_from(list(keys)), max_size=4))
    least = 0 if form.all_types else 1
    return [(key, draw(st.lists(items(form, keys[key][0]), min_size=least, max_size=2))) for key in chosen]


def dumps(pairs: Pairs) -> str:
    """Return json.dumps(dict(pairs), ensure_ascii=False), but keep repeated keys."""
    written = ", ".join(json.dumps({key: value}, ensure_ascii=False)[1:-1] for key, value in pairs)
    return f"{{{written}}}"


@pytest.fixture(scope="module")
def judge(tiny_tokenizer: Path) -> Judge:
    return Judge(tiny_tokenizer)


def test_grammar_admits_every_valid_answer(judge: Judge) -> None:
    @settings(max_examples=100, deadline=None)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        form, types = data.draw(forms_and_types())
        pairs = data.draw(answers(form, types))
        text, answer = answer_grammar(form, types), dumps(pairs)
        assert judge.accepts(text, answer)
        assert judge.accepts_tokens(text, answer)
        joined: dict[str, list[Any]] = {}
        for key, value in pairs:
            joined.setdefault(key, []).extend(value)
        assert parse_partial_answer(answer) == (joined, True)
        if len(joined) == len(pairs):
            assert answer == json.dumps(joined, ensure_ascii=False)

    holds()


@pytest.mark.integration
def test_grammar_refuses_other_spellings_types_and_orders(judge: Judge) -> None:
    """Valid answers are changed in white space, spelling, types, order or number of keys."""

    @settings(max_examples=100, deadline=None)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        form, types = data.draw(forms_and_types())
        pairs = data.draw(answers(form, types))
        text, right = answer_grammar(form, types), dumps(pairs)
        wrong = {
            f" {right}",
            f"{right} ",
            right[:-1],
            f"{right}}}",
            right.replace(": ", ":"),
            right.replace("/", "\\/"),
        }
        wrong.add(dumps([*pairs, ("another", ["x"])]))
        if len(dict(pairs)) == len(pairs):
            wrong |= {json.dumps(dict(pairs)), json.dumps(dict(pairs), ensure_ascii=False, indent=1)}
        if form.all_types:
            wrong |= {dumps(pairs[::-1]), dumps(pairs[:-1]), dumps([*pairs, pairs[-1]])}
        else:
            wrong |= {dumps([*pairs, (key, [])]) for key in form.types_by_key(types)}
        for answer in wrong - {right}:
            assert not judge.accepts(text, answer), answer

    holds()


def test_random_tokens_under_the_grammar_form_answers(judge: Judge) -> None:
    """Allowed tokens are drawn at random; complete texts equal json.dumps of the answer, truncated ones are parsed."""
    draw = random.Random(5)
    eos = judge.tokenizer.eos_token_id
    pieces = judge.tokenizer.convert_ids_to_tokens(list(range(judge.info.vocab_size)))
    closing = {i for i, piece in enumerate(pieces) if i == eos or set(piece) & set('"]}')}
    spelled = [bytes([int(p[3:5], 16)]) if p.startswith("<0x") else p.replace("▁", " ").encode() for p in pieces]
    spelled[eos] = b""
    schemas: dict[str, Any] = {"ee": {"a": ["r", "s"], 'b\\"': []}, "spo": ["a_b_c", "d_b_e"]}
    ended = 0
    for _ in range(150):
        task, form = draw.choice(FORMS)
        types = check_schema(task, schemas.get(task, ["a", "人"]))
        matcher, ids = judge.matcher(answer_grammar(form, types)), list[int]()
        while not matcher.is_terminated() and len(ids) < 120:
            allowed = judge.allowed(matcher)
            ends = [token for token in allowed if token in closing]
            ids.append(draw.choice(ends if ends and draw.random() < 0.4 else allowed))
            assert matcher.accept_token(ids[-1])
        text = b"".join(spelled[token] for token in ids).decode(errors="replace")
        answer, complete = parse_partial_answer(text)
        assert complete == matcher.is_terminated()
        assert set(answer) <= set(form.types_by_key(types))
        if complete:
            ended += 1
            repeats = keys_repeat(text)
            assert repeats or json.dumps(answer, ensure_ascii=False) == text
            assert not (repeats and form.all_types)
            assert list(answer) == list(form.types_by_key(types)) if form.all_types else all(answer.values())
    assert ended > 50


def keys_repeat(text: str) -> bool:
    found: list[bool] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        found.append(len(dict(pairs)) < len(pairs))

    json.loads(text, object_pairs_hook=note)
    return any(found)


def test_prefix_of_an_answer_is_parsed_up_to_its_last_complete_item() -> None:
    @settings(max_examples=100, deadline=None)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        form, types = data.draw(forms_and_types())
        answer = dumps(data.draw(answers(form, types)))
        whole, _ = parse_partial_answer(answer)
        before = 0
        for end in range(len(answer)):
            kept, complete = parse_partial_answer(answer[:end])
            assert not complete
            assert all(items == whole[key][: len(items)] for key, items in kept.items())
            count = sum(map(len, kept.values()))
            assert count >= before
            before = count
        assert before == sum(map(len, whole.values()))

    holds()


def test_parse_partial_answer_keeps_complete_items_of_truncated_answers() -> None:
    cut = '{"born in": [{"subject": "A", "object": "[\\"{"}, {"subject": "B'
    assert parse_partial_answer(cut) == ({"born in": [{"subject": "A", "object": '["{'}]}, False)
    assert parse_partial_answer('{"person": ["Ann", "Bo"') == ({"person": ["Ann", "Bo"]}, False)
    assert parse_partial_answer('{"person": ["Ann"], "pla') == ({"person": ["Ann"]}, False)
    assert parse_partial_answer(' {"person": []}\n') == ({"person": []}, True)
    assert parse_partial_answer('{"cut": [{"arguments": {"time": "May", "time": ["June"]}}]}')[0] == {
        "cut": [{"arguments": {"time": ["May", "June"]}}]
    }
    for other in (
        "",
        "none",
        "[1]",
        "7",
        "{",
        "}{",
        '{"a" "b"}',
        "[" * 100_000,
        '{"a": [' * 100_000,
        '{"a": ["' + "x" * 10**6,
    ):
        assert parse_partial_answer(other)[0] in ({}, {"a": []})


def test_grammar_begins_with_the_templates_white_space(judge: Judge) -> None:
    types = check_schema("ner", ["person"])
    text = answer_grammar(FORMS[0][1], types, prefix=" ")
    assert judge.accepts(text, ' {"person": []}')
    assert not judge.accepts(text, '{"person": []}')
    assert judge.accepts(answer_grammar(FORMS[0][1], types, prefix="\n\n"), '\n\n{"person": ["Ann"]}')


PUBLISHED: dict[str, tuple[str, Any, Callable[[Any], Any]]] = {
    "NER": ("ner", {"<type>": ["<name>"]}, list),
    "RE": ("re", {"<relation>": [{"head": "<name>", "tail": "<name>"}]}, list),
    "SPO": ("spo", {"<predicate>": [PAIR]}, list),
    "EET": ("ee", {"<type>": ["<trigger>"]}, lambda schema: {event: [] for event in schema}),
    "EE": (
        "ee",
        {"<type>": [{"trigger": "<name>", "arguments": {"<role>": "<name>|[<name>]"}}]},
        lambda schema: {event["event_type"]: event["arguments"] for event in schema},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_grammar_admits_published_answers(judge: Judge, shared_data: Path, name: str) -> None:
    task, shape, schema_of = PUBLISHED[name]
    form = answer_form(task, {"instruction": "{schema}", "answer": {"shape": shape}})
    rows = (shared_data / f"iepile/{name}/train_sorted.zh.json").read_text(encoding="utf-8").splitlines()
    nonempty = 0
    for row in map(json.loads, rows):
        types = check_schema(task, schema_of(json.loads(row["instruction"])["schema"]))
        assert judge.accepts(answer_grammar(form, types), row["output"]), row["output"]
        assert parse_partial_answer(row["output"]) == (json.loads(row["output"]), True)
        nonempty += any(json.loads(row["output"]).values())
    assert nonempty


def test_grammar_admits_the_demo_worlds_answers(judge: Judge, run_script: RunScript, tmp_path: Path) -> None:
    """The demo world's instructions have no {schema}, so its answers have non-empty types only."""
    world = tmp_path / "world"
    run_script(
        "examples/make_demo.py", "world", "--output_dir", world, "--people", 60, "--documents_per_language", 1,
        "--rows", 2, "--heldout_rows", 200, "--real_megabytes", 0.01,
    )  # fmt: skip
    extraction, types = (json.loads((world / name).read_text()) for name in ("extraction.json", "types.json"))
    asks = {
        extraction["tasks"][task][language]["instruction"]: answer_grammar(
            answer_form(task, extraction["tasks"][task][language]), check_schema(task, types[type_][language])
        )
        for task, type_ in (("ner", "entity"), ("re", "relation"))
        for language in ("en", "zh")
    }
    rows = [json.loads(line) for line in (world / "heldout.jsonl").read_text().splitlines()]
    assert len({row["instruction"] for row in rows}) == len(asks) == 4
    for row in rows:
        assert judge.accepts_tokens(asks[row["instruction"]], row["output"])


def test_grammar_compiles_and_masks_quickly(shared_data: Path) -> None:
    """CPU time with 32,000 pieces; other forms of the rules take 5 ms per token (see extraction_grammar.py)."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(shared_data / "llama/tokenizer.model"))
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    info = xgrammar.TokenizerInfo(pieces, vocab_type=xgrammar.VocabType.BYTE_FALLBACK, stop_token_ids=[model.eos_id()])
    mask = xgrammar.allocate_token_bitmask(1, len(pieces))
    name = 'Ann "Lee" ' * 20
    pair = {"subject": name, "object": "Oslo"}
    found = {"ner": name, "re": pair, "spo": pair, "ee": {"trigger": name, "arguments": {"time": "May"}}}
    for task, item in found.items():
        names = [f"type number {i}" for i in range(50)]
        schemas: dict[str, Any] = {
            "ee": {name: ["time", "place"] for name in names},
            "spo": [f"a_{n}_b" for n in names],
        }
        types = check_schema(task, schemas.get(task, names))
        for absent in ("empty list", "left out"):
            form = answer_form(task, {"instruction": "x", "answer": {"absent": absent}})
            text = answer_grammar(form, types)
            began = time.process_time()
            compiled = xgrammar.GrammarCompiler(info, cache_enabled=False).compile_grammar(text)
            assert time.process_time() - began < 0.5
            matcher, seconds = xgrammar.GrammarMatcher(compiled), []
            for character in json.dumps({name: [item] for name in names})[:200]:
                began = time.process_time()
                matcher.fill_next_token_bitmask(mask)
                seconds.append(time.process_time() - began)
                assert matcher.accept_string(character)
            assert statistics.median(seconds) < 0.001
