"""exact_tokenizers/: folders of every published kind get SentencePiece's ids; contradicting files are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from adapter_loading.checkpoint_loading import tokenizer_folder
from chat_models import byte_level
from chat_prompts.prompt_encoding import PromptEncoder, instruction_messages
from conftest import small_texts
from corpus_tokenizer.document_encoder import load_encoder
from exact_tokenizers.sentencepiece_bpe import read_sentencepiece_model
from exact_tokenizers.tokenizer_folders import exact_tokenizer_folder, write_exact_tokenizer
from gguf_files.gguf_vocabulary import read_vocabulary
from tokenizer_files.tokenizer_check import HARD_TEXTS
from transformers import AutoTokenizer

MakeFolder = Callable[..., Path]
EMPTY = {"bos_token": "", "eos_token": "", "unk_token": ""}  # as the converters of early 2023 wrote them
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.fixture
def make_folder(tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeFolder:
    """make_folder(names, **contents): a folder with these files of the tiny tokenizer, and contents (stem -> JSON)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(names: str, **contents: Any) -> Path:
        folder = tmp_path / "folder"
        folder.mkdir()
        for name in names.split():
            shutil.copyfile(tiny_tokenizer / name, folder / name)
        for stem, content in contents.items():
            (folder / f"{stem}.json").write_text(json.dumps(content))
        return folder

    return make


def check_ids(folder: Path, model: Path) -> Any:
    """Assert that a folder's tokenizer gives SentencePiece's ids after BOS; return the tokenizer."""
    tokenizer, oracle = AutoTokenizer.from_pretrained(folder), sentencepiece.SentencePieceProcessor(str(model))
    for text in HARD_TEXTS:
        assert tokenizer(text, split_special_tokens=True).input_ids == [1, *oracle.encode(text)], text
    return tokenizer


PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "tokenizer.model alone": ("tokenizer.model", {}),
    "early converter": (
        "tokenizer.model",
        {"tokenizer_config": EMPTY | {"tokenizer_class": "LLaMATokenizer"}, "special_tokens_map": {}},
    ),
    "legacy class": ("tokenizer.model", {"tokenizer_config": SPECIAL | {"tokenizer_class": "LlamaTokenizer"}}),
    "special tokens as objects": (
        "tokenizer.model",
        {"tokenizer_config": {name: {"__type": "AddedToken", "content": text} for name, text in SPECIAL.items()}},
    ),
    "class with code elsewhere": (
        "tokenizer.model", {"tokenizer_config": SPECIAL | {"tokenizer_class": "BaichuanTokenizer", "use_fast": False}},
    ),
    "base class": ("tokenizer.model", {"tokenizer_config": SPECIAL | {"tokenizer_class": "PreTrainedTokenizer"}}),
    "class of a byte-level BPE": ("tokenizer.model", {"tokenizer_config": {"tokenizer_class": "Qwen2Tokenizer"}}),
    "fast class": ("tokenizer.json", {"tokenizer_config": SPECIAL | {"tokenizer_class": "LlamaTokenizerFast"}}),
    "class of the model": ("tokenizer.json", {"tokenizer_config": SPECIAL, "config": {"model_type": "llama"}}),
    "both files": (
        "tokenizer.json tokenizer.model", {"tokenizer_config": SPECIAL | {"tokenizer_class": "LlamaTokenizer"}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_folder_gets_the_ids_of_sentencepiece(
    make_folder: MakeFolder, tiny_tokenizer: Path, case: str
) -> None:
    names, contents = PUBLISHED[case]
    folder = make_folder(names, **contents)
    exact = exact_tokenizer_folder(folder)
    assert exact != folder
    assert exact == exact_tokenizer_folder(folder)  # from the cache
    tokenizer = check_ids(exact, tiny_tokenizer / "tokenizer.model")
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
    before = sorted(path.name for path in folder.iterdir())
    assert before == sorted([*names.split(), *(f"{stem}.json" for stem in contents)])  # reading writes nothing
    assert write_exact_tokenizer(folder)
    check_ids(folder, tiny_tokenizer / "tokenizer.model")
    assert exact_tokenizer_folder(folder) == folder


@pytest.mark.parametrize("name", ["T5Tokenizer", "XGLMTokenizer", "BaichuanTokenizer"])
def test_unigram_model_without_tokenizer_json_is_refused_with_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(small_texts()), model_prefix=str(tmp_path / "tokenizer"), vocab_size=300,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    for read in (exact_tokenizer_folder, write_exact_tokenizer):
        with pytest.raises(
            ValueError, match=r"/tokenizer\.model: model_type is not BPE, so no exact tokenizer\.json can"
        ):
            read(tmp_path)


def test_added_tokens_special_tokens_and_settings_are_kept(make_folder: MakeFolder, tiny_tokenizer: Path) -> None:
    folder = make_folder(
        "tokenizer.model",
        tokenizer_config={
            "tokenizer_class": "LlamaTokenizer", "model_max_length": 2048, "padding_side": "left",
            "chat_template": "{{ bos_token }}{{ messages[0]['content'] }}",
        },
        special_tokens_map=SPECIAL | {"pad_token": {"content": "[PAD]"}, "additional_special_tokens": ["<|end|>"]},
        added_tokens={"<|end|>": 801, "[PAD]": 800},
    )  # fmt: skip
    tokenizer = check_ids(exact_tokenizer_folder(folder), tiny_tokenizer / "tokenizer.model")
    assert (len(tokenizer), tokenizer.pad_token_id, tokenizer.model_max_length) == (802, 800, 2048)
    assert tokenizer.padding_side == "left"
    encoder = PromptEncoder(tokenizer)
    assert encoder.special_tokens.keys() == {"<s>", "</s>", "<unk>", "[PAD]", "<|end|>"}
    oracle = sentencepiece.SentencePieceProcessor(str(tiny_tokenizer / "tokenizer.model"))
    assert encoder.prompt_ids(instruction_messages("  two  spaces")) == [1, *oracle.encode("  two  spaces")]


def test_template_file_is_beside_the_exact_tokenizer(make_folder: MakeFolder) -> None:
    folder = make_folder("tokenizer.model")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert AutoTokenizer.from_pretrained(exact_tokenizer_folder(folder)).chat_template == "{{ messages[0].content }}!"


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"added_tokens": {"<|end|>": 900}}, r"adds '<\|end\|>' with id 900, which does not follow its 800 pieces"),
        ({"added_tokens": {"<s>": 5}}, "adds '<s>' with id 5, but it is its piece 1"),
        (
            {"added_tokens": {"<a>": 800}, "tokenizer_config": {"added_tokens_decoder": {"800": {"content": "<b>"}}}},
            "gives id 800 to '<a>' in one tokenizer file and to '<b>' in another",
        ),
        ({"special_tokens_map": {"pad_token": "<pad>"}}, "the special token '<pad>' has no id"),
        ({"tokenizer_config": []}, "is damaged"),
        ({"tokenizer_config": {"added_tokens_decoder": ["<a>"]}}, "added_tokens_decoder is not an object"),
        ({"special_tokens_map": {"bos_token": ["<s>"]}}, r"the special token \['<s>'\] is not text"),
    ],
)
def test_contradicting_tokenizer_files_are_refused(
    make_folder: MakeFolder, contents: dict[str, Any], message: str
) -> None:
    folder = make_folder("tokenizer.model", **contents)
    with pytest.raises(ValueError, match=message):
        exact_tokenizer_folder(folder)
    assert not refused_write_changes(folder)


