"""ROUGE-L against a pool is exact, for English and Chinese, and fast."""

import random
import time
from pathlib import Path

import pytest
from instruction_generation.rouge_pool import RougePool, rouge_l, similarity_tokens
from json_rows.row_files import iterate_texts


def slow_rouge_l(first: list[str], second: list[str]) -> float:
    """Return ROUGE-L by the table of the definition (Lin 2004)."""
    row = [0] * (len(second) + 1)
    for token in first:
        before = row[:]
        for at, other in enumerate(second, 1):
            row[at] = before[at - 1] + 1 if token == other else max(before[at], row[at - 1])
    return 2 * row[-1] / (len(first) + len(second)) if first and second else 0.0


def test_tokens_are_words_and_chinese_characters() -> None:
    assert similarity_tokens("Don't stop_it, 3.5 Écoles! 知识图谱GPT4模型") == [
        "don", "t", "stop", "it", "3", "5", "écoles", "知", "识", "图", "谱", "gpt4", "模", "型",
    ]  # fmt: skip


def test_value_of_a_published_example() -> None:
    """Lin 2004, section 3.1: the longest common subsequence of S1 and S2 is "police the gunman"."""
    assert rouge_l("police killed the gunman", "police kill the gunman") == 0.75
    assert rouge_l("police killed the gunman", "the gunman kill police") == 0.5
    assert rouge_l("", "police") == 0.0 == rouge_l("?", "!")


@pytest.mark.parametrize("at_least", [0.0, 0.3, 0.7])
def test_most_similar_text_equals_that_of_the_definition(at_least: float) -> None:
    draw = random.Random(5)
    pool, texts = RougePool(), list[list[str]]()
    for _ in range(150):
        tokens = draw.choices("abcdefghij知识图谱", k=draw.choice([0, 1, 3, 8, 20, 70]))
        scores = [slow_rouge_l(tokens, other) for other in texts]
        best = max(scores, default=0.0)
        match = pool.most_similar(tokens, at_least)
        if best > 0 and best >= at_least:
            assert match == (best, scores.index(best))
        else:
            assert match == (0.0, -1)
        pool.add(tokens)
        texts.append(tokens)


def test_very_long_texts_take_bounded_time() -> None:
    tokens = [f"word{number % 5000}" for number in range(1_000_000)]
    pool = RougePool()
    pool.add(tokens)
    began = time.process_time()
    assert pool.most_similar(tokens) == (1.0, 0) and pool.most_similar(tokens[::-1]).score < 0.1
    assert time.process_time() - began < 5


def test_ten_thousand_rows_are_compared_with_at_least_fifty_candidates_a_second(shared_data: Path) -> None:
    """The processor time of one core; measured: more than 1,000 a second."""
    sentences = [
        sentence
        for name in ("en", "zh")
        for text in iterate_texts(shared_data / "corpus" / f"{name}.jsonl")
        for sentence in text.replace("。", ".").split(".")
        if len(sentence) > 20
    ]
    random.Random(0).shuffle(sentences)
    pool = RougePool(sentences[:10_000])
    candidates = [similarity_tokens(text) for text in sentences[10_000:10_200]]
    began = time.process_time()
    for candidate in candidates:
        pool.most_similar(candidate)
    assert len(candidates) / (time.process_time() - began) >= 50
