"""tools/convert_llama.py: the original's logits, weights to the bit however many files, and every fault named."""

import itertools
import json
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import build_tokenizer
import convert_llama
import llama_layout
import llama_params
import llama_tokenizer
import pytest
import sentencepiece
import tensors
import torch
from conftest import RunScript, small_texts
from hypothesis import given, settings
from hypothesis import strategies as st
from original_llama import State, logits, random_state, seal, write_original, write_ranks_table
from safetensors.torch import load_file
from tensor_files import write_shards
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

TINY = {"dim": 64, "n_heads": 4, "n_layers": 2, "multiple_of": 32, "norm_eps": 1e-5, "vocab_size": -1}
GROUPED = TINY | {"n_heads": 8, "n_kv_heads": 4, "ffn_dim_multiplier": 1.3, "norm_eps": 1e-6}
THREE = TINY | {"n_kv_heads": 2, "rope_theta": 500000.0, "multiple_of": 64}
SCALED = THREE | {"rope_theta": 10000.0, "use_scaled_rope": True}  # with slower waves, 200 tokens would not show it


@pytest.fixture(scope="session")
def few_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(small_texts(20)))
    return path


@pytest.fixture(scope="session")
def ranks_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.model of LLaMA-3's kind: 256 bytes and the 300 most frequent joins of a small text."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    draft = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(llama_tokenizer.PATTERN), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    draft.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    draft.train_from_iterator(
        small_texts(), trainers.BpeTrainer(vocab_size=556, initial_alphabet=alphabet, show_progress=False)
    )
    values = {letter: value for value, letter in enumerate(llama_tokenizer.byte_letters())}
    pieces = sorted(draft.get_vocab().items(), key=lambda item: item[1])
    tokens = [bytes(values[letter] for letter in piece) for piece, _ in pieces]
    return write_ranks_table(tmp_path_factory.mktemp("ranks") / "tokenizer.model", tokens)


Make = Callable[..., tuple[Path, State]]


@pytest.fixture
def original(tmp_path: Path, tiny_tokenizer: Path, ranks_table: Path) -> Make:
    """original(params, dtype, ranks, …): an original checkpoint's folder, and its whole weights."""

    def make(
        params: dict[str, Any] = TINY,
        dtype: torch.dtype = torch.float16,
        ranks: int = 2,
        tie: bool = False,
        name: str = "in",
    ) -> tuple[Path, State]:
        three = "rope_theta" in params
        rows = 556 + 256 if three else 800
        state = random_state(params, rows, dtype)
        if tie:
            state["output.weight"] = state["tok_embeddings.weight"]
        tokenizer = ranks_table if three else tiny_tokenizer / "tokenizer.model"
        folder = write_original(tmp_path / name, params, state, tokenizer, ranks, 0 if three else 1)
        return folder, state

    return make


@pytest.fixture
def convert(tmp_path: Path, few_texts: Path) -> Callable[..., Path]:
    """convert(folder, **options): the new folder, made in this process."""

    def run(folder: Path, name: str = "out", **options: object) -> Path:
        given: dict[str, Any] = {"model_size": "auto", "check_path": str(few_texts)} | options
        convert_llama.main(input_dir=str(folder), output_dir=str(tmp_path / name), **given)
        return tmp_path / name

    return run


STYLES: dict[str, tuple[dict[str, Any], torch.dtype, int, str, float]] = {
    "1": (TINY, torch.float16, 2, "", 1.0),
    "2": (GROUPED, torch.bfloat16, 4, "", 1.0),
    "3": (THREE, torch.bfloat16, 2, "", 1.0),
    "3.1": (SCALED, torch.bfloat16, 2, "", 8.0),
    "3.2": (SCALED, torch.bfloat16, 1, "3.2", 32.0),
}


