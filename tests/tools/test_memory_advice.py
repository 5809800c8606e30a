"""checkpoint.py memory: its estimates against real models, libraries and published figures; its table and errors."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from compressed_tensors.quantization import preset_name_to_scheme
from conftest import QUANTISED, needs_bitsandbytes
from in_process import RunTool
from live_memory import LiveMemory, drop_gradients
from memory_advice import gpu_uses
from memory_advice.memory_table import PUBLISHED_SHAPES, memory_table
from memory_estimate.model_shape import Shape, parameter_count
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

SCRIPT = "tools/checkpoint.py"
GIB, SHARE = 2**30, 0.92


def real_model(shape: Shape) -> Any:
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    return model.to(torch.bfloat16)


@pytest.mark.parametrize(
    "shape",
    [Shape(1000, 256, 704, 3, 4, 4, 64, 2048), Shape(1000, 512, 1024, 2, 8, 2, 64, 2048)],
    ids=["many-key-value-heads", "few-key-value-heads"],
)
def test_cache_and_activations_of_a_prompt_equal_the_peak_of_the_real_model(shape: Shape) -> None:
    model, tokens = real_model(shape).eval(), 1024
    with torch.no_grad(), LiveMemory(without=model.parameters()) as memory:
        output = model(torch.zeros(1, tokens, dtype=torch.long), use_cache=True, logits_to_keep=1)
    layers = output.past_key_values.layers
    cache = tokens * gpu_uses.cache_bytes_per_token(shape)
    assert sum(layer.keys.nbytes + layer.values.nbytes for layer in layers) == cache
    estimate = cache + gpu_uses.prefill_activation_bytes(shape, tokens)
    assert memory.peak == pytest.approx(estimate, rel=0.03)


@pytest.mark.parametrize("is_quantised", [False, True], ids=["lora", "qlora"])
@pytest.mark.parametrize(
    "shape",
    [Shape(4000, 128, 352, 2, 4, 4, 32, 2048), Shape(400, 256, 704, 2, 8, 2, 32, 2048)],
    ids=["large-vocabulary", "small-vocabulary"],
)
def test_lora_bytes_equal_the_peak_of_a_real_step(shape: Shape, is_quantised: bool) -> None:
    """A step of 4 examples of 512 tokens with PEFT; the quantised linear layers are replaced by bf16 ones."""
    model: Any = peft.get_peft_model(
        real_model(shape).train(),
        peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    wide = ("embed_tokens", "norm", "lm_head") if is_quantised else ()  # as prepare_model_for_kbit_training does
    for name, weight in model.named_parameters():
        if weight.requires_grad or any(word in name for word in wide):
            weight.data = weight.data.float()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable()
    drop_gradients(model)
    ids = torch.zeros(1, 4 * 512, dtype=torch.long)
    with LiveMemory(without=model.parameters()) as memory:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits.float().flatten(0, 1)
            loss = cross_entropy(logits, ids.flatten(), reduction="none").sum()
            del logits
        loss.backward()
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    frozen = sum(weight.nbytes for weight in model.parameters() if not weight.requires_grad)
    bits = 4 + 0.126953125 if is_quantised else 16
    linear = shape.layers * (2 * shape.hidden * (shape.query + shape.key) + 3 * shape.hidden * shape.intermediate)
    measured = frozen - linear * (16 - bits) / 8 + 16 * trained + memory.peak
    estimate = gpu_uses.lora_tuning_bytes(shape, gpu_uses.NF4_BITS if is_quantised else 16)
    assert estimate == pytest.approx(measured, rel=0.03)


@pytest.mark.integration
@needs_bitsandbytes
def test_quantised_linear_layers_take_as_many_bytes_as_in_bitsandbytes() -> None:
    code = """
import bitsandbytes, torch

