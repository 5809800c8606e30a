"""The work of the tools on weights grows linearly with the number of tensors."""

import gc
import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import checkpoint
import export_gguf
import pytest
import quantize
import torch
import weight_diff
from conftest import QUANTISED
from llama_cpp_server import write_model
from safetensors.torch import save_file
from transformers.utils.import_utils import is_bitsandbytes_available


def model_of_many_tensors(folder: Path, source: Path, count: int, seed: int) -> Path:
    """Write a model of `count` small matrices in one shard, with the small files of another model."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors", "run.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt_neox", "vocab_size": 800}))
    generator = torch.Generator().manual_seed(seed)
    state = {f"layers.{i // 8}.w{i % 8}.weight": torch.randn(4, 4, generator=generator) for i in range(count)}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def adapter_of_many_modules(folder: Path, count: int) -> Path:
    """Write an adapter for all modules of `model_of_many_tensors`, with an entry in rank_pattern for each."""
    folder.mkdir()
    modules = [f"layers.{i // 8}.w{i % 8}" for i in range(count)]
    state = {f"base_model.model.{module}.lora_A.weight": torch.ones(2, 4) for module in modules}
    state |= {f"base_model.model.{module}.lora_B.weight": torch.ones(4, 2) for module in modules}
    save_file(state, folder / "adapter_model.safetensors")
    lists = {"target_modules": modules, "rank_pattern": dict.fromkeys(modules, 2)}
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "alpha_pattern": dict.fromkeys(modules, 2)} | lists
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def calls_of(work: Callable[[], object]) -> int:
    """Return the number of calls of Python and C functions on this thread.

    The garbage collector is disabled, because it would also run finalizers of objects from earlier tests.
    """
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    gc.collect()
    gc.disable()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return calls


def check_linear(counts: dict[str, list[int]]) -> None:
    """Fail if twice the tensors take much more than twice the calls. counts: calls of four runs, without the first."""
    for name, (_, few, more, most) in counts.items():
        assert most - more < 2.3 * (more - few) + 500, f"{name}: {few}, {more} and {most} calls"


@pytest.mark.integration
def test_work_grows_linearly_with_the_number_of_tensors(tiny_checkpoint: Path, tmp_path: Path) -> None:
    counts: dict[str, list[int]] = {}
    for number in (8, 32, 64, 128):  # the first run also imports the libraries
        top = tmp_path / str(number)
        top.mkdir()
        base, tuned = (str(model_of_many_tensors(top / f"model{i}", tiny_checkpoint, number, i)) for i in range(2))
        lora = str(adapter_of_many_modules(top / "lora", number))
        diff, added, back, merged = (str(top / name) for name in ("diff", "added", "back", "merged"))
        commands: dict[str, Callable[[], object]] = {
            "make_diff": partial(weight_diff.make_diff, base, tuned, diff),
            "make_diff additive": partial(weight_diff.make_diff, base, tuned, added, exact=False),
            "recover": partial(weight_diff.recover, base, diff, back),
            "inspect": partial(weight_diff.inspect, diff),
            "merge": partial(weight_diff.merge, base, [lora], merged),
            "seal": partial(checkpoint.seal, merged),
            "verify": partial(checkpoint.verify, merged),
        }
        for name, command in commands.items():
            counts.setdefault(name, []).append(calls_of(command))
    check_linear(counts)


SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 1, "num_key_value_heads": 1}


def test_gguf_export_grows_linearly_with_the_number_of_tensors(tiny_tokenizer: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    counts: dict[str, list[int]] = {}
    for layers in (2, 16, 32, 64):
        model = str(write_model(tmp_path / f"{layers}", tiny_tokenizer, num_hidden_layers=layers, **SMALL))
        for kind in ("f16", "q8_0"):
            target = str(tmp_path / f"{layers}-{kind}.gguf")
            work = partial(export_gguf.main, model, target, kind)
            counts.setdefault(kind, []).append(calls_of(work))
    check_linear(counts)


@pytest.mark.integration
def test_quantisation_grows_linearly_with_the_number_of_tensors(
    tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.syspath_prepend(str(QUANTISED))
    pytest.importorskip("bitsandbytes")
    forget = is_bitsandbytes_available.cache_clear  # the answer may be cached by an earlier test
    forget()
    request.addfinalizer(forget)
    counts: dict[str, list[int]] = {}
    for layers in (2, 16, 32, 64):
        model = str(write_model(tmp_path / f"{layers}", tiny_tokenizer, num_hidden_layers=layers, **SMALL))
        work = partial(quantize.main, model, str(tmp_path / f"{layers}-nf4"), "nf4")
        counts.setdefault("nf4", []).append(calls_of(work))
    check_linear(counts)
