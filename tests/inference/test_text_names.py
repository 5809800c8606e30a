"""text_names.py: symbols and parts of a text; extraction_grammar.py: grammars that limit names to parts of a text."""

import json
import time
from pathlib import Path

import pytest
from extraction.extraction_form import answer_form
from extraction.extraction_grammar import MAX_CHARACTERS, MAX_SYMBOLS
from extraction.extraction_schema import check_schema
from extraction.text_names import parts_automaton, text_symbols
from grammar_judge import Judge, answer_grammar
from hypothesis import given, settings
from hypothesis import strategies as st

NER = answer_form("ner", {"instruction": "{schema}"})


@pytest.fixture(scope="module")
def judge(tiny_tokenizer: Path) -> Judge:
    return Judge(tiny_tokenizer)


def answer(name: str) -> str:
    return json.dumps({"person": [name]}, ensure_ascii=False)


SYMBOLS = st.sampled_from(["Ann", "Lee", "U", ".", " ", "\n\n", " \x1f", '"', "\\", "山", "水", "e\u0301", "🤖"])


@pytest.mark.parametrize(
    ("text", "symbols"),
    [
        (" 收购SQM23.77%股权\n", "收|购|SQM|23|.|77|%|股|权"),
        ("Ann  Lee's e\u0301t\u00e9, 서울", "Ann|  |Lee|'|s| |e\u0301t\u00e9|,| |서|울"),
    ],
)
def test_text_is_split_into_words_numbers_and_other_characters(text: str, symbols: str) -> None:
    assert text_symbols(text) == symbols.split("|")


@settings(max_examples=300, deadline=None)
@given(st.lists(SYMBOLS, max_size=12))
def test_automaton_accepts_exactly_the_parts_of_a_sequence(symbols: list[str]) -> None:
    edges = parts_automaton(symbols)
    accepted: set[tuple[str, ...]] = set()
    open_parts: list[tuple[tuple[str, ...], int]] = [((), 0)]
    while open_parts:
        part, state = open_parts.pop()
        assert part not in accepted
        accepted.add(part)
        open_parts += [((*part, symbol), target) for symbol, target in edges[state].items()]
    count = len(symbols)
    assert accepted == {tuple(symbols[first:last]) for first in range(count + 1) for last in range(first, count + 1)}
    assert len(edges) <= max(2 * count, 2) and sum(map(len, edges)) <= 3 * count


def test_grammar_admits_exactly_the_names_in_the_text(judge: Judge) -> None:
    @settings(max_examples=60, deadline=None)
    @given(st.lists(SYMBOLS, min_size=1, max_size=8), st.lists(SYMBOLS, max_size=3))
    def holds(symbols: list[str], others: list[str]) -> None:
        text = "".join(symbols)
        parts = text_symbols(text)
        names = {
            "".join(parts[first:last])
            for first in range(len(parts))
            for last in range(first + 1, len(parts) + 1)
            if not (parts[first].isspace() or parts[last - 1].isspace())
        }
        grammar = answer_grammar(NER, check_schema("ner", ["person"]), text=text)
        respaced = {" ".join(name.split()) for name in names}
        wrong = {"", " Ann", "Ann ", "An", "nn", "NAN", "".join(others), f"{text}{text}"} - names
        if not names:
            return
        for name in names | respaced:
            assert judge.accepts(grammar, answer(name)), (name, text)
        for name in wrong:
            assert judge.accepts(grammar, answer(name)) == (name in respaced)

    holds()


def test_names_are_not_limited_for_empty_or_long_text_and_may_be_absent_in_events(judge: Judge) -> None:
    ner, ee = check_schema("ner", ["person"]), check_schema("ee", {"born": ["place"]})
    for text in ("", " \n", "人" * (MAX_SYMBOLS + 1), "n" * (MAX_CHARACTERS + 1)):
        assert judge.accepts(answer_grammar(NER, ner, text=text), '{"person": ["Bo"]}')
    event = '{"born": [{"trigger": "%s", "arguments": {"place": "%s"}}]}'
    grammar = answer_grammar(answer_form("ee", {"instruction": "{schema}"}), ee, text="Ann was born in Oslo.")
    assert all(judge.accepts(grammar, event % ("born", place)) for place in ("Oslo", "NAN"))
    assert not judge.accepts(grammar, event % ("born", "Bergen"))


@pytest.mark.parametrize("domain", ["ai", "music"])
def test_grammar_admits_all_names_of_real_annotations(judge: Judge, shared_data: Path, domain: str) -> None:
    rows = json.loads((shared_data / f"crossner/{domain}/train.json").read_text(encoding="utf-8"))
    for row in rows[:40]:
        names = [entity["name"] for entity in row["entity_list"]]
        grammar = answer_grammar(NER, check_schema("ner", ["person"]), text=row["sentence"])
        assert judge.accepts_tokens(grammar, json.dumps({"person": names}, ensure_ascii=False))


LONGEST = {
    "repetitions": "人水" * (MAX_SYMBOLS // 2),
    "choices": "".join(map(chr, range(0x4E00, 0x4E00 + MAX_SYMBOLS))),
    "common beginnings": " ".join("_" * length for length in range(1, 180)),
}


@pytest.mark.parametrize("text", LONGEST.values(), ids=LONGEST)
def test_grammar_of_the_longest_text_compiles_in_a_second(judge: Judge, text: str) -> None:
    assert len(text) <= MAX_CHARACTERS
    began = time.process_time()
    judge.matcher(answer_grammar(NER, check_schema("ner", ["person"]), text=text))
    assert time.process_time() - began < 1
