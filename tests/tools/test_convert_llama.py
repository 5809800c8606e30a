"""tools/convert_llama.py: original logits, bit-identical weights from any number of files, original token ids."""

import itertools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from checkpoint_io import tensors
from conftest import small_texts
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_conversion import llama_params
from original_llama import (
    GROUPED,
    SCALED,
    THREE,
    TINY,
    Make,
    change,
    logits,
    random_state,
    seal,
    write_original,
    write_ranks_table,
)
from safetensors.torch import load_file
from tokenizer_files import llama_tokenizer
from tokenizer_files.tokenizer_check import check_equal_ids
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

STYLES: dict[str, tuple[dict[str, Any], torch.dtype, int, str, float]] = {
    "1": (TINY, torch.float16, 2, "", 1.0),
    "2": (GROUPED, torch.bfloat16, 4, "", 1.0),
    "3": (THREE, torch.bfloat16, 2, "", 1.0),
    "3.1": (SCALED, torch.bfloat16, 2, "", 8.0),
    "3.2": (SCALED, torch.bfloat16, 1, "3.2", 32.0),
}


@pytest.mark.parametrize("version", STYLES)
def test_converted_logits_equal_original_ones(original: Make, convert: Callable[..., Path], version: str) -> None:
    params, dtype, ranks, option, scale = STYLES[version]
    folder, state = original(params, dtype, ranks, tie=version == "3.2")
    out = convert(folder, llama_version=option)
    loaded: Any = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    model, info = loaded
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.randint(0, 800, (200,), generator=torch.Generator().manual_seed(3)).tolist()
    expected = logits(state, params, ids, scale)
    with torch.no_grad():
        found = model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    if params is SCALED:  # the scale changes the logits
        assert (logits(state, params, ids, 1.0) - expected).abs().max() > 0.01
    config = json.loads((out / "config.json").read_text())
    assert config["max_position_embeddings"] == llama_params.CONTEXT[version]
    assert config["tie_word_embeddings"] == (version == "3.2")
    assert json.loads((out / "run.json").read_text())["arguments"]["llama_version"] == version


def test_conversion_from_any_number_of_ranks_gives_same_weights(original: Make, convert: Callable[..., Path]) -> None:
    """The weights keep every bit and their type, also in shards, and from files in PyTorch's old format."""
    params = TINY | {"n_heads": 8}
    tensor_hashes = []
    for ranks in (1, 2, 4, 8):
        folder, state = original(params, ranks=ranks, name=f"in{ranks}")
        if ranks == 4:
            for file in folder.glob("*.pth"):
                torch.save(torch.load(file, weights_only=True), file, _use_new_zipfile_serialization=False)
            seal(folder)
        out = convert(folder, f"out{ranks}", max_shard_size="60KB" if ranks == 2 else "5GB")
        assert len(list(out.glob("*.safetensors"))) == (6 if ranks == 2 else 1)  # embedding and output have their own
        weights = tensors.read_weights(out)
        tensor_hashes.append(tensors.tensor_hashes(weights.values(), ""))
    assert all(digest == tensor_hashes[0] for digest in tensor_hashes)
    new = load_file(out / "model.safetensors")
    assert {value.dtype for value in new.values()} == {torch.float16}
    for name, other in (("layers.1.attention.wo", "layers.1.self_attn.o_proj"), ("norm", "norm")):
        assert torch.equal(new[f"model.{other}.weight"], state[f"{name}.weight"])
    half = state["layers.0.attention.wq.weight"].view(8, 4, 2, 64).transpose(1, 2).reshape(64, 64)
    assert torch.equal(new["model.layers.0.self_attn.q_proj.weight"], half)
    assert not any("freq" in name for name in new)


def test_converted_folder_is_complete(
    original: Make, convert: Callable[..., Path], capsys: pytest.CaptureFixture[str], tiny_tokenizer: Path
) -> None:
    """The input is laid out like LLaMA-1: a folder per size, the tokenizer in its parent, a checklist in both."""
    folder, _ = original()
    root = folder.parent / "LLaMA"
    root.mkdir()
    shutil.move(folder / "tokenizer.model", root / "tokenizer.model")
    seal(root)
    (root / "checklist.chk").rename(root / "tokenizer_checklist.chk")
    shutil.move(folder, root / "auto")
    seal(root / "auto")
    out = convert(root)
    printed = capsys.readouterr()
    assert "LLaMA-1 dim 64" in printed.out
    assert "21 tensors from 2 files in float16, context 2048; 4 files as in the checklist" in printed.out
    assert "equal to SentencePiece on" in printed.out
    assert printed.err == ""
    names = {path.name for path in out.iterdir()}
    assert names == {
        "config.json", "generation_config.json", "model.safetensors", "run.json", "tokenizer.json",
        "tokenizer.model", "tokenizer_config.json",
    }  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(out)
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(tiny_tokenizer / "tokenizer.model"))
    for text in small_texts(5):
        assert tokenizer(text).input_ids == [1, *oracle.encode(text)]
    model = LlamaForCausalLM.from_pretrained(out)
    assert model.dtype == torch.float16
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (1, 2)


