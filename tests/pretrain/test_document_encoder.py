"""document_encoder.py, tokenizer_engines.py: ids equal SentencePiece's, ends of tokens, refused tokenizers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from conftest import small_texts
from corpora import document_ids, rows
from corpus_building import corpus_build, segmentation
from corpus_building.samples import CorpusSettings, bos_and_eos
from corpus_files.corpus import verify_corpus
from corpus_tokenizer import document_encoder, tokenizer_engines
from corpus_tokenizer.document_encoder import DocumentEncoder, load_encoder
from corpus_tokenizer.tokenizer_identity import identity_differences
from exact_tokenizers.tokenizer_folders import exact_tokenizer_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import tokenizer_check
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.text("ab 山水<s>/\n▁🤖")


@pytest.fixture
def json_only(tiny_tokenizer: Path, tmp_path: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_tokenizer / name, tmp_path)
    return tmp_path


def expected_offsets(encoder: DocumentEncoder, text: str, ids: list[int]) -> list[int]:
    """Return the tokens, except the first, that begin with a new character, computed piece by piece."""
    assert isinstance(encoder.engine, tokenizer_engines.SentencePieceEngine)
    model, found, at = encoder.engine.model, [], -1  # the normalised text begins with an added space
    for token, index in enumerate(ids):
        piece = model.id_to_piece(index)
        continues = model.is_byte(index) and int(piece[1:-1], 16) & 0xC0 == 0x80
        if at > 0 and not continues:
            found.append(token)
        at += 0 if continues else 1 if model.is_byte(index) else len(piece)
    return found


def cut_offsets(encoded: tokenizer_engines.EncodedText, text: str) -> list[int]:
    """Return the tokens before which the text may be cut."""
    return segmentation._TokenOffsets(encoded.ends(), 0, len(encoded.ids)).offsets_at(list(range(1, len(text) + 1)))


def test_model_and_json_give_sentencepieces_ids_and_equal_ends(tiny_tokenizer: Path, json_only: Path) -> None:
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(tiny_tokenizer / "tokenizer.model"))
    ours = [load_encoder(tiny_tokenizer), load_encoder(tiny_tokenizer, "reference")]
    ours += [load_encoder(json_only), load_encoder(json_only, "reference")]
    assert [encoder.engine.name for encoder in ours] == ["gigatoken", "sentencepiece", "gigatoken", "tokenizers"]
    assert [len(encoder.checkers) for encoder in ours] == [2, 1, 1, 0]

    @settings(max_examples=300, deadline=None)
    @given(TEXTS)
    def same(text: str) -> None:
        truth = oracle.encode(text)
        places = expected_offsets(ours[1], text, truth)
        for encoder in ours:
            encoded = encoder.encode(text, 1)
            assert (encoded.ids.tolist(), cut_offsets(encoded, text)) == (truth, places), encoder.engine.name

    same()


def test_control_token_spelling_is_encoded_as_text(tiny_tokenizer: Path, json_only: Path) -> None:
    for folder in (tiny_tokenizer, json_only):
        encoder = load_encoder(folder)
        ids = encoder.encode("a <s> b </s> <unk>").ids
        assert not {0, 1, 2} & set(ids.tolist())
        tokens = np.concatenate([bos_and_eos(encoder)[0], ids, bos_and_eos(encoder)[1]])
        assert tokens.tolist() == [1, *ids.tolist(), 2]
        assert encoder.engine.decode(tokens) == "a <s> b </s> <unk>"


def test_fingerprint_is_equal_from_model_and_json(tiny_tokenizer: Path, json_only: Path, tmp_path: Path) -> None:
    truth = tokenizer_check.fingerprint(Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json")))
    model_only = tmp_path / "model"
    model_only.mkdir()
    shutil.copy(tiny_tokenizer / "tokenizer.model", model_only)
    encoders = [load_encoder(folder) for folder in (tiny_tokenizer, json_only, model_only)]
    assert {encoder.fingerprint for encoder in encoders} == {truth}
    assert {(encoder.vocab_size, encoder.bos_id, encoder.eos_id) for encoder in encoders} == {(800, 1, 2)}


@pytest.mark.integration
def test_identity_is_equal_from_model_and_json(tiny_tokenizer: Path, json_only: Path, shared_data: Path) -> None:
    """Also for the LLaMA-2 tokenizer: its tokenizer.model, and the exact tokenizer.json that is built from it."""
    model = shared_data / "llama"
    for one, other in ((tiny_tokenizer, json_only), (model, exact_tokenizer_folder(model))):
        assert load_encoder(one).identity == load_encoder(other).identity
        assert not identity_differences(load_encoder(one).identity, load_encoder(other).identity)


def changed_merges(definition: Any, config: Any) -> None:
    definition["model"]["merges"].reverse()


def changed_normaliser(definition: Any, config: Any) -> None:
    definition["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, definition["normalizer"]]}


def changed_pre_tokeniser(definition: Any, config: Any) -> None:
    definition["pre_tokenizer"] = {"type": "Split", "pattern": {"String": "e"}, "behavior": "Isolated", "invert": False}


def changed_eos(definition: Any, config: Any) -> None:
    config["eos_token"] = "<unk>"


def without_bos(definition: Any, config: Any) -> None:
    config["bos_token"] = None


@pytest.mark.parametrize(
    ("change", "different"),
    [
        (changed_merges, "ids for the same text"),
        (changed_normaliser, "ids for the same text"),
        (changed_pre_tokeniser, "ids for the same text"),
        (changed_eos, "EOS (2 and 0)"),
        (without_bos, "BOS (1 and none)"),
    ],
)
def test_difference_of_identities_with_equal_pieces_is_named(
    json_only: Path, tiny_tokenizer: Path, change: Callable[[Any, Any], None], different: str
) -> None:
    contents = [json.loads((json_only / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json")]
    change(*contents)
    for name, content in zip(("tokenizer.json", "tokenizer_config.json"), contents, strict=True):
        (json_only / name).write_text(json.dumps(content))
    one, other = load_encoder(tiny_tokenizer), load_encoder(json_only)
    assert one.fingerprint == other.fingerprint
    assert identity_differences(one.identity, other.identity).startswith(different)


def test_tokenizer_json_with_other_ids_is_refused(tiny_tokenizer: Path, tmp_path: Path) -> None:
    """The merges are in another order, as in the output of some conversions."""
    for file in tiny_tokenizer.iterdir():
        shutil.copy(file, tmp_path)
    path = tmp_path / "tokenizer.json"
    table = json.loads(path.read_text())
    table["model"]["merges"].reverse()
    path.write_text(json.dumps(table))
    encoder = load_encoder(tmp_path)
    with pytest.raises(ValueError, match=r"gives other ids than its tokenizer.model .* tools/build_tokenizer\.py"):
        for text in small_texts():
            encoder.encode(text, number=1)


def test_engine_with_other_ids_is_refused(tiny_tokenizer: Path) -> None:
    encoder = load_encoder(tiny_tokenizer)
    assert isinstance(encoder.engine, tokenizer_engines.GigatokenEngine)
    encoder.engine.fast = type("WrongIds", (), {"encode": lambda self, text: np.full(len(text), 5)})()
    with pytest.raises(ValueError, match=r"gigatoken gives other ids .* --engine reference"):
        encoder.encode("two words", number=1)


@pytest.mark.integration
def test_real_text_has_sentencepieces_ids(shared_data: Path, tmp_path: Path) -> None:
    """LLaMA-2's model encodes real English, Chinese and code, each with the spellings of special tokens."""
    shutil.copy(shared_data / "llama/tokenizer.model", tmp_path)
    encoder = load_encoder(tmp_path)
    assert encoder.engine.name == "gigatoken"
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for source in ("en", "zh", "code"):
        with (shared_data / "corpus" / f"{source}.jsonl").open() as lines:
            for line in list(lines)[:60]:
                text = json.loads(line)["text"][:20_000] + "<s></s> <unk>"
                assert encoder.encode(text).ids.tolist() == oracle.encode(text)