@pytest.mark.parametrize("version", STYLES)
def test_logits_are_the_originals(original: Make, convert: Callable[..., Path], version: str) -> None:
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
    if params is SCALED:  # so the scale does show
        assert (logits(state, params, ids, 1.0) - expected).abs().max() > 0.01
    config = json.loads((out / "config.json").read_text())
    assert config["max_position_embeddings"] == llama_params.CONTEXT[version]
    assert config["tie_word_embeddings"] == (version == "3.2")
    assert json.loads((out / "run.json").read_text())["arguments"]["llama_version"] == version


def test_any_number_of_files_gives_the_same_weights(original: Make, convert: Callable[..., Path]) -> None:
    """Every bit of them, in the type that they had: also in shards, and from files of PyTorch's old format."""
    params = TINY | {"n_heads": 8}
    digests = []
    for ranks in (1, 2, 4, 8):
        folder, state = original(params, ranks=ranks, name=f"in{ranks}")
        if ranks == 4:
            for file in folder.glob("*.pth"):
                torch.save(torch.load(file, weights_only=True), file, _use_new_zipfile_serialization=False)
            seal(folder)
        out = convert(folder, f"out{ranks}", max_shard_size="60KB" if ranks == 2 else "5GB")
        assert len(list(out.glob("*.safetensors"))) == (6 if ranks == 2 else 1)  # embedding and output alone
        weights = tensors.read_weights(out)
        digests.append(tensors.digests(weights.values(), ""))
    assert all(digest == digests[0] for digest in digests)
    new = load_file(out / "model.safetensors")
    assert {value.dtype for value in new.values()} == {torch.float16}
    for name, other in (("layers.1.attention.wo", "layers.1.self_attn.o_proj"), ("norm", "norm")):
        assert torch.equal(new[f"model.{other}.weight"], state[f"{name}.weight"])
    half = state["layers.0.attention.wq.weight"].view(8, 4, 2, 64).transpose(1, 2).reshape(64, 64)
    assert torch.equal(new["model.layers.0.self_attn.q_proj.weight"], half)
    assert not any("freq" in name for name in new)


def test_the_folder_is_complete(
    original: Make, convert: Callable[..., Path], capsys: pytest.CaptureFixture[str], tiny_tokenizer: Path
) -> None:
    """As LLaMA-1 was given out: the size's folder, the tokenizer above it, a checklist for each."""
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
    assert "21 tensors from 2 file(s) in float16, context 2048; 4 files as in the checklist" in printed.out
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


def test_llama_2s_own_tokenizer(
    shared_data: Path, tmp_path: Path, convert: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """32,000 pieces, compared with SentencePiece on the texts that every conversion compares on."""
    state = random_state(TINY, 32000, torch.bfloat16)
    folder = write_original(tmp_path / "in", TINY, state, shared_data / "llama/tokenizer.model")
    out = convert(folder, check_path="")
    assert "LLaMA-2 dim 64" in capsys.readouterr().out
    assert AutoTokenizer.from_pretrained(out)("Hello").input_ids == [1, 15043]
    assert (out / "tokenizer.model").read_bytes() == (shared_data / "llama/tokenizer.model").read_bytes()


def test_config_is_what_transformers_writes_itself(
    original: Make, convert: Callable[..., Path], tmp_path: Path
) -> None:
    """And older readers, which look for rope_theta, rope_scaling and torch_dtype, find the same there."""
    out = convert(original(SCALED, torch.bfloat16)[0])
    LlamaConfig.from_pretrained(out).save_pretrained(tmp_path / "again")
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (out, tmp_path / "again"))
    only_ours = {"rope_theta": 10000.0, "rope_scaling": theirs["rope_parameters"] | {}, "torch_dtype": "bfloat16"}
    del only_ours["rope_scaling"]["rope_theta"]
    only_theirs = {"dtype": "bfloat16", "pad_token_id": None, "transformers_version": theirs["transformers_version"]}
    del ours["transformers_version"]
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
def test_released_sizes(tmp_path: Path, params: dict[str, Any], size: str, hidden: int) -> None:
    """The published params.json and intermediate_size of each."""
    path = tmp_path / "params.json"
    path.write_text(json.dumps(params | {"norm_eps": 1e-5, "vocab_size": -1}))
    read = llama_params.read_params(path)
    assert (read.size, read.hidden) == (size.removesuffix("f"), hidden)
    llama_params.check_size(size, read, path)
    other = "13B" if size != "13B" else "7B"
    with pytest.raises(ValueError, match=f"--model_size {other} has dim .*{size.removesuffix('f')}; correct"):
        llama_params.check_size(other, read, path)


