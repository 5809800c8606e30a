"""plan.py, hardware_plan.py: sizes of real models, published figures, recommendations, refusals, DeepSpeed's keys."""

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
from pretraining import hardware_plan, memory_estimate
from pretraining.hardware_plan import GB, Machine, Workload
from pretraining.memory_estimate import Shape
from transformers import LlamaConfig, LlamaForCausalLM

CONFIGS = sorted((REPOSITORY / "pretrain/configs").glob("*.json"))
LLAMA_7B = Shape(32000, 4096, 11008, 32, 32, 32, 128, 2048)
LLAMA_13B = Shape(32000, 5120, 13824, 40, 40, 40, 128, 2048)


def write_config(folder: Path, **changes: Any) -> Path:
    """The config.json of LLaMA-13B with changes; `...` removes a key."""
    config = {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 5120, "intermediate_size": 13824,
        "num_hidden_layers": 40, "num_attention_heads": 40, "max_position_embeddings": 2048,
    } | changes  # fmt: skip
    folder.mkdir(exist_ok=True)
    file = folder / "config.json"
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 2},
        {"num_key_value_heads": 1, "head_dim": 48},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
        {"vocab_size": 32000, "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
         "num_attention_heads": 40},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)  # fmt: skip
def test_parameter_count_equals_that_of_the_real_model(tmp_path: Path, changes: dict[str, Any]) -> None:
    small = {
        "vocab_size": 1000, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 3,
        "num_attention_heads": 8,
    }  # fmt: skip
    config = LlamaConfig(**(small | changes))
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    config.save_pretrained(tmp_path)
    shape = memory_estimate.read_shape(tmp_path)
    assert memory_estimate.parameter_count(shape) == sum(parameter.numel() for parameter in model.parameters())


def kept_bytes(config: LlamaConfig, sequences: int, tokens: int, recompute: bool) -> int:
    """Bytes that autograd keeps of a real forward pass over padded sequences, without the parameters."""
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).train()
    if recompute:
        model.gradient_checkpointing_enable()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    mask = torch.ones(sequences, tokens, dtype=torch.long)
    mask[-1, tokens // 2 :] = 0
    ids = torch.randint(config.vocab_size, mask.shape)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=ids, labels=ids, attention_mask=mask)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("kv_heads", [8, 2])
def test_activation_bytes_equal_those_that_the_real_model_keeps(tmp_path: Path, kv_heads: int) -> None:
    config = LlamaConfig(
        vocab_size=1000, hidden_size=256, intermediate_size=688, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=kv_heads,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    shape = memory_estimate.read_shape(tmp_path)
    # After the forward pass only the log-softmax of the logits is kept, and with recomputing no layer's activations.
    logits, layer = 512 * 6 * 1000, 512 * memory_estimate.layer_bytes(shape, 256)
    expected = 2 * memory_estimate.sequence_bytes(shape, 256, recompute=False) - logits
    assert kept_bytes(config, 2, 256, recompute=False) == pytest.approx(expected, rel=0.01)
    expected = 2 * memory_estimate.sequence_bytes(shape, 256, recompute=True) - logits - layer
    assert kept_bytes(config, 2, 256, recompute=True) == pytest.approx(expected, rel=0.05)


def test_state_bytes_equal_published_figures() -> None:
    parameters = memory_estimate.parameter_count(LLAMA_7B)
    assert parameters == 6_738_415_616  # what the published checkpoint has
    assert memory_estimate.state_bytes("zero3", parameters, 1) == pytest.approx(107.8 * GB, rel=1e-3)
    assert memory_estimate.state_bytes("zero3", parameters, 24) == pytest.approx(107.8 * GB / 24, rel=1e-3)
    # Figure 1 of the ZeRO paper: 7.5 billion parameters on 64 GPUs.
    for config, published in {"zero1": 31.4, "zero2": 16.6, "zero3": 1.9}.items():
        assert round(memory_estimate.state_bytes(config, 7_500_000_000, 64) / GB, 1) == published
    assert memory_estimate.state_bytes("zero3-offload-optimizer", parameters, 8) == 2 * parameters / 8
    assert memory_estimate.state_bytes("zero3-offload-all", parameters, 8) == 0


def test_sent_bytes_equal_the_papers_and_grow_with_accumulation() -> None:
    def elements(config: str, accumulation: int) -> float:
        return memory_estimate.sent_bytes(config, 1000, 2, accumulation) / 2 / 1000 * 2

    assert [elements("zero1", steps) for steps in (1, 4)] == [3, 3]
    assert [elements("zero2", steps) for steps in (1, 4)] == [3, 9]
    assert [elements("zero3", steps) for steps in (1, 4)] == [3, 12]
    assert memory_estimate.sent_bytes("zero3", 1000, 1, 4) == 0


def recommended(
    shape: Shape, gpus: int, gigabytes: float, block: int, precision: str = "bf16"
) -> hardware_plan.ConfigPlan | None:
    machine = Machine(gpus, 8, gigabytes * GB)
    return hardware_plan.recommend(hardware_plan.make_plans(Workload(shape, block, precision), machine), block)


def test_simplest_configuration_that_fits_is_recommended() -> None:
    def chosen(shape: Shape, gpus: int, gigabytes: float) -> tuple[str, bool]:
        best = recommended(shape, gpus, gigabytes, 2048)
        assert best is not None
        assert best.memory <= gigabytes * GB
        return best.config, best.recompute

    small = Shape(32000, 768, 2048, 12, 12, 12, 64, 2048)
    assert chosen(small, 8, 80) == ("zero1", False)
    assert chosen(small, 1, 4) == ("zero1", True)
    assert chosen(LLAMA_7B, 8, 80)[0] == "zero1"
    assert chosen(LLAMA_13B, 8, 80)[0] == "zero2"
    assert chosen(LLAMA_13B, 8, 48)[0] == "zero3"
    assert chosen(LLAMA_13B, 2, 40)[0] == "zero3-offload-optimizer"
    assert chosen(LLAMA_13B, 1, 24)[0] == "zero3-offload-all"


def test_llama_13b_on_24_v100_fits_and_is_launched_by_the_recipe(tmp_path: Path, run_script: RunScript) -> None:
    write_config(tmp_path)
    options = ["--model", tmp_path, "--gpus", 24, "--gpu_memory", 32, "--gpu", "v100", "--block_size", 1024]
    options += ["--global_batch", 504]
    done = run_script("pretrain/plan.py", *options)
    assert all(len(line) <= 120 for line in done.stdout.splitlines()[1:-1])
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"MODEL={tmp_path} DATA=")
    assert "PRECISION=fp16 CONFIG=pretrain/configs/zero3-fp16.json MICRO_BATCH=7 ACCUMULATION=3 bash " in last
    assert last.endswith("pretrain/scripts/train_multinode.sh --block_size 1024")
    assert f"{memory_estimate.parameter_count(LLAMA_13B) / 1e9:.2f} billion parameters" in done.stdout
    workload, machine = Workload(LLAMA_13B, 1024, "fp16", 504), Machine(24, 8, 32 * GB)
    best = hardware_plan.recommend(hardware_plan.make_plans(workload, machine), 1024)
    assert best is not None
    assert best.state_bytes + best.buffer_bytes + best.micro_batch * best.sequence_bytes < 32 * GB
    assert best.micro_batch * best.accumulation * 24 == 504


