"""tools/convert_llama.py: every fault is named, nothing is left behind, and little memory is used."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_io.tensor_files import write_shards
from in_process import RunTool
from llama_conversion import llama_layout
from llama_conversion.original_checkpoint import read_original
from original_llama import SCALED, THREE, TINY, Make, change, change_params, flip, random_state, seal, write_original


class Code:
    """An object whose unrestricted unpickling creates the file `witness`."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.witness,)


def damage_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"x")
    seal(folder)


WQ = "layers.0.attention.wq.weight"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "last file missing": (
        lambda f: (f / "consolidated.01.pth").unlink(),
        "consolidated.00.pth: tensor tok_embeddings.weight has the shape [800, 32], but params.json requires [800, 64] "
        "for the whole tensor (files here: 1); download all files again",
    ),
    "first file missing": (lambda f: (f / "consolidated.00.pth").unlink(), "consolidated.00.pth is missing"),
    "a file too many": (
        lambda f: shutil.copyfile(f / "consolidated.01.pth", f / "consolidated.02.pth"),
        "4 key-value heads cannot be split among 3 files; remove files of other models",
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
        "consolidated.00.pth contains bias",
    ),
    "wrong shape": (
        lambda f: change(f, lambda part: part.update({WQ: part[WQ][:-1].clone()}), 1),
        f"consolidated.01.pth: tensor {WQ} has the shape [31, 64], but params.json requires [64, 64] for the whole "
        "tensor (files here: 2)",
    ),
    "another width": (
        lambda f: change_params(f, multiple_of=256),
        "consolidated.00.pth: tensor layers.0.feed_forward.w1.weight has the shape [96, 64], but params.json requires "
        "[256, 64] for the whole tensor (files here: 2)",
    ),
    "integers": (
        lambda f: change(f, lambda part: part.update({WQ: part[WQ].view(torch.int16)}), 0),
        f"consolidated.00.pth: tensor {WQ} has the type I16",
    ),
    "norms that differ": (
        lambda f: change(f, lambda part: part["norm.weight"].add_(0.001), 1),
        "consolidated.01.pth: model.norm.weight differs by",
    ),
    "one bit flipped": (flip, "checklist.chk says"),
    "listed and missing": (
        lambda f: (f / "checklist.chk").write_text(f"{'0' * 32}  LICENSE\n"),
        "checklist.chk lists, is missing",
    ),
    "damaged checklist": (
        lambda f: (f / "checklist.chk").write_text("\n<html>\n"),
        "checklist.chk, line 2 is not an md5",
    ),
    "checklist that leads away": (
        lambda f: (f / "checklist.chk").write_text(f"{'0' * 32}  ../x\n"),
        "checklist.chk, line 1 names '../x', which is not in the folder",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.model").unlink(), "nor the folder above has tokenizer.model"),
    "damaged tokenizer": (
        damage_tokenizer,
        "tokenizer.model is not a SentencePiece model",
    ),
    "no params.json": (lambda f: (f / "params.json").unlink(), "has neither params.json nor auto/params.json"),
    "another vocabulary": (
        lambda f: change_params(f, vocab_size=32000),
        "params.json says vocab_size 32000, the embedding has 800 rows",
    ),
    "unknown entry": (
        lambda f: change_params(f, sliding_window=4096),
        "sliding_window=4096 is not supported by LLaMA text models",
    ),
    "no number": (
        lambda f: change_params(f, dim="64"),
        "params.json: dim='64' is not supported by LLaMA text models (Input should be a valid integer)",
    ),
    "name that is not Unicode": (
        lambda f: change_params(f, **{"\ud800": 2}),
        "params.json: an entry is not supported by LLaMA text models (Input should be a valid string",
    ),
    "endless layers": (lambda f: change_params(f, n_layers=2**62), "is damaged (n_layers is 4611686018427387904, more"),
    "half a head": (lambda f: change_params(f, n_heads=1), "1 key-value heads cannot be split among 2 files"),
    "odd heads": (lambda f: change_params(f, n_heads=5), "dim 64, n_heads 5 and n_kv_heads 5 contradict each other"),
    "target in use": (lambda f: (f.parent / "out").touch(), "out exists already"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_conversion_faults_name_the_file_and_leave_nothing(
    original: Make, convert: Callable[..., Path], tmp_path: Path, fault: str
) -> None:
    damage, message = FAULTS[fault]
    folder, _ = original()
    damage(folder)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        convert(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == before  # also no `witness`: the code was not executed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_size": "13B"}, "--model_size 13B has dim 5120, 40 layers, 40 key-value heads, but"),
        ({"model_size": "12B"}, "--model_size 12B is unknown; use 1B, 3B"),
        ({"llama_version": "3"}, "--llama_version 3 contradicts the files: tokenizer.model is a SentencePiece model"),
        ({"llama_version": "4"}, "--llama_version 4 is unknown"),
        ({"max_shard_size": "big"}, "'big' is not a size"),
    ],
)
def test_conversion_refuses_invalid_options(
    original: Make, convert: Callable[..., Path], tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        convert(original()[0], **options)
    assert message in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_conversion_refuses_version_that_contradicts_files(original: Make, convert: Callable[..., Path]) -> None:
    three, scaled = original(THREE, name="three")[0], original(SCALED, name="scaled")[0]
    for folder, version, message in (
        (three, "2", "tokenizer.model is a rank table"),
        (three, "3.1", "params.json has no use_scaled_rope"),
        (scaled, "3", "params.json has use_scaled_rope"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(folder, llama_version=version)
    (three / "tokenizer.model").write_bytes((three / "tokenizer.model").read_bytes()[:-2])
    seal(three)
    with pytest.raises(ValueError, match=r"tokenizer\.model is damaged: line 556 is not"):
        convert(three)


def test_conversion_refuses_tokenizer_of_other_model(
    original: Make, convert: Callable[..., Path], ranks_table: Path
) -> None:
    folder, _ = original()
    (folder / "tokenizer.model").write_bytes(ranks_table.read_bytes())
    seal(folder)
    with pytest.raises(ValueError, match=r"tokenizer.model has 812 tokens, but the embedding in .* has 800 rows"):
        convert(folder)


@pytest.mark.parametrize(
    ("option", "message"),
    [("--push_to_hub=True", "unknown option --push_to_hub"), ("--instruct=yes", "--instruct takes True or False")],
)
def test_convert_llama_refuses_unknown_option_and_text_for_boolean(
    original: Make, tmp_path: Path, run_tool: RunTool, option: str, message: str
) -> None:
    options = ("--input_dir", original()[0], "--model_size", "auto", "--output_dir", tmp_path / "out")
    assert message in run_tool("tools/convert_llama.py", *options, option, status=2).stderr


def test_convert_llama_error_is_one_line_with_status_2(original: Make, tmp_path: Path, run_tool: RunTool) -> None:
    folder, _ = original()
    flip(folder)
    options = ("--input_dir", folder, "--model_size", "auto", "--output_dir", tmp_path / "out")
    done = run_tool("tools/convert_llama.py", *options, status=2)
    assert done.stderr.startswith(f"error: {folder}/consolidated.01.pth has md5 ")
    assert done.stderr.endswith("; download it again\n")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def anonymous_memory() -> int:
    """Return the bytes of memory that this process holds, without memory-mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


@pytest.mark.integration
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc")
def test_conversion_memory_does_not_grow_with_tensors(original: Make, tmp_path: Path) -> None:
    """Besides the mapped files, less memory is held than the largest tensor takes: 17 MB of 120 MB of weights."""
    params = TINY | {"dim": 1024, "n_heads": 8, "multiple_of": 8192}
    state = {name: torch.zeros_like(value) for name, value in random_state(params, 800, torch.float16).items()}
    largest = max(value.nbytes for value in state.values())
    folder = write_original(tmp_path / "big", params, state, original()[0] / "tokenizer.model", ranks=2)
    del state
    found = read_original(folder, "auto", "")
    weights = {weight.spec.name: weight for weight in found.weights}
    peak, done, start = 0, threading.Event(), anonymous_memory()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    target = tmp_path / "out"
    target.mkdir()
    specs = [weight.spec for weight in weights.values()]
    write_shards(target, specs, lambda spec: llama_layout.stream_weight(weights[spec.name]), 10**10)
    done.set()
    watcher.join()
    assert 0 < peak - start < largest
