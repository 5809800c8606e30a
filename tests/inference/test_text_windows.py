"""text_windows.py: sentence ends, and windows of whole sentences within a token limit."""

import json
import time
from pathlib import Path

import pytest
from chat_prompts.prompt_encoding import PromptEncoder
from extraction.text_windows import split_into_windows
from hypothesis import given, settings
from hypothesis import strategies as st
from routes.served_models import make_served_model
from sentence_ends.sentence_boundaries import sentence_ends
from transformers import AutoTokenizer


def check_windows(text: str, found: list[tuple[int, int]]) -> None:
    """Assert that the windows are in order, not empty and stripped, and leave out only white space."""
    outside, before = "", 0
    for start, end in found:
        assert start < end
        assert text[start:end] == text[start:end].strip()
        outside += text[before:start]
        before = end
    assert not (outside + text[before:]).strip()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["Ann", " ", "  ", ". ", "。", "，", ", ", "\n", "x" * 9, "e\u0301", "我", "Dr. "])),
    st.integers(2, 30),
)
def test_windows_cover_the_text_within_the_limit(parts: list[str], limit: int) -> None:
    text = "".join(parts)
    found = split_into_windows(text, range(len(text)), limit)
    check_windows(text, found)
    ends = [0, *sentence_ends(text), len(text)]
    for start, end in found:
        assert end - start <= limit
        assert text[end : end + 1] != "\u0301"
        behind = next(place for place in ends if place >= end)
        whole = any(not text[place:start].strip() for place in ends if place <= start)
        ended = not text[end:behind].strip()
        if whole and ended and text[behind:].strip():  # a window of whole sentences: one more would not fit
            after = next(place for place in ends if text[behind:place].strip())
            assert len(text[start:after].rstrip()) > limit


@pytest.mark.parametrize(
    "text",
    [
        "The kettle boiled.| Nobody got up!| Why?",
        "Maj. Smith lives on Fifth Ave. Near the park.| He owns approx. Five houses.",
        "1. First item.| 2. Second item.",
        "Dr. Who met Mrs. J. R. Hill of Acme Inc. in the U.S. Army.| It was 3.5 km away, e.g. at No. 5 or 6.| Fine.",
        "On Jan. 3 we met.| He said no.| Five did not.",
        "First line|\nsecond line|\n\n  third.",
        "他走了。|天亮了！|谁？|真的吗？！|他说：“走吧。”|《谁？》，一本书。",
        "打开1.2版。|点击1.打开。|参见Fig. 3。|真的?|是啊!|好",
    ],
)
def test_windows_end_where_sentences_of_the_corpus_end(text: str) -> None:
    sentences = [part.strip() for part in text.split("|")]
    whole = text.replace("|", "")
    windows = split_into_windows(whole, range(len(whole)), 1000, usual_characters=1)
    assert [whole[start:end] for start, end in windows] == sentences


def test_windows_take_no_second_sentence_beyond_the_usual_length() -> None:
    text = "One two. Three. Four five six seven eight. Nine. Ten."

    def cut(limit: int, usual: int) -> list[str]:
        return [text[start:end] for start, end in split_into_windows(text, range(len(text)), limit, usual)]

    assert cut(100, 16) == ["One two. Three.", "Four five six seven eight.", "Nine. Ten."]
    assert cut(100, 1) == ["One two.", "Three.", "Four five six seven eight.", "Nine.", "Ten."]
    assert cut(100, 1000) == [text]
    assert cut(15, 16) == ["One two. Three.", "Four five six", "seven eight.", "Nine. Ten."]


def test_long_sentence_is_split_at_clauses_words_or_characters() -> None:
    def cut(text: str, limit: int) -> list[str]:
        return [text[start:end] for start, end in split_into_windows(text, range(len(text)), limit)]

    assert cut("One, two three, four. Five.", 16) == ["One, two three,", "four. Five."]
    assert cut("One two three four", 9) == ["One two", "three", "four"]
    assert cut("abcdefgh", 3) == ["abc", "def", "gh"]
    assert cut("3,000 men，走了很远，很远", 9) == ["3,000", "men，走了很远，", "很远"]
    assert cut("👩\u200d🚀👩\u200d🚀👍🏽👍🏽", 5) == ["👩\u200d🚀", "👩\u200d🚀👍🏽", "👍🏽"]
    assert cut("a" + "\u0301" * 5, 3) == ["a\u0301\u0301", "\u0301\u0301\u0301"]
    assert cut(" \n ", 3) == cut("", 3) == []
    with pytest.raises(ValueError, match="the character 'a' needs more than 0 tokens"):
        cut("a", 0)


@pytest.mark.parametrize("language", ["en", "zh", "code"])
def test_windows_of_real_text_are_full(language: str, shared_data: Path, tiny_tokenizer: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    lines = (shared_data / f"corpus/{language}.jsonl").read_text(encoding="utf-8").splitlines()
    text = "\n\n".join(json.loads(line)["text"] for line in lines)[:60_000]
    model = make_served_model(None, PromptEncoder(tokenizer), {}, 2048, set())
    starts = model.token_starts(text)
    assert list(starts) == sorted(starts)
    windows = split_into_windows(text, starts, 500)
    check_windows(text, windows)
    lengths = [len(model.encoder.text_ids(text[start:end])) for start, end in windows]
    assert max(lengths) <= 500 + 1  # SentencePiece adds a space before a text
    assert sum(lengths) / len(lengths) > 350


WORST_CASES = ("He left. ", "a", ".", "e\u0301", "1.\n", " ", "?!", '."', "\n ", "!。", "\U0001f1e6", "a\u200d")


@pytest.mark.parametrize("unit", WORST_CASES)
def test_300_kilobytes_of_any_repeated_text_take_less_than_two_seconds(unit: str) -> None:
    text = unit * (300_000 // len(unit)) + "x"
    began = time.process_time()
    found = split_into_windows(text, range(len(text)), 1000)
    assert time.process_time() - began < 2
    assert len(found) >= 270 or not text[:-1].strip()


@settings(max_examples=20, deadline=None)
@given(st.text('.!?…。！？"”)】 \n,，a山1\u0301', min_size=1, max_size=5), st.text(".x山\n ", max_size=2))
def test_100_kilobytes_of_repeated_marks_take_less_than_a_second(unit: str, ending: str) -> None:
    text = unit * (100_000 // len(unit)) + ending
    began = time.process_time()
    split_into_windows(text, range(len(text)), 1000)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("text", ["ab. " * 50_000, "a" * 200_000])
def test_text_with_too_many_windows_is_refused(text: str) -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match="the text has more than 16384 windows; send it in parts, or raise window_tok"):
        split_into_windows(text, range(len(text)), 2)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("text", ["One. Two.\n" * 9000, "山。" * 80_000, ". " * 200_000, "!。" * 200_000])
def test_sentence_ends_of_long_texts_are_the_same_as_of_their_parts(text: str) -> None:
    whole = sentence_ends(text)
    assert whole == sorted(set(whole))
    period = len("One. Two.\n") * 3000
    if text.startswith("One"):
        assert whole == [part * 10 + end for part in range(9000) for end in (4, 10)]
        assert whole[: len(sentence_ends(text[:period]))] == sentence_ends(text[:period])
    if text.startswith("山"):
        assert whole == list(range(2, len(text) + 1, 2))


def test_two_hundred_thousand_full_stops_take_less_than_200_milliseconds() -> None:
    text = "." * 200_000 + "x"
    began = time.process_time()
    assert sentence_ends(text) == []
    assert time.process_time() - began < 0.2
