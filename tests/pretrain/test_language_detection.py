"""language_detection.py: the language of real and of mixed texts, and the names of languages."""

import json
import time
from pathlib import Path

import pytest
from text_language.language_detection import LANGUAGES, language_code, language_of


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The engineer Lin Xiaozhou (林晓舟) left Harbour Robotics.", "en"),
        ("Ann Lee (李安娜) left Oslo.", "en"),
        ("He signed it 李白, as one would, in the old way", "en"),
        ("GNU Emacs 是一个编辑器 by GNU", "zh"),
        ("在Oslo", "zh"),
        ("ロボットの会社", "zh"),
        ("Ünï", "en"),
        ("12 34", "en"),
        ("", "en"),
    ],
)
def test_language_follows_the_share_of_chinese_characters(text: str, language: str) -> None:
    assert language_of(text) == language


def test_language_of_real_texts_is_right(shared_data: Path) -> None:
    """The floors are just below the measured shares. Some manuals in corpus/en are half translated into Chinese."""
    shares = {}
    for language in LANGUAGES:
        lines = (shared_data / f"corpus/{language}.jsonl").read_text(encoding="utf-8").splitlines()
        passages = json.loads((shared_data / f"real/qa/xquad.{language}.json").read_text(encoding="utf-8"))
        paragraphs = [paragraph for article in passages["data"] for paragraph in article["paragraphs"]]
        texts = {
            "documents": [json.loads(line)["text"] for line in lines],
            "passages": [paragraph["context"] for paragraph in paragraphs],
            "questions": [qa["question"] for paragraph in paragraphs for qa in paragraph["qas"]],
        }
        for kind, found in texts.items():
            shares[kind, language] = sum(language_of(text) == language for text in found) / len(found)
    assert shares.pop(("documents", "en")) > 0.97
    assert set(shares.values()) == {1.0}


@pytest.mark.parametrize("unit", ["a", "山", "a山", ".", " ", "1", "\u0301"])
def test_a_megabyte_takes_less_than_a_second(unit: str) -> None:
    began = time.process_time()
    language_of(unit * (10**6 // len(unit)))
    assert time.process_time() - began < 1


def test_language_names_become_codes() -> None:
    names = ("english", "chinese", "en", "auto", "fr")
    assert [language_code(name) for name in names] == ["en", "zh", "en", "auto", "fr"]
