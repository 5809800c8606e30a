"""tools/export_gguf.py: llama.cpp computes the same as transformers; models for which it would not are refused.

llama.cpp runs as the server of the package xllamacpp; without it, or without gguf, those tests are skipped.
"""

import importlib.util
import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import export_gguf
import numpy as np
import pytest
import torch
from gguf_files import gguf_writer
from in_process import RunTool
from llama_cpp_server import FAMILIES, Ask, Make, Serve, edit, keys
from safetensors.torch import load_file, save_file

gguf = pytest.importorskip("gguf")

SCRIPT = "tools/export_gguf.py"


def differences(folder: Path, ask: Ask) -> tuple[float, float]:
    """Return two maximum differences in nats over 16 greedy tokens of llama.cpp after a prompt of 100 ids.

    The first is from the best log-probability of transformers in float32 to that of llama.cpp's token. The second is
    between the log-probabilities of both libraries for the five tokens that llama.cpp ranks best.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = [1, *torch.randint(3, 800, (99,), generator=torch.Generator().manual_seed(1)).tolist()]
    body = {
        "prompt": prompt,
        "n_predict": 16,
        "temperature": 0,
        "n_probs": 5,
        "return_tokens": True,
        "ignore_eos": True,
    }
    answer = ask("/completion", body)
    tokens, reported = answer["tokens"], answer["completion_probabilities"]
    assert len(tokens) == 16
    with torch.no_grad():
        ours = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    behind = max((row.max() - row[token]).item() for row, token in zip(ours, tokens, strict=True))
    apart, compared = 0.0, 0
    for row, token in zip(ours, tokens, strict=True):  # the server reports no token that is half a character
        if compared < len(reported) and reported[compared]["id"] == token:
            best = reported[compared]["top_logprobs"]
            apart = max(apart, *(abs(row[entry["id"]].item() - entry["logprob"]) for entry in best))
            compared += 1
    assert compared == len(reported) > 8
    return behind, apart


@pytest.mark.integration
@pytest.mark.parametrize("case", FAMILIES)
def test_llama_cpp_logits_equal_those_of_transformers(make: Make, serve: Serve, tmp_path: Path, case: str) -> None:
    kind, settings = FAMILIES[case]
    folder, file = make(kind, **settings), tmp_path / "model.gguf"
    export_gguf.main(str(folder), str(file), "f32")
    behind, apart = differences(folder, serve(file))
    assert behind == 0.0
    assert apart < 1e-3


@pytest.mark.integration
# Allowed difference of log-probabilities of a random model, in nats: about three times the measured difference.
@pytest.mark.parametrize(("kind", "nats"), [("f16", 0.0015), ("bf16", 0.02), ("q8_0", 0.05), ("q4_0", 0.6)])
def test_logits_of_smaller_types_are_close(make: Make, serve: Serve, tmp_path: Path, kind: str, nats: float) -> None:
    folder, file = make(initializer_range=0.05), tmp_path / "model.gguf"
    export_gguf.main(str(folder), str(file), kind)
    behind, apart = differences(folder, serve(file))
    assert behind == 0.0 if kind == "f16" else behind < nats
    assert apart < nats


def reordered(name: str, weight: np.ndarray, heads: dict[str, int]) -> np.ndarray:
    """Return a matrix; those of q and k with their rows in llama.cpp's order."""
    if (count := heads.get(name.split(".")[-2], 0)) == 0:
        return weight
    width = len(weight) // count
    half = width // 2
    return np.stack([weight[h * width + i + j * half] for h in range(count) for i in range(half) for j in range(2)])


LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def pairs(folder: Path, file: Path) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield (tensor of the GGUF file, float32 weights that it was made from) for every tensor."""
    weights = load_file(folder / "model.safetensors")
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    names |= {f"blk.{layer}.{key}": f"model.layers.{layer}.{name}" for layer in range(2) for key, name in LAYER.items()}
    tensors = gguf.GGUFReader(file).tensors
    assert {tensor.name for tensor in tensors} == {f"{name}.weight" for name in names}
    for tensor in tensors:
        name = names[tensor.name.removesuffix(".weight")] + ".weight"
        yield tensor, reordered(name, weights[name].float().numpy(), {"q_proj": 4, "k_proj": 2})


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_values_that_a_type_can_hold_are_exact(make: Make, tmp_path: Path, stored: torch.dtype) -> None:
    folder = make()
    state = {name: value.to(stored) for name, value in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    for kind, dtype in (("f32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)):
        file = tmp_path / f"{kind}.gguf"
        export_gguf.main(str(folder), str(file), kind)
        for tensor, weight in pairs(folder, file):
            written = dtype if weight.ndim == 2 else torch.float32
            bits = torch.from_numpy(weight).to(written).view(torch.uint8).numpy()
            assert tensor.tensor_type.name == {torch.float32: "F32", torch.float16: "F16"}.get(written, "BF16")
            assert np.array_equal(np.array(tensor.data).view(np.uint8).reshape(-1), bits.reshape(-1)), tensor.name


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_quantised_weights_differ_by_at_most_one_step(make: Make, tmp_path: Path, kind: str) -> None:
    """q8_0 errs by half a step, largest / 127; q4_0 by up to a step, largest / 8, because its range is -8 to 7."""
    folder, file = make(), tmp_path / "model.gguf"
    export_gguf.main(str(folder), str(file), kind)
    for tensor, weight in pairs(folder, file):
        if weight.ndim == 1:
            assert tensor.tensor_type.name == "F32"
            assert np.array_equal(tensor.data, weight)
            continue
        found = "Q8_0" if tensor.name == "output.weight" else kind.upper()
        assert tensor.tensor_type.name == found
        largest = np.abs(weight.reshape(-1, 32)).max(axis=1, keepdims=True)
        bound = largest * ({"Q8_0": 0.5 / 127, "Q4_0": 1 / 8}[found] + 2**-11)  # the scale is rounded to float16
        error = np.abs(gguf.quants.dequantize(tensor.data, tensor.tensor_type) - weight)
        assert (error.reshape(-1, 32) <= bound).all(), tensor.name
        assert error.max() > 0


def test_q4_0_stores_tied_embedding_as_q8_0(make: Make, tmp_path: Path) -> None:
    export_gguf.main(str(make(tie_word_embeddings=True)), str(tmp_path / "model.gguf"), "q4_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert "output.weight" not in kinds
    assert (kinds["token_embd.weight"], kinds["blk.0.attn_q.weight"]) == ("Q8_0", "Q4_0")


def test_rows_not_divisible_into_blocks_are_written_as_f16(
    make: Make, serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = make(intermediate_size=80, initializer_range=0.05), tmp_path / "model.gguf"
    export_gguf.main(str(folder), str(file), "q8_0")
    output = capsys.readouterr()
    assert "notice: blk.1.ffn_down.weight has 80 columns, not a multiple of 32; it is stored as f16" in output.err
    assert "21 tensors (14 q8_0, 5 f32, 2 f16)" in output.out
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert {name for name, kind in kinds.items() if kind == "F16"} == {f"blk.{i}.ffn_down.weight" for i in range(2)}
    assert differences(folder, serve(file))[1] < 0.05


def test_chunk_size_does_not_change_gguf_file(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make()
    for size in (1 << 20, 1000):
        monkeypatch.setattr(gguf_writer, "CHUNK", size)
        export_gguf.main(str(folder), str(tmp_path / f"{size}.gguf"), "q4_0")
    assert (tmp_path / "1000.gguf").read_bytes() == (tmp_path / f"{1 << 20}.gguf").read_bytes()


CONFIGURATIONS: dict[str, tuple[dict[str, object], str]] = {
    "architecture": ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported"),
    "none": ({"architectures": None, "model_type": "llama"}, "llama is not supported"),
    "quantised": ({"quantization_config": {"quant_method": "gptq"}}, "model is quantised; export the original model"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
    "window": ({"sliding_window": 100}, "sliding_window=100"),
    "rope": ({"rope_parameters": {"rope_type": "dynamic", "factor": 2}}, "rotary embeddings of type 'dynamic'"),
    "older rope": ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "Missing required keys"),
    "yarn": (
        {"rope_parameters": {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 9, "beta_fast": 16}},
        "beta_fast=16 of the rotary embeddings",
    ),
    "missing width": ({"intermediate_size": None}, "has the shape [64, 96], but config.json requires [64, 11008]"),
    "more layers": ({"num_hidden_layers": 3}, "no tensor model.layers.2."),
    "fewer layers": ({"num_hidden_layers": 1}, "does not belong to the model of config.json"),
    "invalid number": ({"intermediate_size": "96"}, "config.json: Validation error for field 'intermediate_size'"),
    "other width": ({"intermediate_size": 64}, "has the shape [64, 96], but config.json requires [64, 64]"),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_export_refuses_settings_that_llama_cpp_computes_differently(make: Make, tmp_path: Path, case: str) -> None:
    changes, message = CONFIGURATIONS[case]
    folder = make()
    edit(folder / "config.json", **changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        export_gguf.main(str(folder), str(tmp_path / "out.gguf"), "f32")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_export_refuses_values_that_type_cannot_hold(make: Make, tmp_path: Path) -> None:
    folder = make()
    state = load_file(folder / "model.safetensors")
    for value, kinds in ((70000.0, ("f16",)), (float("nan"), ("f16", "bf16", "q8_0", "q4_0"))):
        state["model.layers.1.mlp.up_proj.weight"][5, 7] = value
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        for kind in kinds:
            with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight contains (7e\+04|nan)"):
                export_gguf.main(str(folder), str(tmp_path / "out.gguf"), kind)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--type", "q3_k_s", "--type q3_k_s is unknown; use one of f32, f16, "),
        ("--model_path", "none", "none is not a folder"),
        ("--output_file", "model.bin", "model.bin does not end in .gguf"),
        ("--output_file", "model/config.json/out.gguf", "out.gguf cannot be written ("),
    ],
)
def test_export_refuses_unknown_type_and_bad_paths(
    make: Make, tmp_path: Path, option: str, value: str, message: str
) -> None:
    options: dict[str, Any] = {"model_path": str(make()), "output_file": "out.gguf"} | {option[2:]: value}
    options["output_file"] = str(tmp_path / options["output_file"])
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        export_gguf.main(**options)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_export_refuses_unknown_option(tmp_path: Path, run_tool: RunTool) -> None:
    arguments = ("--model_path", "none", "--output_file", tmp_path / "out.gguf", "--shards", 2)
    assert "unknown option --shards" in run_tool(SCRIPT, *arguments, status=2).stderr


def test_export_keeps_existing_file_and_removes_partial_one(
    make: Make, tmp_path: Path, run_tool: RunTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = make(), tmp_path / "out.gguf"
    arguments = ("--model_path", folder, "--output_file", file, "--type", "f32")
    file.write_text("here before")
    done = run_tool(SCRIPT, *arguments, status=2)
    assert done.stderr == f"error: {file} exists already; name a new file or remove it\n"
    assert file.read_text() == "here before"
    file.unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        done = run_tool(SCRIPT, *arguments, status=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"error: {file} cannot be written (File too large" in done.stderr
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    with pytest.raises(ValueError, match=r"out\.gguf needs 0\.00 GB more and its disk has 0\.00 GB free"):
        export_gguf.main(str(folder), str(file), "f32")
    monkeypatch.undo()
    run_tool("tools/checkpoint.py", "seal", folder)
    with pytest.raises(
        ValueError, match=r"model/new\.gguf is inside the sealed folder .*/model, which must not change"
    ):
        export_gguf.main(str(folder), str(folder / "new.gguf"), "f32")
    (folder / "generation_config.json").write_text("{}")
    with pytest.raises(ValueError, match="the seal says"):
        export_gguf.main(str(folder), str(file), "f32")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_q4_k_m_is_written_by_llama_cpp(
    make: Make, serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which takes minutes to compile")
    folder, file = make(hidden_size=256, intermediate_size=512), tmp_path / "model.gguf"
    export_gguf.main(str(folder), str(file), "q4_k_m")
    assert "21 tensors (" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.gguf"]
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert (kinds["blk.0.attn_q.weight"], kinds["output.weight"]) == ("Q4_K", "Q6_K")
    assert keys(file)["general.file_type"] == 15
    assert len(serve(file)("/completion", {"prompt": "Hello", "n_predict": 4})["content"]) > 0
    (tmp_path / "no.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"llama\.cpp could not quantise .*no\.gguf: .*fail"):
        gguf_writer.quantise_q4_k_m(tmp_path / "no.gguf", tmp_path / "out.gguf")


def test_q4_k_m_without_quantiser_names_install_command(make: Make, tmp_path: Path) -> None:
    if importlib.util.find_spec("llama_cpp"):
        pytest.skip("llama-cpp-python is here")
    with pytest.raises(ValueError, match="pip install llama-cpp-python"):
        export_gguf.main(str(make()), str(tmp_path / "out.gguf"), "q4_k_m")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
