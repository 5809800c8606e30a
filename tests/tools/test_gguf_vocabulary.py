"""gguf_vocabulary.py: llama.cpp gives the ids of SentencePiece and transformers; other tokenizers are refused."""

import json
import re
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import export_gguf
import pytest
from conftest import REPOSITORY, small_texts
from exact_tokenizers.sentencepiece_bpe import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from gguf_files.gguf_vocabulary import read_vocabulary
from in_process import RunTool
from llama_cpp_server import TEMPLATE, Make, Serve, byte_level_tokenizer, edit, ids_of, keys, write_byte_level_tokenizer
from tokenizer_files.tokenizer_check import HARD_TEXTS

pytest.importorskip("gguf")


def test_gguf_metadata_equals_folder_settings(make: Make, tmp_path: Path, run_tool: RunTool) -> None:
    folder, file = make(), tmp_path / "new/model.gguf"
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    run_tool("tools/checkpoint.py", "seal", folder)
    done = run_tool("tools/export_gguf.py", "--model_path", folder, "--output_file", file)
    assert done.stdout == f"{file}: 0.19 MB, 21 tensors (16 q8_0, 5 f32), 800 tokens\n"
    found = keys(file)
    tokens, scores = found.pop("tokenizer.ggml.tokens"), found.pop("tokenizer.ggml.scores")
    types = found.pop("tokenizer.ggml.token_type")
    assert found.pop("llama.attention.layer_norm_rms_epsilon") == pytest.approx(1e-6)
    assert found == {
        "general.architecture": "llama", "general.type": "model", "general.name": "model", "general.file_type": 7,
        "general.quantization_version": 2, "llama.vocab_size": 800, "llama.context_length": 256,
        "llama.embedding_length": 64, "llama.block_count": 2, "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.attention.key_length": 16,
        "llama.attention.value_length": 16, "llama.rope.dimension_count": 16, "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False, "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.chat_template": TEMPLATE,
    }  # fmt: skip
    assert tokens[:5] == ["<unk>", "<s>", "</s>", "<0x00>", "<0x01>"]
    assert types[:5] == [UNKNOWN, CONTROL, CONTROL, 6, 6]
    assert types[-1] == NORMAL
    assert scores[-2:] == sorted(scores[-2:], reverse=True)


def test_gguf_ids_equal_those_of_sentencepiece(make: Make, serve: Serve, tmp_path: Path, tiny_tokenizer: Path) -> None:
    import sentencepiece
    from transformers import AutoTokenizer

    folder = make()
    shutil.copy(REPOSITORY / "finetune/templates/alpaca.jinja", folder / "chat_template.jinja")
    export_gguf.main(str(folder), str(tmp_path / "model.gguf"), "f16")
    ask = serve(tmp_path / "model.gguf")
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(tiny_tokenizer / "tokenizer.model"))
    for text in (*HARD_TEXTS, *small_texts(100)):
        assert ids_of(ask, text) == oracle.encode(text), text
    assert ids_of(ask, "<s>山</s>", special=True, add=True) == [1, 1, *oracle.encode("山"), 2]
    messages = [{"role": "user", "content": "Name {{ a }} {%river%}."}]
    prompt = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=False)
    without_bos = str(prompt).removeprefix("<s>")  # the server adds BOS later
    assert ask("/apply-template", {"messages": messages})["prompt"] == without_bos


@pytest.mark.integration
def test_gguf_ids_equal_llama_2_ids_on_real_documents(
    shared_data: Path, make: Make, serve: Serve, tmp_path: Path
) -> None:
    import sentencepiece

    model, folder = shared_data / "llama/tokenizer.model", make(vocab_size=32000, hidden_size=32, head_dim=8)
    shutil.copy(model, folder)
    (folder / "tokenizer.json").unlink()  # tokenizer.model is enough
    export_gguf.main(str(folder), str(tmp_path / "model.gguf"), "q8_0")
    ask, oracle = serve(tmp_path / "model.gguf"), sentencepiece.SentencePieceProcessor(model_file=str(model))
    for source in ("en", "zh", "code"):
        with (shared_data / f"corpus/{source}.jsonl").open() as lines:
            for line in islice(lines, 40):
                text = json.loads(line)["text"]
                assert ids_of(ask, text) == oracle.encode(text)
    assert [ids_of(ask, text, add=True) for text in HARD_TEXTS] == [[1, *oracle.encode(text)] for text in HARD_TEXTS]