def test_config_file_is_enough_and_one_node_uses_train_sh(tmp_path: Path, run_script: RunScript) -> None:
    file = write_config(tmp_path / "a model", num_hidden_layers=4)
    last = run_script("pretrain/plan.py", "--model", file, "--gpus", 8, "--gpu_memory", 80).stdout.splitlines()[-1]
    assert last.startswith(f"MODEL='{file.parent}' ")
    assert "PRECISION=bf16 CONFIG=pretrain/configs/zero1.json" in last
    assert last.endswith("bash pretrain/scripts/train.sh --block_size 2048 --gradient_checkpointing False")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus", 2, "--gpu_memory", 24, "--host_memory", 64], "16 such GPUs are enough, with zero3"),
        (["--gpus", 8, "--gpu_memory", 24, "--host_memory", 64], "lacks 287 GB of host memory on a node; 16 such GPUs"),
        (["--gpus", 1, "--gpu_memory", 4], "no number of such GPUs is enough; lower --block_size"),
    ],
)
def test_too_small_machine_is_one_line_and_status_2(
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
        ({}, {"--model": "nowhere"}, "nowhere does not exist; --model takes"),
        ({}, {"--gpus": "0"}, "'0' is not a whole number of 1 or more"),
        ({}, {"--gpus": "12"}, "is not a multiple of 8 GPUs a node"),
        ({}, {"--gpu": "tpu"}, "invalid choice: 'tpu'"),
        ({}, {"--gpu": "v100", "--precision": "bf16"}, "a V100 does not compute in bf16"),
        ({}, {"--block_size": "4096"}, "over the context"),
        ({}, {"--global_batch": "100", "--gpus": "24"}, "is not a multiple of 24 GPUs; try 96"),
        ({}, {"--gpu_mem": "32"}, "unknown option --gpu_mem; did you mean --gpu_memory?"),
        ({"model_type": "gpt2"}, {}, "model_type gpt2"),
        ({"hidden_size": ...}, {}, "hidden_size null, not a whole number"),
        ({"num_hidden_layers": -1}, {}, "num_hidden_layers -1, not a whole number"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, run_script: RunScript, changes: dict[str, Any], options: dict[str, str], message: str
) -> None:
    given = {"--model": write_config(tmp_path, **changes), "--gpus": 8, "--gpu_memory": 80} | options
    done = run_script("pretrain/plan.py", *[word for pair in given.items() for word in pair], status=2)
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def test_damaged_config_is_named(tmp_path: Path) -> None:
    for text in ("{", "[]", "{}"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json"):
            memory_estimate.read_shape(tmp_path)


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
    load, machine = Workload(shape, block, "bf16", per_gpu * gpus), Machine(gpus, 1, gigabytes * GB)
    best = hardware_plan.recommend(hardware_plan.make_plans(load, machine), block)
    if best is None:
        assert hardware_plan.describe_shortage(load, machine, hardware_plan.make_plans(load, machine)).startswith(
            "no configuration fits: "
        )
        return
    assert best.memory <= hardware_plan.MEMORY_SHARE * gigabytes * GB
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
    # Trainer fills in no other "auto"; these models refuse keys that they do not know.
    zero = DeepSpeedZeroConfig(**config["zero_optimization"])
    DeepSpeedBF16Config(**config["bf16"] | {"enabled": True})
    fp16 = DeepSpeedFP16Config(**config["fp16"] | {"enabled": True})
    assert (fp16.loss_scale, fp16.initial_scale_power) == (0, 16)
    assert zero.reduce_bucket_size == memory_estimate.BUCKET
    if zero.stage == 3:
        assert zero.max_live_parameters == zero.sub_group_size == memory_estimate.LIVE
        assert zero.prefetch_bucket_size == memory_estimate.BUCKET
        assert zero.gather_16bit_weights_on_model_save


def test_every_configuration_file_is_planned() -> None:
    load, machine = Workload(LLAMA_7B, 2048, "bf16"), Machine(8, 8, 80 * GB)
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