# --- version 3's tokenizer --------------------------------------------------------------------------------------------


def test_table_of_ranks_gives_tiktokens_ids_on_any_text(ranks_table: Path, few_texts: Path) -> None:
    pytest.importorskip("tiktoken")
    words = llama_tokenizer.read_words(ranks_table, "3.1", instruct=False)

    @settings(max_examples=300, deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"])) | st.text("ab 12山水'sS\r\n<|eot_id|>"))
    def same(text: str) -> None:
        assert build_tokenizer.check(words.tokenizer, words.oracle, [text], "tiktoken") == 1
        assert words.tokenizer.decode(words.oracle.encode(text)) == text

    same()
    assert llama_tokenizer.check(words, str(few_texts)).startswith("equal to tiktoken on")


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


def test_a_large_vocabulary_is_loaded_without_a_warning(
    tmp_path: Path, convert: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """transformers suspects those of more than 100,000 pieces, unless config.json says which version it is of."""
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


def test_without_tiktoken_it_is_said_that_nothing_was_compared(
    original: Make, convert: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    convert(original(THREE)[0])
    assert "tokenizer not compared, for want of tiktoken" in capsys.readouterr().out


# --- notices ----------------------------------------------------------------------------------------------------------


def test_notices(original: Make, convert: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A missing checklist, norms that differ a little in version 3, and the first params.json of LLaMA-2."""
    folder, _ = original(THREE, torch.bfloat16)
    change(folder, lambda part: part["norm.weight"][5:6].add_(0.008), 1)
    (folder / "checklist.chk").unlink()
    out = convert(folder)
    said = capsys.readouterr().err.splitlines()
    assert [line[:60] for line in said] == [
        "notice: no checklist names consolidated.00.pth, consolidated",
        "notice: the files' copies of the norms differ by up to 0.007",
    ]
    first = torch.load(folder / "consolidated.00.pth", weights_only=True)["norm.weight"]
    assert torch.equal(load_file(out / "model.safetensors")["model.norm.weight"], first)
    convert(original(GROUPED, torch.bfloat16, name="two")[0], "second", instruct=True)
    said = capsys.readouterr().err.splitlines()
    assert "norm_eps 1e-06" in said[0]
    assert "tools/set_template.py" in said[1]


# --- faults -----------------------------------------------------------------------------------------------------------


class Code:
    """What would run if a file were unpickled without care."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.witness,)


def change(folder: Path, edit: Callable[[State], object], *ranks: int) -> None:
    for rank in ranks:
        part = torch.load(folder / f"consolidated.{rank:02d}.pth", weights_only=True)
        edit(part)
        torch.save(part, folder / f"consolidated.{rank:02d}.pth")
    seal(folder)


def change_params(folder: Path, **entries: object) -> None:
    params = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps(params | entries))
    seal(folder)


def flip(folder: Path) -> None:
    content = bytearray((folder / "consolidated.01.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "consolidated.01.pth").write_bytes(content)


WQ = "layers.0.attention.wq.weight"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "last file missing": (
        lambda f: (f / "consolidated.01.pth").unlink(),
        "consolidated.01.pth is missing: consolidated.00.pth is one part of 2",
    ),
    "first file missing": (lambda f: (f / "consolidated.00.pth").unlink(), "consolidated.00.pth is missing"),
    "a file too many": (
        lambda f: shutil.copyfile(f / "consolidated.01.pth", f / "consolidated.02.pth"),
        "has 3 files consolidated.NN.pth, but consolidated.00.pth is one part of 2",
    ),
    "cut off": (
        lambda f: (f / "consolidated.01.pth").write_bytes((f / "consolidated.01.pth").read_bytes()[:20000]),
        "consolidated.01.pth is damaged or holds more than tensors",
    ),
    "code": (
        lambda f: torch.save({"norm.weight": Code(f.parent / "witness")}, f / "consolidated.01.pth"),
        "consolidated.01.pth is damaged or holds more than tensors",
    ),
    "tensor missing": (
        lambda f: change(f, lambda part: part.pop("layers.1.ffn_norm.weight"), 1),
        "consolidated.01.pth lacks tensor layers.1.ffn_norm.weight",
    ),
    "output missing": (
        lambda f: change(f, lambda part: part.pop("output.weight"), 0, 1),
        "consolidated.00.pth lacks tensor output.weight",
    ),
    "unknown tensor": (
        lambda f: change(f, lambda part: part.update(bias=torch.ones(3)), 0),
        "consolidated.00.pth holds tensor bias",
    ),
    "wrong shape": (
        lambda f: change(f, lambda part: part.update({WQ: part[WQ][:-1].clone()}), 1),
        f"consolidated.01.pth: tensor {WQ} is [31, 64], but by params.json all 2 file(s) together hold [64, 64]",
    ),
    "another width": (
        lambda f: change_params(f, multiple_of=256),
        "consolidated.00.pth: tensor layers.0.feed_forward.w1.weight is [96, 64], but by params.json all 2 file(s) "
        "together hold [256, 64]",
    ),
    "integers": (
        lambda f: change(f, lambda part: part.update({WQ: part[WQ].view(torch.int16)}), 0),
        f"consolidated.00.pth: tensor {WQ} is of type I16",
    ),
    "norms that differ": (
        lambda f: change(f, lambda part: part["norm.weight"].add_(0.001), 1),
        "consolidated.01.pth: model.norm.weight differs by",
    ),
    "one bit flipped": (flip, "checklist.chk says"),
    "listed and missing": (
        lambda f: (f / "checklist.chk").write_text(f"{'0' * 32}  LICENSE\n"),
        "LICENSE is missing, which",
    ),
    "damaged checklist": (lambda f: (f / "checklist.chk").write_text("\n<html>\n"), "checklist.chk, line 2 is no md5"),
    "checklist that leads away": (
        lambda f: (f / "checklist.chk").write_text(f"{'0' * 32}  ../x\n"),
        "checklist.chk, line 1 names '../x', which is not in the folder",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.model").unlink(), "has no tokenizer.model"),
    "damaged tokenizer": (
        lambda f: [(f / "tokenizer.model").write_bytes(b"x"), seal(f)],
        "tokenizer.model is no SentencePiece model",
    ),
    "no params.json": (lambda f: (f / "params.json").unlink(), "has neither params.json nor auto/params.json"),
    "another vocabulary": (
        lambda f: change_params(f, vocab_size=32000),
        "params.json says vocab_size 32000, the embedding has 800 rows",
    ),
    "unknown entry": (lambda f: change_params(f, sliding_window=4096), "params.json: sliding_window=4096 is none of"),
    "no number": (lambda f: change_params(f, dim="64"), "params.json: dim is '64', not a positive number"),
    "half a head": (lambda f: change_params(f, n_heads=1), "says 1 key-value heads, which 2 files cannot share"),
    "odd heads": (lambda f: change_params(f, n_heads=5), "dim 64, n_heads 5 and n_kv_heads 5 do not fit"),
    "target in use": (lambda f: (f.parent / "out").touch(), "out exists already"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_and_leave_nothing(
    original: Make, convert: Callable[..., Path], tmp_path: Path, fault: str
) -> None:
    spoil, said = FAULTS[fault]
    folder, _ = original()
    spoil(folder)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        convert(folder)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == before  # no witness of code either


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model_size": "13B"}, "--model_size 13B has dim 5120, 40 layers, 40 key-value heads, but"),
        ({"model_size": "12B"}, "--model_size 12B is not known; take 1B, 3B"),
        ({"llama_version": 3}, "--llama_version 3 cannot be: tokenizer.model is a SentencePiece model"),
        ({"llama_version": 4}, "--llama_version 4 is not known"),
        ({"num_shards": 4}, "--num_shards 4, but"),
        ({"safe_serialization": False}, "only safetensors is written"),
        ({"push_to_hub": True}, "unknown option --push_to_hub"),
        ({"max_shard_size": "big"}, "'big' is no size"),
        ({"instruct": "yes"}, "--instruct takes True or False"),
    ],
)
def test_options_that_cannot_be(
    original: Make, convert: Callable[..., Path], tmp_path: Path, options: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError) as caught:
        convert(original()[0], **options)
    assert said in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_versions_that_contradict_the_files(original: Make, convert: Callable[..., Path]) -> None:
    three, scaled = original(THREE, name="three")[0], original(SCALED, name="scaled")[0]
    for folder, version, said in (
        (three, "2", "tokenizer.model is a table of ranks"),
        (three, 3.1, "params.json has no use_scaled_rope"),
        (scaled, "3", "params.json has use_scaled_rope"),
    ):
        with pytest.raises(ValueError, match=said):
            convert(folder, llama_version=version)
    (three / "tokenizer.model").write_bytes((three / "tokenizer.model").read_bytes()[:-2])
    seal(three)
    with pytest.raises(ValueError, match=r"tokenizer\.model is damaged in line 556"):
        convert(three)


def test_another_models_tokenizer_is_refused(original: Make, convert: Callable[..., Path], ranks_table: Path) -> None:
    folder, _ = original()
    (folder / "tokenizer.model").write_bytes(ranks_table.read_bytes())
    seal(folder)
    with pytest.raises(ValueError, match=r"tokenizer.model has 812 tokens, the embedding in .* 800 rows"):
        convert(folder)


def test_the_command_ends_with_status_2_and_one_line(original: Make, tmp_path: Path, run_script: RunScript) -> None:
    folder, _ = original()
    flip(folder)
    options = ("--input_dir", folder, "--model_size", "auto", "--output_dir", tmp_path / "out")
    done = run_script("tools/convert_llama.py", *options, status=2)
    assert done.stderr.startswith(f"error: {folder}/consolidated.01.pth has md5 ")
    assert done.stderr.endswith("; get it again\n")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


# --- memory -----------------------------------------------------------------------------------------------------------


def anonymous() -> int:
    """Bytes of memory that this process holds, without what is mapped from files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is told by /proc")
def test_memory_does_not_grow_with_the_tensors(original: Make, tmp_path: Path) -> None:
    """Less than one tensor is held besides the mapped files: here of 17 MB, in 120 MB of weights."""
    params = TINY | {"dim": 1024, "n_heads": 8, "multiple_of": 8192}
    state = {name: torch.zeros_like(value) for name, value in random_state(params, 800, torch.float16).items()}
    largest = max(value.nbytes for value in state.values())
    folder = write_original(tmp_path / "big", params, state, original()[0] / "tokenizer.model", ranks=2)
    del state
    found = convert_llama.read_original(folder, "auto", "")
    weights = {weight.spec.name: weight for weight in found.weights}
    peak, done, start = 0, threading.Event(), anonymous()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    target = tmp_path / "out"
    target.mkdir()
    specs = [weight.spec for weight in weights.values()]
    write_shards(target, specs, lambda spec: llama_layout.stream(weights[spec.name]), 10**10)
    done.set()
    watcher.join()
    assert 0 < peak - start < largest
