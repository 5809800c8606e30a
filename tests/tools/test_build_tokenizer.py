"""tools/build_tokenizer.py: ids equal SentencePiece's on hard and real text, and unsupported models are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from conftest import RunScript
from exact_tokenizers import sentencepiece_bpe
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import tokenizer_check
from tokenizer_files.tokenizer_check import HARD_TEXTS, check_equal_ids
from transformers import AutoTokenizer


def test_tiny_tokenizer_equals_sentencepiece_on_any_text(tiny_tokenizer: Path) -> None:
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(tiny_tokenizer / "tokenizer.model"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)

    @settings(max_examples=300, deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"])) | st.text("ab 山水<s>/\n▁"))
    def same(text: str) -> None:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert ids == oracle.encode(text)

    same()


@pytest.mark.parametrize("source", ["en", "zh", "code"])
@pytest.mark.integration
def test_llama_2_tokenizer_equals_sentencepiece_on_real_documents(
    shared_data: Path, tmp_path: Path, run_script: RunScript, source: str
) -> None:
    model, corpus = shared_data / "llama/tokenizer.model", shared_data / f"corpus/{source}.jsonl"
    documents = sum(1 for _ in corpus.open())
    done = run_script(
        "tools/build_tokenizer.py", "--tokenizer_model", model, "--output_dir", tmp_path, "--check_path", corpus
    )
    assert f"equal to SentencePiece on {documents + len(HARD_TEXTS)} texts" in done.stdout
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("Hello").input_ids == [1, 15043]
    assert (tmp_path / "tokenizer.model").read_bytes() == model.read_bytes()


def test_saved_and_reloaded_tokenizer_keeps_the_ids(tiny_tokenizer: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in HARD_TEXTS:
        assert again(text).input_ids == tokenizer(text).input_ids
        assert tokenizer(text).input_ids[0] == tokenizer.bos_token_id


def test_ids_equal_sentencepiece_with_user_defined_pieces_and_no_dummy_prefix(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"row {i} of some plain text with <sep> inside" for i in range(200)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "m"), vocab_size=320, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
        user_defined_symbols=["<sep>"], minloglevel=2,
    )  # fmt: skip
    proto = sentencepiece_bpe.read_sentencepiece_model(tmp_path / "m.model")
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    texts = ["row 3 of<sep>text", "<sep><sep> text", "plain", " plain <sep> "]
    assert check_equal_ids(sentencepiece_bpe.build_fast_tokenizer(proto), oracle, texts) == len(texts)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"model_type": "unigram"}, "model_type is not BPE"),
        ({"byte_fallback": False}, "byte_fallback is off"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces is on"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalization rule 'nmt_nfkc'"),
    ],
)
def test_build_tokenizer_refuses_unsupported_model_settings(
    tmp_path: Path, run_script: RunScript, setting: dict[str, object], named: str
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"row {i} of some plain text" for i in range(200)))
    plain: dict[str, Any] = {
        "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "vocab_size": 300, "hard_vocab_limit": False, "minloglevel": 2,
    }  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(input=str(text), model_prefix=str(tmp_path / "m"), **(plain | setting))
    arguments = ("--tokenizer_model", tmp_path / "m.model", "--output_dir", tmp_path / "out")
    done = run_script("tools/build_tokenizer.py", *arguments, status=2)
    assert named in done.stderr
    assert not (tmp_path / "out").exists()


def test_build_tokenizer_errors_name_the_file(tmp_path: Path, run_script: RunScript) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    (tmp_path / "empty").write_bytes(b"")
    for path, expected in (
        (tmp_path / "none", "does not exist"),
        (tmp_path / "tokenizer.model", "not a SentencePiece model"),
        (tmp_path / "empty", "is not a SentencePiece model (the file is empty); use the original tokenizer.model"),
    ):
        done = run_script(
            "tools/build_tokenizer.py", "--tokenizer_model", path, "--output_dir", tmp_path / "out", status=2
        )
        assert str(path) in done.stderr
        assert expected in done.stderr


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_file_without_text_to_compare_is_refused(
    tiny_tokenizer: Path, tmp_path: Path, run_script: RunScript, text: str
) -> None:
    (tmp_path / "texts.txt").write_text(text)
    given = ("--tokenizer_model", tiny_tokenizer, "--output_dir", tmp_path / "out")
    done = run_script("tools/build_tokenizer.py", *given, "--check_path", tmp_path / "texts.txt", status=2)
    assert done.stderr.startswith(f"error: {tmp_path}/texts.txt has no text to compare")
    assert not (tmp_path / "out").exists()


def test_built_and_loaded_tokenizer_have_the_same_fingerprint(tiny_tokenizer: Path) -> None:
    built = sentencepiece_bpe.build_fast_tokenizer(
        sentencepiece_bpe.read_sentencepiece_model(tiny_tokenizer / "tokenizer.model")
    )
    read = AutoTokenizer.from_pretrained(tiny_tokenizer).backend_tokenizer
    assert tokenizer_check.fingerprint(built) == tokenizer_check.fingerprint(read)
    assert json.loads((tiny_tokenizer / "tokenizer_config.json").read_text())["bos_token"] == "<s>"


@pytest.mark.integration
def test_tuned_folder_keeps_added_tokens_template_and_settings(
    tiny_tokenizer: Path, tmp_path: Path, run_script: RunScript
) -> None:
    folder = tmp_path / "tuned"
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|end|>"], "pad_token": "[PAD]"})
    tokenizer.chat_template, tokenizer.model_max_length = "{{ messages[0].content }}<|end|>", 77
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 803}')
    command = ("tools/build_tokenizer.py", "--tokenizer_model", tiny_tokenizer / "tokenizer.model", "--output_dir")
    assert f"{folder}: 803 pieces" in run_script(*command, folder).stdout
    again = AutoTokenizer.from_pretrained(folder)
    assert (len(again), again.get_vocab()) == (803, tokenizer.get_vocab())
    assert (again.pad_token, again.chat_template) == ("[PAD]", tokenizer.chat_template)
    assert again("a <|end|>").input_ids == tokenizer("a <|end|>").input_ids

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 800}')
    done = run_script(*command, folder, status=2)
    assert f"the tokenizer in {folder} has 803 tokens, but the model has 800 embeddings (" in done.stderr
    (folder / "config.json").write_bytes(before["config.json"])
    (folder / "checkpoint.json").write_text("{}")
    assert "is sealed, so its files must not change" in run_script(*command, folder, status=2).stderr
    (folder / "checkpoint.json").unlink()
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