def test_settings_of_older_folders_are_read(make: Make, tmp_path: Path) -> None:
    folder, file = make(vocab_size=802), tmp_path / "model.gguf"
    (folder / "tokenizer.json").unlink()
    edit(
        folder / "tokenizer_config.json", add_bos_token=False, add_eos_token=True, pad_token={"content": "<pad>"},
        added_tokens_decoder={"800": {"content": "<pad>", "special": True}},
        chat_template=[{"name": "rag", "template": "other"}, {"name": "default", "template": TEMPLATE}],
    )  # fmt: skip
    edit(folder / "config.json", rope_parameters=None, rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2})
    export_gguf.main(str(folder), str(file), "f16")
    found = keys(file)
    assert found["tokenizer.ggml.tokens"][800:] == ["<pad>", "[PAD801]"]
    assert found["tokenizer.ggml.padding_token_id"] == 800
    assert (found["tokenizer.ggml.add_bos_token"], found["tokenizer.ggml.add_eos_token"]) == (False, True)
    assert found["tokenizer.chat_template"] == TEMPLATE
    scaling = {"freq_base": 5e5, "scaling.type": "linear", "scaling.factor": 2.0}
    assert {key: found[f"llama.rope.{key}"] for key in scaling} == scaling


def test_added_tokens_are_written_and_rows_without_token_padded(
    make: Make, serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    folder, file = make(vocab_size=816), tmp_path / "model.gguf"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.add_tokens([AddedToken("<|end|>", special=True)], special_tokens=True)
    tokenizer.add_tokens([AddedToken("<▁x 1>", normalized=False), "知识"])
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 801]}')
    export_gguf.main(str(folder), str(file), "f16")
    notices = [line for line in capsys.readouterr().err.splitlines() if line.startswith("notice:")]
    assert notices == ["notice: llama.cpp matches the token '知识' anywhere; ids around it may differ"]
    found = keys(file)
    assert found["tokenizer.ggml.tokens"][800:806] == ["<pad>", "<|end|>", "< x 1>", "知识", "[PAD804]", "[PAD805]"]
    assert found["tokenizer.ggml.token_type"][800:] == [CONTROL] * 2 + [USER_DEFINED] * 2 + [UNUSED] * 12
    assert found["tokenizer.ggml.padding_token_id"] == 800
    assert (found["tokenizer.ggml.eos_token_id"], found["tokenizer.ggml.eot_token_id"]) == (2, 801)
    ask = serve(file)
    for text in ("Hello<|end|>world  y<pad>", "<|end|> a", "a <|end|> <pad>山", "<|end|><|end|>"):
        assert ids_of(ask, text, special=True, add=True) == tokenizer(text).input_ids
        assert ids_of(ask, text) == tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert 802 in ids_of(ask, "a < x 1> b")


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2"])
def test_gguf_ids_equal_those_of_byte_level_tokenizers(make: Make, serve: Serve, tmp_path: Path, name: str) -> None:
    folder, tokenizer = make("Qwen2Config" if name == "qwen2" else "LlamaConfig"), byte_level_tokenizer(name)
    write_byte_level_tokenizer(folder, name)
    export_gguf.main(str(folder), str(tmp_path / "model.gguf"), "q8_0")
    found = keys(tmp_path / "model.gguf")
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", name)
    assert found["tokenizer.ggml.eos_token_id"] == tokenizer.token_to_id("<|eot_id|>")
    ask = serve(tmp_path / "model.gguf")
    texts = [text.replace("e\u0301", "é") for text in HARD_TEXTS]  # llama.cpp does not apply NFC
    for text in (*texts, *small_texts(100), "a<tool 山>b 12345"):
        assert ids_of(ask, text) == tokenizer.encode(text, add_special_tokens=False).ids, text
    for text in ("<|begin|>x<|eot_id|> y", "a"):
        assert ids_of(ask, text, special=True, add=True) == tokenizer.encode(text).ids


