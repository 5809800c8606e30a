"""plan.py, hardware_plan.py: sizes of real models, published figures, recommendations, errors, keys of DeepSpeed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, RunScript
from hypothesis import given, settings
from hypothesis import strategies as st
from live_memory import LiveMemory, drop_gradients
from memory_estimate import model_shape, training_memory
from memory_estimate.model_shape import Shape, format_count, parameter_count
from memory_estimate.training_memory import GIB
from packed_attention import segment_attention
from packed_attention.segment_attention import Segment
from pretraining import hardware_plan, training_speed
from pretraining.hardware_plan import Machine, Workload
from pretraining.pretraining_trainer import token_losses
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM

CONFIGS = sorted((REPOSITORY / "pretrain/configs").glob("*.json"))
LLAMA_7B = Shape(32000, 4096, 11008, 32, 32, 32, 128, 2048)
LLAMA_13B = Shape(32000, 5120, 13824, 40, 40, 40, 128, 2048)


def write_config(folder: Path, **changes: Any) -> Path:
    """Write the config.json of LLaMA-13B with changes; return its path. The value `...` removes a key."""
    config = {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 5120, "intermediate_size": 13824,
        "num_hidden_layers": 40, "num_attention_heads": 40, "max_position_embeddings": 2048,
    } | changes  # fmt: skip
    folder.mkdir(exist_ok=True)
    file = folder / "config.json"
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}), encoding="utf-8")
    return file


SMALL = {
    "vocab_size": 1000, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 3, "num_attention_heads": 8,
}  # fmt: skip


def real_parameter_count(folder: Path) -> int:
    """Return the parameter count of the model that transformers builds from the config.json of a folder."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 32},
        {"num_key_value_heads": 2},
        {"num_key_value_heads": 8, "tie_word_embeddings": True},
        {"num_key_value_heads": 1, "head_dim": 48},
        {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_parameter_count_equals_that_of_the_real_model(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind} | SMALL | changes))
    shape = model_shape.read_shape(tmp_path)
    assert parameter_count(shape) == real_parameter_count(tmp_path)
    assert shape.context == AutoConfig.from_pretrained(tmp_path).max_position_embeddings


def test_null_key_value_heads_mean_one_for_each_attention_head(tmp_path: Path) -> None:
    for kind in ("llama", "qwen2"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "num_key_value_heads": None} | SMALL))
        assert parameter_count(model_shape.read_shape(tmp_path)) == real_parameter_count(tmp_path)


@pytest.mark.parametrize(
    ("parameters", "kind", "sizes", "more"),
    [
        # hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads, vocab_size
        (6_738_415_616, "llama", (4096, 11008, 32, 32, 32, 32000), {}),  # LLaMA-7B
        (13_015_864_320, "llama", (5120, 13824, 40, 40, 40, 32000), {}),  # LLaMA-13B
        (68_976_648_192, "llama", (8192, 28672, 80, 64, 8, 32000), {}),  # Llama-2-70B
        (1_235_814_400, "llama", (2048, 8192, 16, 32, 8, 128256), {"tie_word_embeddings": True}),  # Llama-3.2-1B
        (7_241_732_096, "mistral", (4096, 14336, 32, 32, 8, 32000), {}),  # Mistral-7B-v0.1
        (7_615_616_512, "qwen2", (3584, 18944, 28, 28, 4, 152064), {}),  # Qwen2-7B
        (494_032_768, "qwen2", (896, 4864, 24, 14, 2, 151936), {"tie_word_embeddings": True}),  # Qwen2-0.5B
        (8_190_735_360, "qwen3", (4096, 12288, 36, 32, 8, 151936), {"head_dim": 128}),  # Qwen3-8B
        (596_049_920, "qwen3", (1024, 3072, 28, 16, 8, 151936), {"head_dim": 128, "tie_word_embeddings": True}),
    ],
)  # fmt: skip
def test_parameter_count_equals_that_of_published_models(
    tmp_path: Path, parameters: int, kind: str, sizes: tuple[int, ...], more: dict[str, Any]
) -> None:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    config = dict(zip((*names, "vocab_size"), sizes, strict=True)) | {"model_type": kind} | more
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert parameter_count(model_shape.read_shape(tmp_path)) == parameters == real_parameter_count(tmp_path)


