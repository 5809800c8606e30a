"""demo_world/tiny_llama.py: errors of the texts that a tokenizer is trained on."""

from pathlib import Path

import pytest
from demo_world.tiny_llama import train_tokenizer


def test_error_in_the_texts_is_the_error_of_the_training_and_leaves_no_folder(tmp_path: Path) -> None:
    """SentencePiece replaces an error of the texts by the place in our code where it was raised."""
    texts, folder = tmp_path / "texts.jsonl", tmp_path / "out"
    for content, message in (
        ('{"text": "one"}\n{"text": 5}\n', f"{texts}:2 has no text under 'text' (keys: text); add it"),
        ('{"text": "one"}\n', f"SentencePiece could not train 900 pieces on {texts}: "),
    ):
        texts.write_text(content)
        with pytest.raises(ValueError) as error:
            train_tokenizer([str(texts)], str(folder), 900)
        assert str(error.value).startswith(message)
        assert not folder.exists()