def test_contradicting_settings_of_files_are_read_as_in_transformers(make: Make, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = make(vocab_size=816)
    edit(folder / "tokenizer_config.json", add_bos_token=False, add_eos_token=True, chat_template=TEMPLATE)
    edit(folder / "chat_template.json", chat_template="of a processor")
    edit(folder / "special_tokens_map.json", eos_token="<0x05>")
    export_gguf.main(str(folder), str(tmp_path / "one.gguf"), "f16")
    tokenizer, found = AutoTokenizer.from_pretrained(folder), keys(tmp_path / "one.gguf")
    assert tokenizer("山").input_ids[0] == 1  # BOS, from tokenizer.json
    assert (found["tokenizer.ggml.add_bos_token"], found["tokenizer.ggml.add_eos_token"]) == (True, False)
    assert found["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id == 8
    assert found["tokenizer.chat_template"] == tokenizer.chat_template == TEMPLATE
    edit(folder / "tokenizer_config.json", added_tokens_decoder={"2": {"content": "</s>", "special": True}})
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    export_gguf.main(str(folder), str(tmp_path / "two.gguf"), "f16")
    tokenizer, found = AutoTokenizer.from_pretrained(folder), keys(tmp_path / "two.gguf")
    assert found["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id == 2
    assert found["tokenizer.chat_template"] == tokenizer.chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # transformers gives a token of tokenizer_config.json that tokenizer.json lacks the next id
        ({"added_tokens_decoder": {"800": {"content": "<more>"}}}, r"(id 800 is '<more>' in transformers, '[PAD800]'"),
        ({"bos_token": "<0x05>"}, "(transformers adds [1] to a text, which llama.cpp cannot do)"),
    ],
)
def test_export_refuses_tokenizer_files_that_contradict_each_other(
    make: Make, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = make(vocab_size=816)
    edit(folder / "tokenizer_config.json", **changes)
    with pytest.raises(ValueError, match=re.escape(f"{folder}: its tokenizer files contradict each other {message}")):
        export_gguf.main(str(folder), str(tmp_path / "out.gguf"), "f32")
    assert not (tmp_path / "out.gguf").exists()


def test_export_refuses_unsupported_tokenizers(make: Make, tmp_path: Path) -> None:
    def refused(folder: Path, message: str, error: type[Exception] = ValueError) -> None:
        with pytest.raises(error, match=re.escape(message)):
            export_gguf.main(str(folder), str(tmp_path / "out.gguf"), "f32")
        assert not (tmp_path / "out.gguf").exists()

    folder = make()
    table, path = json.loads((folder / "tokenizer.json").read_text()), folder / "tokenizer.json"
    edit(folder / "tokenizer_config.json", pad_token="<pad>")
    refused(folder, "pad_token is '<pad>', which the tokenizer does not have")
    edit(folder / "tokenizer_config.json", pad_token=None)
    added = {"content": "<more>", "special": True, "normalized": False}
    edit(path, added_tokens=[*table["added_tokens"], {"id": 800, **added}])
    refused(folder, "token '<more>' has id 800, but the embedding has only 800 rows")
    table["model"]["vocab"] |= {"▁": 799, list(table["model"]["vocab"])[799]: table["model"]["vocab"]["▁"]}
    edit(path, **table)
    refused(folder, "tokenizer.json has")
    (folder / "tokenizer.model").unlink()
    refused(folder, "was made from a SentencePiece model; copy its tokenizer.model into the same folder")
    edit(folder / "tokenizer_config.json", bos_token=None, eos_token=None, unk_token=None)
    cut = byte_level_tokenizer("llama-bpe")
    for change, message in (
        ({"normalizer": {"type": "NFKC"}}, "normalizer NFKC is not supported by llama.cpp's llama-bpe"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}, "['ByteLevel']"),
        ({"model": json.loads(cut.to_str())["model"] | {"ignore_merges": False}}, "with ignore_merges=True"),
    ):
        cut.save(str(path))
        edit(path, **change)
        refused(folder, message)
    path.unlink()
    refused(folder, "has no tokenizer.model and no tokenizer.json", FileNotFoundError)


def test_damaged_added_token_is_refused_in_one_line(make: Make) -> None:
    folder = make()
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append({"id": "F16", "content": "x", "special": True})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"\A[^\n]*model: its tokenizer files are damaged \([^\n]*; download them again\Z"
    ):
        read_vocabulary(folder, 800)