def measured_step(config: dict[str, Any], rows: int, tokens: int, recompute: bool) -> int:
    """Return the peak bytes of a forward and backward pass of the real model with the trainer's loss, without weights.

    The gradients of weights are freed at once. Fake tensors are used, which compute no values.
    """
    segment_attention.register()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.bfloat16).train()
        model.set_attn_implementation(segment_attention.NAME)
        if recompute:
            model.gradient_checkpointing_enable()
        drop_gradients(model)
        ids = torch.zeros(rows, tokens, dtype=torch.long)
        with LiveMemory(without=model.parameters()) as memory:
            segments = [[Segment(tokens)]] * rows
            losses = token_losses(model(input_ids=ids, use_cache=False, segments=segments).logits, ids)
            losses.sum().backward()
    return memory.peak


MEASURED: dict[str, dict[str, Any]] = {
    "llama-13b": {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 5120, "intermediate_size": 13824,
        "num_hidden_layers": 2, "num_attention_heads": 40, "num_key_value_heads": 40,
    },
    "small-vocabulary": SMALL | {"model_type": "llama", "num_key_value_heads": 8, "intermediate_size": 1024},
    "qwen2": SMALL | {"model_type": "qwen2", "vocab_size": 20000, "num_key_value_heads": 2},
    "qwen3": SMALL | {"model_type": "qwen3", "num_key_value_heads": 4, "head_dim": 64},
}  # fmt: skip


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("name", MEASURED)
def test_activation_bytes_equal_the_peak_of_the_real_model_and_loss(tmp_path: Path, name: str, recompute: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MEASURED[name]))
    estimate = 4 * training_memory.sequence_bytes(model_shape.read_shape(tmp_path), 1024, recompute)
    assert measured_step(MEASURED[name], 4, 1024, recompute) == pytest.approx(estimate, rel=0.02)


def test_state_bytes_equal_published_figures() -> None:
    parameters = parameter_count(LLAMA_7B)
    assert parameters == 6_738_415_616  # as in the published checkpoint
    assert training_memory.state_bytes("zero3", parameters, 1) == pytest.approx(107.8e9, rel=1e-3)
    assert training_memory.state_bytes("zero3", parameters, 24) == pytest.approx(107.8e9 / 24, rel=1e-3)
    # Figure 1 of the ZeRO paper: 7.5 billion parameters on 64 GPUs.
    for config, published in {"zero1": 31.4, "zero2": 16.6, "zero3": 1.9}.items():
        assert round(training_memory.state_bytes(config, 7_500_000_000, 64) / 1e9, 1) == published
    assert training_memory.state_bytes("zero3-offload-optimizer", parameters, 8) == 2 * parameters / 8
    assert training_memory.state_bytes("zero3-offload-all", parameters, 8) == 0


def test_sent_bytes_equal_those_of_the_zero_paper_and_grow_with_accumulation() -> None:
    def elements(config: str, accumulation: int) -> float:
        return training_speed.sent_bytes(config, 1000, 2, accumulation) / 2 / 1000 * 2

    assert [elements("zero1", steps) for steps in (1, 4)] == [3, 3]
    assert [elements("zero2", steps) for steps in (1, 4)] == [3, 9]
    assert [elements("zero3", steps) for steps in (1, 4)] == [3, 12]
    assert training_speed.sent_bytes("zero3", 1000, 1, 4) == 0


def recommended(
    shape: Shape, gpus: int, gigabytes: float, block: int, precision: str = "bf16"
) -> hardware_plan.ConfigPlan | None:
    machine = Machine(gpus, 8, gigabytes * GIB)
    return hardware_plan.recommend(hardware_plan.make_plans(Workload(shape, block, precision), machine), block)