@pytest.mark.parametrize("listed", [False, True])
def test_special_token_that_two_files_set_differently_is_read_as_in_transformers(
    make_folder: MakeFolder, listed: bool
) -> None:
    added = {"added_tokens_decoder": {"2": {"content": "</s>", "special": True}}} if listed else {}
    folder = make_folder(
        "tokenizer.json tokenizer.model",
        tokenizer_config=SPECIAL | {"tokenizer_class": "LlamaTokenizer"} | added,
        special_tokens_map={"eos_token": "<0x05>", "pad_token": {"content": "<unk>"}},
    )
    exact, expected = (AutoTokenizer.from_pretrained(path) for path in (exact_tokenizer_folder(folder), folder))
    assert (exact.eos_token, exact.pad_token) == (expected.eos_token, expected.pad_token)
    assert exact.eos_token == ("</s>" if listed else "<0x05>")
    assert write_exact_tokenizer(folder)
    assert AutoTokenizer.from_pretrained(folder).eos_token == exact.eos_token


def test_bos_and_eos_of_any_spelling_are_added(make_folder: MakeFolder) -> None:
    folder = make_folder(
        "tokenizer.model",
        added_tokens={"x:7 $A": 800, "$B": 801},
        tokenizer_config=SPECIAL | {"bos_token": "x:7 $A", "eos_token": "$B", "add_eos_token": True},
    )
    tokenizer = AutoTokenizer.from_pretrained(exact_tokenizer_folder(folder))
    ids, other = (tokenizer(text, add_special_tokens=False).input_ids for text in ("ab", "c"))
    assert tokenizer("ab", "c").input_ids == [800, *ids, 801, 800, *other, 801]