eight = bitsandbytes.nn.Linear8bitLt(512, 1024, bias=False, has_fp16_weights=False)
four = bitsandbytes.nn.Linear4bit(512, 1024, bias=False, quant_type="nf4")  # with double quantisation
eight, four = (layer.to(torch.float16).to("cpu").weight for layer in (eight, four))
state = four.quant_state
print(eight.nbytes + eight.SCB.nbytes, four.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes)
"""
    command, environment = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": str(QUANTISED)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    eight, four = map(int, done.stdout.split())
    assert eight == 512 * 1024 + 4 * 1024
    assert four == pytest.approx(512 * 1024 * gpu_uses.NF4_BITS / 8, rel=1e-4)


def test_bits_of_quantised_weights_equal_those_of_their_sources() -> None:
    assert pytest.approx(4.127, abs=1e-3) == gpu_uses.NF4_BITS  # QLoRA, section 3: 0.127 bits of constants
    scheme = preset_name_to_scheme("W4A16", ["Linear"]).weights
    assert (scheme.num_bits, scheme.group_size, scheme.symmetric) == (4, 128, True)
    assert gpu_uses.GPTQ_BITS == 4 + 16 / 128


def rows_of(table: str) -> dict[str, list[str]]:
    """Return {"use bits": texts of the other columns} of a table."""
    rows = [line.split("  ") for line in table.split("\n\n")[1].splitlines()[1:]]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    return {f"{name} {bits}": rest for name, bits, *rest in cells}


def needed(size: float) -> str:
    return f"{size / SHARE / GIB:.1f}"


def test_table_of_llama_13b_has_the_values_of_the_arithmetic(run_tool: RunTool) -> None:
    parameters, outside = 13_015_864_320, 2 * 32000 * 5120 + 81 * 5120
    linear, cache = parameters - outside, 2048 * 2 * 2 * 40 * 5120
    weights = {16: 2 * parameters, 8: linear + 4 * 40 * (5 * 5120 + 2 * 13824) + 2 * outside}
    demo = 2048 * (8 * 5120 + 6 * 13824)
    server = demo + 256 * 12 * 32000
    factors = 16 * 40 * (8 * 5120 + 3 * (5120 + 13824))
    lora = 2 * parameters + 16 * factors + 2048 * (40 * 2 * 5120 + 8 * 5120 + 12 * 32000)
    qlora = linear * 4.126953125 / 8 + 4 * outside + 16 * factors + 2 * 5120 * (32000 + 13824)
    qlora += 2048 * (40 * 4 * 5120 + 8 * 5120 + 12 * 32000)
    full = 4e8 + 2 * 32000 * 5120 + 2e9 + 2048 * (40 * 2 * 5120 + 8 * 5120 + 12 * 32000)
    step = 4 * 1e9
    rows = rows_of(run_tool(SCRIPT, "memory", "13B", "--gpu_memory", "24").stdout)
    left = SHARE * 24 * GIB - weights[8] - server
    assert rows == {
        "demo 16": [needed(weights[16] + demo + cache), "no"],
        "demo --load_8bit 8": [needed(weights[8] + demo + cache), "yes"],
        "demo after quantize.py --method nf4 4": [
            needed(linear * 4.126953125 / 8 + 2 * outside + demo + cache), "yes",
        ],
        "server 16": [needed(weights[16] + server + cache), "no"],
        "server after quantize.py --method fp8 8": [
            needed(weights[8] + server + cache), f"yes, {int(left * 2048 / cache) // 16 * 16:,} tokens of KV cache",
        ],
        "server after quantize.py --method gptq 4": [
            needed(linear * 4.125 / 8 + 2 * outside + server + cache), "yes, 19,712 tokens of KV cache",
        ],
        "lora.sh 16": [needed(lora), "no"],
        "lora.sh --load_in 8bit 8": [needed(qlora + weights[8] - linear * 4.126953125 / 8 - 2 * outside), "yes"],
        "qlora.sh 4": [needed(qlora), "yes"],
        "full.sh, 1 GPU 16": [needed(16 * parameters + max(full, step)), "no"],
        "full.sh, each of 8 GPUs 16": [needed(2 * parameters + max(full, step)), "no"],
        "full.sh, each of 8 GPUs, zero3-offload-optimizer 16": [needed(parameters / 4 + full), "yes"],
    }  # fmt: skip


def test_published_statements_about_cards_are_confirmed(run_tool: RunTool) -> None:
    """QLoRA, abstract: a 65B model on a card of 48 GB. finetune/scripts: 13B on 16 GB; LoRA of 13B on V100 of 32 GB."""

    def fits(size: str, card: float, row: str) -> bool:
        return rows_of(run_tool(SCRIPT, "memory", size, "--gpu_memory", card).stdout)[row][1].startswith("yes")

    assert fits("7B", 16, "server 16")
    assert not fits("7B", 12, "server 16")
    assert fits("13B", 15.7, "qlora.sh 4")
    assert not fits("13B", 11, "qlora.sh 4")
    assert fits("13B", 32, "lora.sh 16")  # finetune/scripts/lora.sh
    assert fits("70B", 141, "lora.sh --load_in 8bit 8")
    llama_65b = Shape(32000, 8192, 22016, 80, 64, 64, 128, 2048)
    assert gpu_uses.lora_tuning_bytes(llama_65b, gpu_uses.NF4_BITS) < SHARE * 48 * GIB


def test_server_row_names_longest_context_if_the_whole_does_not_fit(run_tool: RunTool) -> None:
    row = rows_of(run_tool(SCRIPT, "memory", "1B", "--gpu_memory", "6").stdout)["server 16"]
    fixed = 2 * 1_235_814_400 + 2048 * (8 * 2048 + 6 * 8192) + 256 * 12 * 128256
    longest = int((SHARE * 6 * GIB - fixed) / (2 * 2 * 16 * 512)) // 16 * 16
    assert row == [needed(fixed + 131072 * 2 * 2 * 16 * 512), f"with --max-model-len {longest}"]
    assert longest < 131072


def test_config_alone_is_enough_and_a_quantised_checkpoint_is_named(tmp_path: Path, run_tool: RunTool) -> None:
    config = {
        "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
    }  # fmt: skip
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    shown = run_tool(SCRIPT, "memory", file).stdout
    assert shown.startswith(
        f"{file}: 7.62 billion parameters, context of 32,768 tokens, 56 KiB of KV cache a token\n\n"
    )
    assert "card of" not in shown.split("\n\n")[1]
    assert shown.replace(str(file), str(tmp_path)) == run_tool(SCRIPT, "memory", tmp_path).stdout
    file.write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    lines = run_tool(SCRIPT, "memory", tmp_path).stdout.splitlines()
    assert lines[1] == f"{tmp_path} is already quantised; the rows estimate the unquantised model"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist; give a checkpoint folder or a config.json, or one of 1B, 7B, 13B, 70B"),
        (["7B", "--gpu_memory", "0"], "--gpu_memory 0 is not above 0; give the card's memory in GiB, such as 24"),
        (["7B", "--gpu_memory=-2.5"], "--gpu_memory -2.5 is not above 0; give the card's memory in GiB, such as 24"),
        (["7B", "--gpu_memory", "24GB"], "--gpu_memory takes a number, not '24GB'"),
    ],
)
def test_invalid_arguments_are_refused_in_one_line(run_tool: RunTool, arguments: list[str], message: str) -> None:
    done = run_tool(SCRIPT, "memory", *arguments, status=2)
    assert (done.stdout, done.stderr) == ("", f"error: {message}\n")


def test_adapter_and_unknown_architecture_are_refused(tmp_path: Path, run_tool: RunTool) -> None:
    assert f"{tmp_path}/config.json does not exist" in run_tool(SCRIPT, "memory", tmp_path, status=2).stderr
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    error = run_tool(SCRIPT, "memory", tmp_path, status=2).stderr
    assert error.endswith("has model_type gpt2, which is not supported; known: llama, mistral, qwen2, qwen3\n")


def test_damaged_number_of_key_value_heads_is_refused(tmp_path: Path, run_tool: RunTool) -> None:
    config = {
        "model_type": "llama", "vocab_size": 800, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 3,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    error = run_tool(SCRIPT, "memory", tmp_path, status=2).stderr
    assert error == (
        f"error: {tmp_path}/config.json has num_attention_heads 2, which num_key_value_heads 3 does not divide; "
        "download it again\n"
    )


def test_names_of_sizes_may_be_in_lower_case(run_tool: RunTool) -> None:
    shown = [run_tool(SCRIPT, "memory", size).stdout for size in ("7b", "7B")]
    assert shown[0] == shown[1].replace("7B: ", "7b: ", 1)


def test_named_sizes_have_the_published_numbers_of_parameters() -> None:
    counts = {name: parameter_count(shape) for name, shape in PUBLISHED_SHAPES.items()}
    assert counts == {"1B": 1_235_814_400, "7B": 6_738_415_616, "13B": 13_015_864_320, "70B": 68_976_648_192}


@pytest.mark.parametrize("readme", ["tools/README.md", "tools/README_ZH.md"])
def test_readme_has_the_tables_of_the_command(repository: Path, readme: str) -> None:
    text = (repository / readme).read_text(encoding="utf-8")
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    rows = {f"{row[0]} {row[1]}": row[2:] for row in cells if len(row) == 6}
    tables = [rows_of(memory_table(size, 0.0)) for size in PUBLISHED_SHAPES]
    for use in tables[0]:
        assert rows[use] == [table[use][0] for table in tables]
    example = text.split("$ python tools/checkpoint.py memory 13B --gpu_memory 24\n")[1].split("```")[0]
    table = memory_table("13B", 24.0).splitlines()
    assert all(line in (*table, "…") for line in example.splitlines())