def test_simplest_configuration_that_fits_is_recommended() -> None:
    def chosen(shape: Shape, gpus: int, gigabytes: float) -> tuple[str, bool]:
        best = recommended(shape, gpus, gigabytes, 2048)
        assert best is not None
        assert best.memory <= gigabytes * GIB
        return best.config, best.recompute

    small = Shape(32000, 768, 2048, 12, 12, 12, 64, 2048)
    assert chosen(small, 8, 80) == ("zero1", False)
    assert chosen(small, 1, 4) == ("zero1", True)
    assert chosen(LLAMA_7B, 8, 80)[0] == "zero1"
    assert chosen(LLAMA_13B, 8, 64)[0] == "zero2"
    assert chosen(LLAMA_13B, 8, 48)[0] == "zero3"
    assert chosen(LLAMA_13B, 2, 40)[0] == "zero3-offload-optimizer"
    assert chosen(LLAMA_13B, 1, 24)[0] == "zero3-offload-all"


def test_published_run_fits_and_the_last_line_is_the_recipe_command(tmp_path: Path, run_script: RunScript) -> None:
    # LLaMA-13B on 24 V100 of 32 GB, 1024 tokens, 20 x 3 x 24 = 1440 sequences a step (KnowLM's README, section 3.2).
    write_config(tmp_path)
    options = ["--model", tmp_path, "--gpus", 24, "--gpu_memory", 32, "--gpu", "v100", "--block_size", 1024]
    done = run_script("pretrain/plan.py", *options, "--global_batch", 1440)
    assert all(len(line) <= 120 for line in done.stdout.splitlines()[1:-1])
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"MODEL={tmp_path} DATA=")
    assert "PRECISION=fp16 CONFIG=pretrain/configs/zero3-fp16.json MICRO_BATCH=20 ACCUMULATION=3 bash " in last
    assert last.endswith("pretrain/scripts/train_multinode.sh --block_size 1024")
    assert "13.02 billion parameters, fp16, sequences of 1,024 tokens; 24 GPUs of 32 GiB" in done.stdout
    # The published run kept weights and optimizer in host memory (its pretrain/configs/config.json).
    plans = hardware_plan.make_plans(Workload(LLAMA_13B, 1024, "fp16", 1440), Machine(24, 8, 32 * GIB))
    fitting = {plan.config: plan.largest_micro_batch for plan in plans if plan.recompute}
    assert fitting == {
        "zero1": 0, "zero2": 0, "zero3-fp16": 23, "zero3-offload-optimizer": 32, "zero3-offload-all": 33,
    }  # fmt: skip


def test_counts_are_formatted_with_thousand_million_or_billion() -> None:
    counts = (999, 1000, 995_000, 999_994, 999_995, 13_015_864_320)
    words = ("999", "1.00 thousand", "995.00 thousand", "999.99 thousand", "1.00 million", "13.02 billion")
    assert tuple(map(format_count, counts)) == words


