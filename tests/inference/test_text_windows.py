"""text_windows.py: sentence ends, and windows of whole sentences within a token limit."""

import json
import time
from pathlib import Path

import pytest
from extraction.text_windows import sentence_ends, windows
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

# --- sentences --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "The kettle boiled.| Nobody got up!| Why?",
        "Dr. Who met Mrs. J. R. Hill of Acme Inc. in the U.S. Army.| It was 3.5 km away, e.g. at No. 5.| Fine.",
        'He said "No!" and left.| "Go."| (Gone.)| He saw it... twice.',
        "On Jan. 3 we met.| He said no.| Five did not.",
        "1. Open the lid.| Pour.|\n2. Close it.",
        "First line|\nsecond line|\n\n  third.",
        "他走了。|天亮了！|谁？|真的吗？！|好。",
        "他说：“走吧。”|大家站起来。|《谁？》，一本书。",
        "打开1.2版。|点击1.打开。|参见Fig. 3。|真的?|是啊!|好",
        "A.B.公司成立。|Hello.|你好。",
        "我…我不知道。|好",
    ],
)
def test_sentence_ends_of_english_and_chinese(text: str) -> None:
    parts = text.split("|")
    whole = "".join(parts)
    ends = [whole[:end].rstrip() for end in sentence_ends(whole)]
    assert ends == ["".join(parts[: i + 1]) for i in range(len(parts))]


# --- windows ----------------------------------------------------------------------------------------------------------


def check_windows(text: str, found: list[tuple[int, int]]) -> None:
    """Check that windows are ordered, separated by white space only, not empty, and stripped."""
    outside, before = "", 0
    for start, end in found:
        assert start < end
        assert text[start:end] == text[start:end].strip()
        outside += text[before:start]
        before = end
    assert not (outside + text[before:]).strip()


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.sampled_from(["Ann", " ", "  ", ". ", "。", "，", ", ", "\n", "x" * 9, "e\u0301", "我", "Dr. "])),
    st.integers(2, 30),
)
def test_windows_cover_the_text_within_the_limit(parts: list[str], limit: int) -> None:
    text = "".join(parts)
    found = windows(text, len, limit)
    check_windows(text, found)
    ends = [0, *sentence_ends(text)]
    for start, end in found:
        assert end - start <= limit
        assert text[end : end + 1] != "\u0301"
        behind = next(place for place in ends if place >= end)
        whole = any(not text[place:start].strip() for place in ends if place <= start)
        ended = not text[end:behind].strip()
        if whole and ended and behind < len(text):  # of whole sentences: one more would not have fitted
            after = next(place for place in ends if place > behind)
            assert len(text[start:after].rstrip()) > limit


def test_windows_take_no_second_sentence_beyond_the_usual_length() -> None:
    text = "One two. Three. Four five six seven eight. Nine. Ten."

    def cut(limit: int, usual: int) -> list[str]:
        return [text[start:end] for start, end in windows(text, len, limit, usual)]

    assert cut(100, 16) == ["One two. Three.", "Four five six seven eight.", "Nine. Ten."]
    assert cut(100, 1) == ["One two.", "Three.", "Four five six seven eight.", "Nine.", "Ten."]
    assert cut(100, 1000) == [text]
    assert cut(15, 16) == ["One two. Three.", "Four five six", "seven eight.", "Nine. Ten."]


def test_long_sentence_is_split_at_clauses_words_or_characters() -> None:
    def cut(text: str, limit: int) -> list[str]:
        return [text[start:end] for start, end in windows(text, len, limit)]

    assert cut("One, two three, four. Five.", 16) == ["One, two three,", "four. Five."]
    assert cut("One two three four", 9) == ["One two", "three", "four"]
    assert cut("abcdefgh", 3) == ["abc", "def", "gh"]
    assert cut("3,000 men，走了很远，很远", 9) == ["3,000", "men，走了很远，", "很远"]
    assert cut("👩\u200d🚀👩\u200d🚀👍🏽👍🏽", 5) == ["👩\u200d🚀", "👩\u200d🚀👍🏽", "👍🏽"]
    assert cut("a" + "\u0301" * 5, 3) == ["a\u0301\u0301", "\u0301\u0301\u0301"]
    assert cut(" \n ", 3) == cut("", 3) == []
    with pytest.raises(ValueError, match="0 tokens do not hold the character 'a'"):
        cut("a", 0)


@pytest.mark.parametrize("language", ["en", "zh", "code"])
def test_windows_of_real_text_are_full_after_few_tokenizer_calls(
    language: str, shared_data: Path, tiny_tokenizer: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    lines = (shared_data / f"corpus/{language}.jsonl").read_text(encoding="utf-8").splitlines()
    text = "\n\n".join(json.loads(line)["text"] for line in lines)[:60_000]
    asked: list[int] = []

    def length_of(piece: str) -> int:
        asked.append(len(piece))
        return len(tokenizer.encode(piece, add_special_tokens=False))

    found = windows(text, length_of, 500)
    calls = len(asked)
    check_windows(text, found)
    lengths = [length_of(text[start:end]) for start, end in found]
    assert max(lengths) <= 500
    assert sum(lengths) / len(lengths) > 350
    assert calls < 6 * len(found)
    assert sum(asked[:calls]) < 8 * len(text)


def test_windows_are_linear_on_a_megabyte_of_any_text() -> None:
    million = 10**6
    for part in ("He left. ", "a", ". ", "e\u0301", "1.\n", " "):
        text = part * (million // len(part))
        began = time.process_time()
        check = windows(text, len, 1000)
        assert time.process_time() - began < 6
        assert len(check) >= 900 or not text.strip()