@pytest.mark.integration
def test_llama_2_tokenizer_is_converted_exactly(
    shared_data: Path, tmp_path: Path, convert: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The tokenizer has 32,000 pieces and is compared with SentencePiece on the default texts."""
    state = random_state(TINY, 32000, torch.bfloat16)
    folder = write_original(tmp_path / "in", TINY, state, shared_data / "llama/tokenizer.model")
    out = convert(folder, check_path="")
    assert "LLaMA-2 dim 64" in capsys.readouterr().out
    assert AutoTokenizer.from_pretrained(out)("Hello").input_ids == [1, 15043]
    assert (out / "tokenizer.model").read_bytes() == (shared_data / "llama/tokenizer.model").read_bytes()


def test_converted_config_equals_that_of_transformers(
    original: Make, convert: Callable[..., Path], tmp_path: Path
) -> None:
    """Older programs find the same values under rope_theta, rope_scaling and torch_dtype."""
    out = convert(original(SCALED, torch.bfloat16)[0])
    LlamaConfig.from_pretrained(out).save_pretrained(tmp_path / "again")
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (out, tmp_path / "again"))
    only_ours = {"rope_theta": 10000.0, "rope_scaling": theirs["rope_parameters"] | {}, "torch_dtype": "bfloat16"}
    del only_ours["rope_scaling"]["rope_theta"]
    only_theirs = {"dtype": "bfloat16"}
    assert theirs == {name: value for name, value in ours.items() if name not in only_ours} | only_theirs
    assert ours == {name: value for name, value in theirs.items() if name not in only_theirs} | only_ours
    for name in ("rope_parameters", "rope_scaling"):
        part = {key: value for key, value in ours.items() if key != name}
        assert LlamaConfig(**part).rope_parameters == theirs["rope_parameters"]


@pytest.mark.parametrize(
    ("params", "size", "hidden"),
    [
        ({"dim": 4096, "n_layers": 32, "n_heads": 32, "multiple_of": 256}, "7B", 11008),
        ({"dim": 5120, "n_layers": 40, "n_heads": 40, "multiple_of": 256}, "13B", 13824),
        ({"dim": 6656, "n_layers": 60, "n_heads": 52, "multiple_of": 256}, "30B", 17920),
        ({"dim": 8192, "n_layers": 80, "n_heads": 64, "multiple_of": 256}, "65B", 22016),
        ({"dim": 8192, "n_layers": 80, "n_heads": 64, "n_kv_heads": 8, "multiple_of": 4096, "ffn_dim_multiplier": 1.3},
         "70Bf", 28672),
        ({"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "multiple_of": 1024, "ffn_dim_multiplier": 1.3},
         "8B", 14336),
        ({"dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "multiple_of": 256, "ffn_dim_multiplier": 1.5},
         "1B", 8192),
        ({"dim": 3072, "n_layers": 28, "n_heads": 24, "n_kv_heads": 8, "multiple_of": 256, "ffn_dim_multiplier": 1.0},
         "3B", 8192),
    ],
)  # fmt: skip
def test_released_params_give_published_sizes_and_configs(
    tmp_path: Path, params: dict[str, Any], size: str, hidden: int
) -> None:
    """The cases are the published params.json and intermediate_size of each size."""
    path = tmp_path / "params.json"
    path.write_text(json.dumps(params | {"norm_eps": 1e-5, "vocab_size": -1}))
    read = llama_params.read_params(path)
    assert (read.size, read.hidden) == (size.removesuffix("f"), hidden)
    llama_params.check_size(size, read, path)
    other = "13B" if size != "13B" else "7B"
    with pytest.raises(ValueError, match=f"--model_size {other} has dim .*{size.removesuffix('f')}; correct"):
        llama_params.check_size(other, read, path)


def test_rank_table_tokenizer_gives_tiktoken_ids(ranks_table: Path, few_texts: Path) -> None:
    pytest.importorskip("tiktoken")
    words = llama_tokenizer.read_llama_tokenizer(ranks_table, "3.1", instruct=False)

    @settings(max_examples=300, deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"])) | st.text("ab 12山水'sS\r\n<|eot_id|>"))
    def has_equal_ids(text: str) -> None:
        assert check_equal_ids(words.tokenizer, words.reference, [text], "tiktoken") == 1
        assert words.tokenizer.decode(words.reference.encode(text)) == text

    has_equal_ids()
    assert llama_tokenizer.check_llama_tokenizer(words, str(few_texts)).startswith("equal to tiktoken on")


@pytest.mark.parametrize(
    ("version", "instruct", "ends", "places"),
    [
        (
            "3",
            False,
            1,
            {8: "reserved_special_token_4", 10: "reserved_special_token_5", 255: "reserved_special_token_250"},
        ),
        ("3", True, [1, 9], {5: "reserved_special_token_3", 9: "eot_id"}),
        ("3.3", True, [1, 8, 9], {4: "finetune_right_pad_id", 5: "reserved_special_token_2", 8: "eom_id"}),
        ("3.1", False, 1, {6: "start_header_id", 11: "reserved_special_token_3", 255: "reserved_special_token_247"}),
    ],
)
def test_special_tokens_have_the_published_ids(
    original: Make, convert: Callable[..., Path], version: str, instruct: bool, ends: Any, places: dict[int, str]
) -> None:
    out = convert(original(THREE if version == "3" else SCALED)[0], llama_version=version, instruct=instruct)
    tokenizer = AutoTokenizer.from_pretrained(out)
    for place, name in places.items():
        assert tokenizer.convert_ids_to_tokens(556 + place) == f"<|{name}|>"
    assert tokenizer("a").input_ids == [556, *tokenizer("a", add_special_tokens=False).input_ids]
    assert tokenizer.eos_token == ("<|eot_id|>" if instruct else "<|end_of_text|>")
    expected = 556 + ends if isinstance(ends, int) else [556 + end for end in ends]
    for name in ("config.json", "generation_config.json"):
        content = json.loads((out / name).read_text())
        assert (content["bos_token_id"], content["eos_token_id"]) == (556, expected)


@pytest.mark.integration
def test_large_vocabulary_loads_without_warning(
    tmp_path: Path, convert: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Without transformers_version in config.json, transformers warns of vocabularies above 100,000 pieces."""
    every = [bytes(letters) for count in (1, 2) for letters in itertools.product(range(256), repeat=count)]
    longer = [bytes(letters) for letters in itertools.product(range(97, 123), repeat=4)][:36000]
    table = write_ranks_table(tmp_path / "ranks", every + longer)
    rows = len(every) + len(longer) + 256
    folder = write_original(tmp_path / "in", THREE, random_state(THREE, rows, torch.bfloat16), table)
    out = convert(folder)
    transformers_logging.enable_propagation()
    try:
        tokenizer = AutoTokenizer.from_pretrained(out)
    finally:
        transformers_logging.disable_propagation()
    assert len(tokenizer) == rows > 100000
    assert caplog.records == []


def test_conversion_without_tiktoken_reports_that_ids_were_not_compared(
    original: Make, convert: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    convert(original(THREE)[0])
    assert "tokenizer not compared, because tiktoken is not installed" in capsys.readouterr().out


def test_conversion_prints_notices_about_doubtful_files(
    original: Make, convert: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Doubtful are a missing checklist, slightly different norms in version 3, and LLaMA-2's first params.json."""
    folder, _ = original(THREE, torch.bfloat16)
    change(folder, lambda part: part["norm.weight"][5:6].add_(0.008), 1)
    (folder / "checklist.chk").unlink()
    out = convert(folder)
    notices = capsys.readouterr().err.splitlines()
    assert [line[:60] for line in notices] == [
        "notice: no checklist names consolidated.00.pth, consolidated",
        "notice: the files' copies of the norms differ by up to 0.007",
    ]
    first = torch.load(folder / "consolidated.00.pth", weights_only=True)["norm.weight"]
    assert torch.equal(load_file(out / "model.safetensors")["model.norm.weight"], first)
    convert(original(GROUPED, torch.bfloat16, name="two")[0], "second", instruct=True)
    notices = capsys.readouterr().err.splitlines()
    assert "norm_eps 1e-06" in notices[0]
    assert "tools/set_template.py" in notices[1]