@pytest.mark.parametrize("size", ["11", "15.7", "141"])
def test_gpu_memory_of_any_size_is_read_as_gib(tmp_path: Path, run_script: RunScript, size: str) -> None:
    write_config(tmp_path, num_hidden_layers=2, hidden_size=256, num_attention_heads=4, intermediate_size=688)
    done = run_script("pretrain/plan.py", "--model", tmp_path, "--gpus", 1, "--gpu_memory", size)
    assert f": 17.97 million parameters, bf16, sequences of 2,048 tokens; 1 GPU of {size} GiB, nodes: 1" in done.stdout
    parameters = 2 * 32000 * 256 + 2 * (4 * 256**2 + 3 * 256 * 688 + 2 * 256) + 256
    states = f"{16 * parameters / 2**30:.1f}"
    assert f"zero1                    {states:>6} " in done.stdout
    # A sequence of 2048 tokens, recomputed: inputs of 2 layers, the final norm, and 12 bytes for each logit.
    sequence = 2048 * (2 * 2 * 256 + 8 * 256 + 12 * 32000)
    fixed = 16 * parameters + 4e8 + 2 * 32000 * 256
    largest = int((0.92 * float(size) * 2**30 - fixed) // sequence)
    row = next(line for line in done.stdout.splitlines() if line.startswith("zero1 "))
    assert row.split()[5:7] == [f"{sequence / 2**30:.2f}", str(largest)]


def test_plan_from_a_config_file_for_one_node_uses_train_sh(tmp_path: Path, run_script: RunScript) -> None:
    file = write_config(tmp_path / "a model", num_hidden_layers=4)
    last = run_script("pretrain/plan.py", "--model", file, "--gpus", 8, "--gpu_memory", 80).stdout.splitlines()[-1]
    assert last.startswith(f"MODEL='{file.parent}' ")
    assert "PRECISION=bf16 CONFIG=pretrain/configs/zero1.json" in last
    assert last.endswith("bash pretrain/scripts/train.sh --block_size 2048 --gradient_checkpointing False")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus", 2, "--gpu_memory", 24, "--host_memory", 64], "16 such GPUs are enough, with zero3"),
        (
            ["--gpus", 8, "--gpu_memory", 24, "--host_memory", 64],
            "lacks 263 GiB of host memory on a node; 16 such GPUs",
        ),
        (["--gpus", 1, "--gpu_memory", 4], "no number of such GPUs is enough; lower --block_size"),
    ],
)
def test_too_small_machine_gives_one_error_line_and_status_2(
    tmp_path: Path, run_script: RunScript, options: list[object], message: str
) -> None:
    write_config(tmp_path)
    done = run_script("pretrain/plan.py", "--model", tmp_path, *options, status=2)
    assert done.stderr.startswith("error: no configuration fits: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert "MICRO_BATCH" not in done.stdout


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"--model": "nowhere"}, "nowhere does not exist; give a checkpoint folder"),
        ({}, {"--model": ""}, "--model: is empty; name a folder"),
        ({}, {"--gpus": "0"}, "'0' is not a whole number of 1 or more"),
        ({}, {"--gpu_memory": "0"}, "--gpu_memory: '0' is not a number of GiB above 0"),
        ({}, {"--gpu_memory": "80GB"}, "--gpu_memory: '80GB' is not a number of GiB above 0"),
        ({}, {"--host_memory": "-1"}, "--host_memory: '-1' is not a number of GiB above 0"),
        ({}, {"--gpus": "12"}, "--gpus 12 is not a multiple of --gpus_per_node 8"),
        ({}, {"--gpu": "tpu"}, "invalid choice: 'tpu'"),
        ({}, {"--gpu": "v100", "--precision": "bf16"}, "a V100 does not compute in bf16"),
        ({}, {"--block_size": "4096"}, "exceeds the context"),
        ({}, {"--global_batch": "100", "--gpus": "24"}, "is not a multiple of --gpus 24; try 96"),
        ({}, {"--gpu_mem": "32"}, "unknown option --gpu_mem; did you mean --gpu_memory?"),
        ({"model_type": "gpt2"}, {}, "model_type gpt2"),
        ({"hidden_size": ...}, {}, "hidden_size null, not a whole number"),
        ({"num_hidden_layers": -1}, {}, "num_hidden_layers -1, not a whole number"),
    ],
)
def test_bad_input_gives_one_error_line_and_status_2(
    tmp_path: Path, run_script: RunScript, changes: dict[str, Any], options: dict[str, str], message: str
) -> None:
    given = {"--model": write_config(tmp_path, **changes), "--gpus": 8, "--gpu_memory": 80} | options
    done = run_script("pretrain/plan.py", *[word for pair in given.items() for word in pair], status=2)
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def test_error_of_a_damaged_config_names_the_file(tmp_path: Path) -> None:
    for text in ("{", "[]", "{}"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json"):
            model_shape.read_shape(tmp_path)


def test_plan_imports_no_heavy_package() -> None:
    code = "import sys, plan; print(sorted({'torch', 'numpy', 'transformers', 'deepspeed'} & set(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "pretrain")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


shapes = st.builds(
    Shape, vocabulary=st.integers(500, 200_000), hidden=st.integers(64, 8192), intermediate=st.integers(64, 32_768),
    layers=st.integers(1, 100), heads=st.integers(1, 64), kv_heads=st.integers(1, 8), head_dim=st.integers(16, 128),
    context=st.just(1 << 20), tied=st.booleans(),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(shapes, st.integers(1, 64), st.integers(1, 64), st.integers(2, 8192), st.integers(0, 8192))
def test_more_gpus_never_need_more_memory_and_longer_sequences_never_less(
    shape: Shape, gpus: int, more: int, block: int, longer: int
) -> None:
    def plans(gpus: int, block: int) -> list[hardware_plan.ConfigPlan]:
        return hardware_plan.make_plans(Workload(shape, block, "bf16"), Machine(gpus, 1, 0.0))

    few, many, long = plans(gpus, block), plans(gpus + more, block), plans(gpus, block + longer)
    for here, larger_machine, longer_sequences in zip(few, many, long, strict=True):
        assert larger_machine.memory <= here.memory <= longer_sequences.memory
    for kept, recomputed in zip(few[::2], few[1::2], strict=True):
        assert shape.layers == 1 or recomputed.sequence_bytes < kept.sequence_bytes
        assert kept.state_bytes == recomputed.state_bytes
    states = [each.state_bytes for each in few[::2]]
    assert states == sorted(states, reverse=True)


@settings(max_examples=200, deadline=None)
@given(shapes, st.integers(1, 32), st.integers(4, 200), st.integers(2, 8192), st.integers(0, 40))
@pytest.mark.integration
def test_recommended_plan_fits_and_divides_the_global_batch(
    shape: Shape, gpus: int, gigabytes: int, block: int, per_gpu: int
) -> None:
    load, machine = Workload(shape, block, "bf16", per_gpu * gpus), Machine(gpus, 1, gigabytes * GIB)
    best = hardware_plan.recommend(hardware_plan.make_plans(load, machine), block)
    if best is None:
        assert hardware_plan.describe_shortage(load, machine, hardware_plan.make_plans(load, machine)).startswith(
            "no configuration fits: "
        )
        return
    assert best.memory <= training_memory.MEMORY_SHARE * gigabytes * GIB
    assert 1 <= best.micro_batch <= best.largest_micro_batch
    assert not per_gpu or best.micro_batch * best.accumulation == per_gpu


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_configuration_keys_are_known_to_deepspeed(file: Path) -> None:
    from deepspeed.runtime import constants
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    config = json.loads(file.read_text(encoding="utf-8"))
    known = {value for value in vars(constants).values() if isinstance(value, str)} | {"zero_optimization"}
    assert not set(config) - known - {"bf16", "fp16"}
    sizes = ("gradient_accumulation_steps", "train_micro_batch_size_per_gpu", "train_batch_size")
    automatic = [config[name] for name in ("gradient_clipping", *sizes)]
    assert {*automatic, config["bf16"]["enabled"], config["fp16"]["enabled"]} == {"auto"}
    # Trainer fills in no other "auto" values; the classes below refuse unknown keys.
    zero = DeepSpeedZeroConfig(**config["zero_optimization"])
    DeepSpeedBF16Config(**config["bf16"] | {"enabled": True})
    fp16 = DeepSpeedFP16Config(**config["fp16"] | {"enabled": True})
    assert (fp16.loss_scale, fp16.initial_scale_power) == (0, 16)
    assert zero.reduce_bucket_size == training_memory.BUCKET_ELEMENTS
    if zero.stage == 3:
        assert zero.max_live_parameters == zero.sub_group_size == training_memory.MAX_LIVE_PARAMETERS
        assert zero.prefetch_bucket_size == training_memory.BUCKET_ELEMENTS
        assert zero.gather_16bit_weights_on_model_save


def test_every_configuration_file_is_planned() -> None:
    load, machine = Workload(LLAMA_7B, 2048, "bf16"), Machine(8, 8, 80 * GIB)
    names = {each.config for each in hardware_plan.make_plans(load, machine)}
    names |= {each.config for each in hardware_plan.make_plans(Workload(LLAMA_7B, 2048, "fp16"), machine)}
    assert names == {file.stem for file in CONFIGS}
    for file in CONFIGS:
        zero = json.loads(file.read_text(encoding="utf-8"))["zero_optimization"]
        assert zero["stage"] == int(file.stem[4])
        offloaded = {name: value["device"] for name, value in zero.items() if name.startswith("offload_")}
        way = file.stem.rpartition("offload-")[2] if "offload" in file.stem else ""
        parts = {"": (), "optimizer": ("optimizer",), "all": ("optimizer", "param")}[way]
        assert offloaded == {f"offload_{part}": "cpu" for part in parts}