def test_first_documents_and_every_500th_are_compared(tiny_tokenizer: Path) -> None:
    encoder = load_encoder(tiny_tokenizer)
    for number in range(1, 1201):
        encoder.encode("a b", number)
    encoder.encode("a b")
    assert encoder.checked == document_encoder.CHECK_FIRST + 2  # and the 500th and 1,000th
    encoder.encode("long " * document_encoder.CHECK_CHARACTERS, 1)
    assert encoder.checked == document_encoder.CHECK_FIRST + 3


def train(folder: Path, **options: Any) -> None:
    """Train a small SentencePiece model on text with characters that a normalisation changes."""
    text = folder / "text.txt"
    text.write_text("\n".join(f"row {i} of ① some  plain text ﬁne" for i in range(300)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), minloglevel=2, **options
    )


def test_ends_of_normalising_model_refer_to_the_original_text(tmp_path: Path) -> None:
    train(tmp_path, vocab_size=330, model_type="bpe", byte_fallback=True, normalization_rule_name="nmt_nfkc")
    encoder, text = load_encoder(tmp_path), "① plain  ﬁne"
    encoded = encoder.encode(text, 1)
    ends = encoded.ends()
    assert len(ends) == len(encoded.ids) and ends[-1] == len(text)
    assert {1, 2} & set(ends.tolist()) and (np.diff(ends) >= 0).all()