def refused_write_changes(folder: Path) -> bool:
    """Return whether write_exact_tokenizer changes a folder that it refuses."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError):
        write_exact_tokenizer(folder)
    return before != {path.name: path.read_bytes() for path in folder.iterdir()}


def test_tokenizer_json_of_another_model_is_refused(make_folder: MakeFolder, tiny_tokenizer: Path) -> None:
    folder = make_folder("tokenizer.json tokenizer.model", tokenizer_config={"tokenizer_class": "LlamaTokenizer"})
    text = (folder / "tokenizer.json").read_text()
    content = json.loads(text)
    content["model"]["vocab"] = {
        {"▁a": "▁was", "▁was": "▁a"}.get(piece, piece): index for piece, index in content["model"]["vocab"].items()
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"tokenizer\.json and .*tokenizer\.model are different tokenizers"):
        exact_tokenizer_folder(folder)


def test_exact_and_byte_level_tokenizers_are_used_from_their_own_folders(
    make_folder: MakeFolder, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    assert exact_tokenizer_folder(tiny_tokenizer) == tiny_tokenizer
    folder = make_folder("tokenizer.model")
    byte_level(folder, small_texts())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    assert exact_tokenizer_folder(folder) == folder
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("auto_map", [{"AutoTokenizer": ["tokenization_x.X", None]}, ["tokenization_x.X", None]])
@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_untrusted_code_of_a_class_that_transformers_has_gets_the_ids_of_sentencepiece(
    make_folder: MakeFolder, tiny_tokenizer: Path, capsys: pytest.CaptureFixture[str], auto_map: Any, name: str
) -> None:
    """transformers does not refuse such a folder, but reads it with its own LlamaTokenizer, inexactly."""
    code = {"tokenizer_class": "LlamaTokenizer", "auto_map": auto_map, "legacy": True}
    folder = make_folder(name, tokenizer_config=SPECIAL | code, added_tokens={"<|end|>": 800})
    assert exact_tokenizer_folder(folder, trust_remote_code=True) == folder
    assert capsys.readouterr().err == ""
    exact = exact_tokenizer_folder(folder)
    exact_tokenizer_folder(folder)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"notice: {folder} has Python code for its tokenizer, which is not executed without --trust_remote_code; "
        f"{name} is read instead"
    )
    assert check_ids(exact, tiny_tokenizer / "tokenizer.model").convert_tokens_to_ids("<|end|>") == 800
    assert write_exact_tokenizer(folder)
    assert check_ids(folder, tiny_tokenizer / "tokenizer.model").convert_tokens_to_ids("<|end|>") == 800
    written = json.loads((folder / "tokenizer_config.json").read_text())
    assert (written["auto_map"], written["legacy"]) == (auto_map, True)  # kept for --trust_remote_code
    assert (folder / "added_tokens.json").is_file()


@pytest.mark.parametrize(
    ("kind", "name"),
    [("qwen2", "PreTrainedTokenizerFast"), ("qwen2", None), ("qwen3", None), ("llama", "Qwen2Tokenizer"),
     ("qwen3_5", "Qwen2Tokenizer"), ("qwen2", "LlamaTokenizer")],
)  # fmt: skip
@pytest.mark.parametrize("names", ["tokenizer.json", "tokenizer.json tokenizer.model"])
def test_qwen_folder_with_a_tokenizer_made_from_sentencepiece_gets_its_ids(
    make_folder: MakeFolder, tiny_tokenizer: Path, kind: str, name: str | None, names: str
) -> None:
    """transformers would read its pieces as byte-level BPE."""
    config = SPECIAL | ({"tokenizer_class": name} if name else {})
    folder = make_folder(names, tokenizer_config=config, config={"model_type": kind})
    tokenizer = check_ids(exact_tokenizer_folder(folder), tiny_tokenizer / "tokenizer.model")
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    write_exact_tokenizer(folder)
    check_ids(exact_tokenizer_folder(folder), tiny_tokenizer / "tokenizer.model")


def test_template_that_is_not_utf_8_is_named(make_folder: MakeFolder) -> None:
    folder = make_folder("tokenizer.model")
    (folder / "additional_chat_templates").mkdir()
    for name in ("additional_chat_templates/tool.jinja", "chat_template.jinja"):
        (folder / name).write_bytes("{{ 'é' }}".encode("latin-1"))
        with pytest.raises(ValueError, match=rf"{name} is not UTF-8 \(.* at byte 4\); convert it first"):
            exact_tokenizer_folder(folder)
        (folder / name).unlink()


@pytest.mark.parametrize(("content", "reason"), [(b"", "the file is empty"), (b"\x92\x03\x01a", "it has no pieces")])
def test_tokenizer_model_without_pieces_is_named(make_folder: MakeFolder, content: bytes, reason: str) -> None:
    folder = make_folder("tokenizer.json tokenizer_config.json tokenizer.model")
    (folder / "tokenizer.model").write_bytes(content)
    readers: list[Callable[[Path], Any]] = [exact_tokenizer_folder, write_exact_tokenizer]
    for read in () if content else readers:  # beside an exact tokenizer.json
        with pytest.raises(ValueError, match=rf"model is not a SentencePiece model \({reason}\); use the original"):
            read(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    for read in (*readers, lambda folder: read_vocabulary(folder, 800)):
        with pytest.raises(ValueError, match=rf"model is not a SentencePiece model \({reason}\); use the original"):
            read(folder)
    with pytest.raises(ValueError, match=r"model is not a SentencePiece model \(.*\); (use|get) the original"):
        load_encoder(folder)


def test_demos_accept_a_folder_with_tokenizer_model_alone(make_folder: MakeFolder) -> None:
    folder = str(make_folder("tokenizer.model"))
    assert tokenizer_folder(folder) == folder


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [("unk_id", -1, "a special id has"), ("bos_id", 800, "a special id has"), ("", 0, "a piece is not UTF-8")],
)
def test_damaged_tokenizer_model_is_refused_with_one_line(
    tiny_tokenizer: Path, tmp_path: Path, field: str, value: int, reason: str
) -> None:
    path = tmp_path / "tokenizer.model"
    proto = read_sentencepiece_model(tiny_tokenizer / "tokenizer.model")
    if field:
        setattr(proto.trainer_spec, field, value)
    content = proto.SerializeToString()
    path.write_bytes(content if field else content.replace("山".encode(), b"\xe5\xb1\xff", 1))
    with pytest.raises(
        ValueError, match=rf"tokenizer.model is damaged \({reason}[^\n]*; use the original tokenizer.model"
    ):
        read_sentencepiece_model(path)
