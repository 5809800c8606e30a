"""demo_world: error messages of the tokenizer's training, of the model's settings and of the demo world's sizes."""

from pathlib import Path
from typing import Any

import pytest
from demo_world.tiny_llama import make_model, train_tokenizer
from demo_world.world_builder import make_world


def test_error_of_the_training_texts_is_reported_and_leaves_no_folder(tmp_path: Path) -> None:
    """SentencePiece raises a RuntimeError instead of an exception of the iterator that gives it the texts."""
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


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"rope_theta": -0.5}, "--rope_theta -0.5 is too small; it must be at least 1"),
        ({"num_hidden_layers": 0}, "--num_hidden_layers 0 is too small; it must be at least 1"),
        (
            {"hidden_size": 33},
            "--hidden_size 33 is not a multiple of twice --num_attention_heads; give a multiple of 2",
        ),
        ({"initializer_range": 7.0}, "--initializer_range 7.0 is not between 0 and 1; LLaMA has 0.02"),
    ],
)
def test_settings_out_of_range_are_refused(
    tiny_tokenizer: Path, tmp_path: Path, sizes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        make_model(str(tiny_tokenizer), str(tmp_path / "out"), **{"hidden_size": 32, "num_attention_heads": 1, **sizes})
    assert str(error.value) == message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"rows": 0}, "--rows 0 is too small; it must be at least 2"),
        ({"heldout_rows": 1}, "--heldout_rows 1 is too small; it must be at least 2"),
        ({"people": 9000}, "there are too few names of the kind person (en); lower --people"),
        ({"heldout_rows": 9000}, "there are too few names of the kind person (en); lower --heldout_rows"),
    ],
)
def test_error_for_an_impossible_world_names_the_option(tmp_path: Path, sizes: dict[str, int], message: str) -> None:
    few: dict[str, Any] = {"people": 20, "documents_per_language": 2, "rows": 4, "heldout_rows": 4}
    with pytest.raises(ValueError) as error:
        make_world(str(tmp_path / "world"), real_megabytes=0.001, **few | sizes)
    assert str(error.value) == message
    assert not list(tmp_path.iterdir())
