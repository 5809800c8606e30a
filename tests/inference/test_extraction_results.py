"""extraction_results.py: the answers to the windows of a text are merged and get offsets."""

from typing import Any

from extraction.extraction_form import answer_form
from extraction.extraction_results import merge_answers
from extraction.extraction_schema import check_schema
from hypothesis import given, settings
from hypothesis import strategies as st

TEXT = "Ann Lee was born in Oslo. Bo lives in Oslo. Ann Lee left."
FIRST, SECOND = (0, 25), (26, len(TEXT))


def ask(task: str, schema: Any, answers: Any, shape: Any = None, text: str = TEXT) -> Any:
    form = answer_form(task, {"instruction": "x", "answer": {"shape": shape} if shape else {}})
    (found,) = merge_answers(task, text, form, check_schema(task, schema), answers).values()
    return found


def test_entities_of_several_windows_are_merged_in_text_order() -> None:
    answers = [(FIRST, {"place": ["Oslo"], "person": ["Ann Lee", "Cy"]}), (SECOND, {"person": ["Bo", "Ann Lee"]})]
    assert ask("ner", ["person", "place"], answers) == [
        {"type": "person", "name": "Ann Lee", "offsets": [[0, 7], [44, 51]], "in_text": True},
        {"type": "place", "name": "Oslo", "offsets": [[20, 24]], "in_text": True},  # the second window did not name it
        {"type": "person", "name": "Cy", "offsets": [], "in_text": False},
        {"type": "person", "name": "Bo", "offsets": [[26, 28]], "in_text": True},
    ]
    assert ask(
        "ner", ["person"], [(FIRST, {"person": [{"name": "Ann Lee"}, {"name": "Ann Lee"}]})], {"<t>": [{"name": "<n>"}]}
    ) == [{"type": "person", "name": "Ann Lee", "offsets": [[0, 7]], "in_text": True}]


def test_triples_of_several_windows_are_merged() -> None:
    answer = {"lives in": [{"subject": "Bo", "object": "Oslo"}, {"subject": "Cy", "object": "Oslo"}]}
    found = ask("re", ["born in", "lives in"], [(SECOND, answer), (SECOND, answer)])
    oslo = {"name": "Oslo", "offsets": [[38, 42]], "in_text": True}
    assert found == [
        {"subject": {"name": "Bo", "offsets": [[26, 28]], "in_text": True}, "relation": "lives in", "object": oslo},
        {"subject": {"name": "Cy", "offsets": [], "in_text": False}, "relation": "lives in", "object": oslo},
    ]
    reversed_keys = {"<r>": [{"tail": ["<b>"], "head": "<a>"}]}
    found = ask(
        "re", ["born in"], [(FIRST, {"born in": [{"tail": ["Oslo", "Rome"], "head": "Ann Lee"}]})], reversed_keys
    )
    assert [(one["subject"]["name"], one["object"]["name"]) for one in found] == [
        ("Ann Lee", "Oslo"),
        ("Ann Lee", "Rome"),
    ]


def test_subject_and_object_have_a_type_if_it_is_unambiguous() -> None:
    schema = ["person_born in_city", "person_born in_country", "city_part of_country"]
    answer = {
        "born in": [{"subject": "Ann Lee", "object": "Oslo"}],
        "part of": [{"subject": "Oslo", "object": "Norway"}],
    }
    born, part = ask("spo", schema, [(FIRST, answer)])
    assert born["subject"]["type"] == "person"
    assert "type" not in born["object"]  # ambiguous: a city or a country
    assert (part["subject"]["type"], part["object"]["type"], part["relation"]) == ("city", "country", "part of")
    own_key = {"<predicate>: <subject_type>, <object_type>": [{"subject": "<a>", "object": "<b>"}]}
    (born,) = ask("spo", schema, [(FIRST, {"born in: person, city": answer["born in"]})], own_key)
    assert (born["relation"], born["object"]["type"]) == ("born in", "city")


def test_events_drop_missing_triggers_and_arguments() -> None:
    schema = {"birth": ["child", "place", "time"], "move": []}
    arguments = {"child": ["Ann Lee", "NAN"], "place": "Oslo", "time": "NAN"}
    answer = {"birth": [{"trigger": "born", "arguments": arguments}, {"trigger": "NAN", "arguments": {"time": ""}}]}
    first, second = ask("ee", schema, [(FIRST, answer), (SECOND, {"move": []})])
    assert first == {
        "type": "birth",
        "trigger": {"name": "born", "offsets": [[12, 16]], "in_text": True},
        "arguments": [
            {"role": "child", "name": "Ann Lee", "offsets": [[0, 7]], "in_text": True},
            {"role": "place", "name": "Oslo", "offsets": [[20, 24]], "in_text": True},
        ],
    }
    assert second == {"type": "birth", "trigger": None, "arguments": []}
    (alone,) = ask("ee", schema, [(SECOND, {"move": ["left"]})], {"<type>": ["<trigger>"]})
    assert (alone["trigger"]["offsets"], alone["arguments"]) == ([[52, 56]], [])
    (roles,) = ask("ee", schema, [(FIRST, {"birth": [{"place": "Oslo"}]})], {"<type>": [{"<role>": "<name>"}]})
    assert (roles["trigger"], roles["arguments"][0]["role"]) == (None, "place")


def test_items_outside_schema_or_form_are_dropped() -> None:
    answer = {"person": ["Ann Lee", 7, None, {"x": "y"}], "thing": ["Oslo"], "place": "Oslo"}
    assert [one["name"] for one in ask("ner", ["person", "place"], [(FIRST, answer)])] == ["Ann Lee", "Oslo"]
    assert ask("re", ["r"], [(FIRST, {"r": ["Ann", {"subject": "Ann"}, []]})]) == []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["person", "place"]), st.sampled_from(["Ann", "Bo", "Oslo", "Cy"]))
    )
)
def test_offsets_point_to_the_name_and_items_are_unique(entries: list[tuple[int, str, str]]) -> None:
    sentences = ["Ann met Bo.", "Bo saw Oslo.", "Anna left.", "Bo, Bo and Ann."]
    text = " ".join(sentences)
    starts = [sum(len(sentence) + 1 for sentence in sentences[:i]) for i in range(4)]
    spans = [(start, start + len(sentence)) for start, sentence in zip(starts, sentences, strict=True)]
    answers = []
    for i, span in enumerate(spans):
        answer: dict[str, list[str]] = {}
        for window, kind, name in entries:
            if window == i:
                answer.setdefault(kind, []).append(name)
        answers.append((span, answer))
    found = ask("ner", ["person", "place"], answers, text=text)
    assert sorted((one["type"], one["name"]) for one in found) == sorted({(kind, name) for _, kind, name in entries})
    for one in found:
        assert all(text[start:end] == one["name"] for start, end in one["offsets"])
        assert one["offsets"] == sorted(one["offsets"])
        assert one["in_text"] == bool(one["offsets"])
    placed = [one["offsets"][0] for one in found if one["in_text"]]
    assert placed == sorted(placed)