def test_model_that_gigatoken_cannot_read_is_encoded_by_sentencepiece(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path, vocab_size=40, model_type="unigram", hard_vocab_limit=False)
    encoder = load_encoder(tmp_path)
    assert encoder.engine.name == "sentencepiece" and not encoder.checkers
    assert "gigatoken cannot read" in caplog.text and "sentencepiece encodes instead" in caplog.text
    with pytest.raises(ValueError, match="gigatoken cannot read"):
        load_encoder(tmp_path, "gigatoken")


def test_reloaded_gigatoken_gives_equal_ids(tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_engines, "RELOAD_AFTER", 100)
    encoder, texts = load_encoder(tiny_tokenizer), small_texts()
    assert isinstance(encoder.engine, tokenizer_engines.GigatokenEngine)
    first = encoder.engine.fast
    truth = load_encoder(tiny_tokenizer, "reference")
    for text in texts:
        assert encoder.encode(text).ids.tolist() == truth.encode(text).ids.tolist()
    assert encoder.engine.fast is not first


def byte_level_folder(folder: Path, extra: int = 0) -> Path:
    """Write a tokenizer like LLaMA-3's or Qwen's: byte-level BPE, NFC, trimmed offsets, no BOS, `extra` more pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<|endoftext|>"],
    )  # fmt: skip
    tokenizer.train_from_iterator(["the cat sat on the mat. 山水 the end"] * 20, trainer)
    if extra:
        tokenizer.add_tokens([f"<extra {i}>" for i in range(extra)])
    tokenizer.enable_truncation(4)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": None, "eos_token": {"content": "<|endoftext|>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_byte_level_tokenizer_without_bos_has_equal_ids_and_ends(tmp_path: Path) -> None:
    encoder = load_encoder(byte_level_folder(tmp_path))
    assert encoder.bos_id is None
    text = "The cat. 山 🤖 sat <|endoftext|> e\u0301 end"
    encoded = encoder.encode(text)
    assert encoder.eos_id not in encoded.ids and [end.tolist() for end in bos_and_eos(encoder)] == [
        [],
        [encoder.eos_id],
    ]
    assert encoder.engine.decode(encoded.ids) == text.replace("e\u0301", "é")
    ends = encoded.ends()
    assert 8 in ends  # the space after the full stop begins a token
    assert (np.diff(ends) == 0).any() and (np.diff(ends) >= 0).all()
    assert len(cut_offsets(encoded, text)) == len(set(ends.tolist())) - 1
    truth = load_encoder(tmp_path, "reference")
    assert encoder.engine.name == "gigatoken" and truth.engine.name == "tokenizers"

    @settings(max_examples=300, deadline=None)
    @given(TEXTS)
    def same(text: str) -> None:
        ours, theirs = encoder.encode(text), truth.encode(text)
        assert ours.ids.tolist() == theirs.ids.tolist()
        assert cut_offsets(ours, text) == cut_offsets(theirs, text)

    same()


@pytest.mark.integration  # adds 66,000 pieces to a tokenizer
def test_corpus_of_large_vocabulary_has_int32_ids(tmp_path: Path) -> None:
    """Ids over 65,535, which LLaMA-3's and Qwen's tokenizers have, are read unchanged; documents have no BOS."""
    folder = byte_level_folder(tmp_path / "tokenizer", 66_000)
    texts = ["The cat. 山 🤖 sat " * 40, "<extra 65999> the end"]
    source = rows(tmp_path / "a.jsonl", texts)
    corpus_build.build_corpus([str(source)], str(tmp_path / "a"), str(folder), CorpusSettings(seq_length=64))
    corpus, encoder = verify_corpus(tmp_path / "a"), load_encoder(folder)
    assert (
        corpus.dtype == np.int32 and corpus.vocab_size == corpus.ids.max() + 1 > 65_536 and corpus.lengths.max() <= 64
    )
    assert document_ids(corpus) == [[*encoder.engine.encode(text).ids.tolist(), encoder.eos_id] for text in texts]


def test_folder_without_complete_tokenizer_is_refused(tmp_path: Path, tiny_tokenizer: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        load_encoder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer\.model nor tokenizer\.json"):
        load_encoder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="is not a SentencePiece model"):
        load_encoder(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is not a tokenizer\.json"):
        load_encoder(tmp_path)
    shutil.copy(tiny_tokenizer / "tokenizer.json", tmp_path)
    with pytest.raises(ValueError, match='names no end-of-text token; add "eos_token"'):
        load_encoder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"special": true}}')
    with pytest.raises(ValueError, match=r"names \{'special': True\} as eos_token, which the tokenizer lacks"):
        load_encoder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    with pytest.raises(ValueError, match=r"names '<\|im_end\|>' as eos_token, which the tokenizer lacks"):
        load_encoder(tmp_path)
