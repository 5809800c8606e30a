"""graph_linking: the automaton against a search of all names, borders of scripts, and the rules for ambiguous names."""

import random
from pathlib import Path

import numpy as np
import pytest
import regex
from graph_linking.entity_linking import link_names
from graph_linking.graph_index import GraphIndex
from graph_linking.index_build import build_index, is_usable_name
from graph_linking.name_matching import BLOCK, NameAutomaton

LETTER = regex.compile(r"(?V1)[[\p{Alnum}\p{M}_]--[\p{Han}\p{Hangul}\p{Hiragana}\p{Katakana}\p{Thai}]]")


def find(names: list[str], text: str) -> list[str]:
    matches = NameAutomaton.build([names]).find(text)
    assert [text[start:end] for start, end in zip(matches.starts, matches.ends, strict=True)] == [
        names[number] for number in matches.names
    ]
    return [names[number] for number in matches.names]


@pytest.mark.parametrize(
    ("names", "text", "found"),
    [
        (["Ann", "Ann Lee"], "Ann Lee and Ann met Anna, annex", ["Ann Lee", "Ann"]),
        (["Paris", "Paris Hil"], "Paris Hilton", ["Paris"]),
        (["北京", "北京大学"], "在北京大学，到北京工作", ["北京大学", "北京"]),
        (["iPhone", "苹果"], "苹果iPhone手机", ["苹果", "iPhone"]),
        (["서울"], "서울에서", ["서울"]),
        (["São Paulo"], "São Paulo's, Sa\u0303o", ["São Paulo"]),
        (["Москва"], "Москва, Москвaми", ["Москва"]),
        (["《秋归人》", "秋归人"], "《秋归人》和秋归人", ["《秋归人》", "秋归人"]),
        (["AB"], "AB\nAB", ["AB", "AB"]),
        ([], "nothing", []),
        (["AB"], "", []),
    ],
)
def test_longest_name_within_the_borders_of_its_script_is_found(names: list[str], text: str, found: list[str]) -> None:
    assert find(names, text) == found


def test_automaton_finds_the_same_names_as_a_search_of_all_names() -> None:
    rng = random.Random(0)
    pieces = ["Ann", "Lee", "of", "New", "York", "北", "京", "大", "学", "x1", "e\u0301", " ", " ", "-", "한", "สวัส"]
    for _ in range(30):
        names = list({"".join(rng.choices(pieces, k=rng.randint(1, 4))).strip() for _ in range(30)} - {""})
        text = "".join(rng.choices(pieces, k=200))
        expected, at = [], 0
        while at < len(text):
            valid = [
                name
                for name in names
                if text.startswith(name, at)
                and not any(
                    0 < border < len(text) and LETTER.match(text[border - 1]) and LETTER.match(text[border])
                    for border in (at, at + len(name))
                )
            ]
            if valid:
                expected.append(max(valid, key=len))
            at += len(expected[-1]) if valid else 1
        assert find(names, text) == expected


def test_saved_automaton_finds_names_in_texts_of_several_blocks(tmp_path: Path) -> None:
    NameAutomaton.build([["Ann Lee"], ["北京"]]).save(tmp_path)
    text = ("word " * 100 + "\n") * (2 * BLOCK // 500) + "Ann Lee 在北京"
    matches = NameAutomaton.load(tmp_path).find(text)
    assert matches.names == [0, 1] and text[matches.starts[0] : matches.ends[0]] == "Ann Lee"
    assert isinstance(np.load(tmp_path / "automaton_keys.npy", mmap_mode="r"), np.memmap)


def test_function_words_numbers_and_single_characters_are_not_names() -> None:
    assert [name for name in ("It", "the", "IT", "US", "1984", "京", "北京", "a" * 300) if is_usable_name(name)] == [
        "IT", "US", "北京",
    ]  # fmt: skip


def linked(folder: Path, triples: str, aliases: str, text: str) -> dict[str, str]:
    """Return name -> id of the linked names."""
    for name, content in (("kg", triples), ("aliases", aliases)):
        (folder / f"{name}.tsv").write_text("\n".join("\t".join(line.split("|")) for line in content.split(";")))
    build_index(str(folder / "kg.tsv"), str(folder / "index"), str(folder / "aliases.tsv"))
    index = GraphIndex(folder / "index")
    matches = index.automaton.find(text)
    mentions = link_names(index, matches, index.only_candidates(matches.names))
    return {text[start:end]: index.keys[entity] for start, end, entity in mentions}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Paris is in France.", {"Paris": "Q1", "France": "Q2"}),  # a neighbour is linked
        ("Paris is in Texas.", {"Paris": "Q3", "Texas": "Q4"}),
        ("Paris likes Springfield.", {"Paris": "Q5", "Springfield": "Q6"}),  # a neighbour has an ambiguous name
        ("Paris.", {"Paris": "Q1"}),  # the most connected
        ("Springfield.", {}),  # tied
    ],
)
def test_ambiguous_name_is_linked_by_the_first_rule_that_decides(
    tmp_path: Path, text: str, expected: dict[str, str]
) -> None:
    triples = "Q1|in|Q2;Q1|near|Q8;Q1|near|Q9;Q3|in|Q4;Q5|in|Q6;Q7|in|Q10"
    aliases = (
        "Q1|Paris;Q3|Paris;Q5|Paris;Q2|France;Q4|Texas;Q6|Springfield;Q7|Springfield;Q8|Melun;Q9|Versailles;Q10|Ohio"
    )
    assert linked(tmp_path, triples, aliases, text) == expected


def test_names_linked_by_rule_one_decide_further_names(tmp_path: Path) -> None:
    triples = "Q1|in|Q2;Q3|in|Q4;Q1|knows|Q5;Q6|knows|Q7"
    aliases = "Q1|Lee;Q3|Lee;Q2|Oslo;Q4|Rome;Q5|Kim;Q6|Kim;Q7|Bo"
    assert linked(tmp_path, triples, aliases, "Kim met Lee in Oslo.") == {"Kim": "Q5", "Lee": "Q1", "Oslo": "Q2"}
