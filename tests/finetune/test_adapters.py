"""adapters.py: each LoRA variant trains, is saved and loads again; changed library attributes have an effect."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import QUANTISED, RunScript, needs_bitsandbytes
from instruction_data.named_templates import load_template
from instruction_tuning.adapters import CAST_INPUT, load_model_to_tune, save_adapter_only, save_pissa_start
from instruction_tuning.tuning_arguments import parse
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from tuning_runs import command, trainer_of

import finetune

STEPS = ("--batch_size", 8, "--max_steps", 2, "--lora_dropout", 0)
VARIANTS: dict[str, tuple[object, ...]] = {
    "rslora": ("--use_rslora",),
    "dora": ("--use_dora",),
    "loraplus": ("--loraplus_lr_ratio", 16),
    "biases": ("--lora_bias", "all"),
    "pissa": ("--lora_init", "pissa"),
    "pissa-rslora": ("--lora_init", "pissa_niter_4", "--use_rslora"),
    "whole": ("--lora_modules_to_save", "[embed_tokens,lm_head]", "--bf16"),
}
IDS = torch.arange(10, 40)[None]


@pytest.mark.parametrize("name", VARIANTS)
def test_saved_adapter_gives_the_logits_of_the_trained_model(
    tmp_path: Path, tiny_checkpoint: Path, rows_file: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter is loaded on the unchanged base; a PiSSA adapter is saved as plain LoRA."""
    from instruction_tuning import instruction_trainer

    trainers: list[Any] = []
    make_trainer = instruction_trainer.make_trainer

    def recorded(*given: Any, **more: Any) -> Any:
        trainers.append(make_trainer(*given, **more))
        return trainers[-1]

    monkeypatch.setattr(instruction_trainer, "make_trainer", recorded)
    output = tmp_path / "out"
    finetune.main(command(tiny_checkpoint, rows_file, output, *STEPS, *VARIANTS[name]))
    trained = trainers[0].model.eval()
    weights = load_file(output / "adapter_model.safetensors")
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    assert all(weight.dtype == torch.float32 for weight in trained.parameters() if weight.requires_grad)
    base = AutoModelForCausalLM.from_pretrained(
        tiny_checkpoint, dtype=next(trained.get_base_model().parameters()).dtype
    )
    plain = PeftModel.from_pretrained(base, output).eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=name == "whole"):
        trained_logits, loaded_logits = (model(IDS).logits.float() for model in (trained, plain))
        base_logits = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)(IDS).logits
    assert (trained_logits - loaded_logits).abs().max() < (1e-5 if name != "whole" else 1e-2)
    assert (trained_logits - base_logits).abs().max() > 1e-3
    config = json.loads((output / "adapter_config.json").read_text())
    assert config["init_lora_weights"] is True
    assert config["r"] == (8 if "pissa" in name else 4)
    assert not (output / "pissa_start.safetensors").exists()


@pytest.mark.integration
@needs_bitsandbytes
@pytest.mark.parametrize("given", [("--method", "qlora"), pytest.param(("--load_in", "8bit"), marks=pytest.mark.slow)])
def test_quantised_base_is_tuned_and_evaluated(
    tmp_path: Path, tiny_checkpoint: Path, rows_file: Path, run_script: RunScript, given: tuple[str, ...]
) -> None:
    """Gradients keep their size after an evaluation between two steps."""
    more = ("--max_steps", 6, "--val_set_size", 4, "--eval_strategy", "steps", "--eval_steps", 3, *given)
    arguments = command(tiny_checkpoint, rows_file, tmp_path / "out", *STEPS, *more)
    run_script("finetune/finetune.py", *arguments, env={"PYTHONPATH": QUANTISED})
    log = [json.loads(line) for line in (tmp_path / "out/train_log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    norms = [entry["grad_norm"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0] - 0.1
    assert min(norms) > 0.1 * max(norms)


@pytest.mark.integration
@needs_bitsandbytes
def test_keep_training_layout_changes_an_attribute_of_bitsandbytes(repository: Path) -> None:
    code = (
        "import bitsandbytes, torch\n"
        "from instruction_tuning.adapters import keep_training_layout\n"
        "layer = bitsandbytes.nn.Linear4bit(64, 64)\n"
        "assert isinstance(layer.support_avx512bf16_for_cpu, int)\n"
        "keep_training_layout(torch.nn.Sequential(layer))\n"
        "assert layer.support_avx512bf16_for_cpu is False\n"
    )
    paths = os.pathsep.join(map(str, (QUANTISED, repository / "finetune")))
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths}, check=True)


def test_adapter_is_saved_without_matrices_of_its_base(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """PeftModel.save_pretrained stores a copy of the matrix by default, but not after save_adapter_only."""
    assert inspect.signature(PeftModel.save_pretrained).parameters["save_embedding_layers"].default == "auto"
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    model = get_peft_model(base, LoraConfig(target_modules=["lm_head"]))
    model.save_pretrained(str(tmp_path / "before"))
    save_adapter_only(model)
    model.save_pretrained(str(tmp_path / "after"))
    copy = {"base_model.model.lm_head.base_layer.weight"}
    before, after = (set(load_file(tmp_path / name / "adapter_model.safetensors")) for name in ("before", "after"))
    assert before - after == copy


def test_loraplus_gives_lora_b_the_larger_learning_rate(tmp_path: Path, tiny_checkpoint: Path, rows_file: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    tokenizer.chat_template = load_template("alpaca")
    trainer = trainer_of(tiny_checkpoint, tokenizer, rows_file, tmp_path / "o", *STEPS, "--loraplus_lr_ratio", 16)
    optimizer = trainer.create_optimizer()
    names = {id(weight): name for name, weight in trainer.model.named_parameters()}
    rates = {
        names[id(weight)].split("lora_")[1][0]: group["lr"]
        for group in optimizer.param_groups
        for weight in group["params"]
    }
    assert rates["B"] == pytest.approx(16 * rates["A"])


@pytest.mark.integration
def test_resumed_pissa_run_ends_with_the_same_adapter(tmp_path: Path, tiny_checkpoint: Path, rows_file: Path) -> None:
    more = (*STEPS, "--max_steps", 4, "--save_steps", 2, "--lora_init", "pissa")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finetune.main(command(tiny_checkpoint, rows_file, whole, *more))
    shutil.copytree(whole / "checkpoint-2", broken / "checkpoint-2")
    again = command(tiny_checkpoint, rows_file, broken, *more, "--resume_from_checkpoint", "True")
    with pytest.raises(ValueError, match=r"pissa_start\.safetensors is missing or has other tensors than this machine"):
        finetune.main(again)
    args, _ = parse(command(tiny_checkpoint, rows_file, tmp_path / "x", *more), "")
    torch.manual_seed(args.seed)
    save_pissa_start(load_model_to_tune(args), broken, resumed=False)  # the file that an interrupted run leaves
    finetune.main(again)
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (whole, broken))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_losses_under_autocast_are_equal_with_and_without_cast_of_adapter_inputs(
    tmp_path: Path, tiny_checkpoint: Path, rows_file: Path
) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_checkpoint)
    tokenizer.chat_template = load_template("alpaca")
    losses = []
    for cast in (False, True):
        options = ("--batch_size", 8, "--max_steps", 3, "--bf16", True)
        trainer = trainer_of(tiny_checkpoint, tokenizer, rows_file, tmp_path / f"out-{cast}", *options)
        layers = [module for module in trainer.model.modules() if isinstance(module, BaseTunerLayer)]
        assert layers
        assert not any(getattr(layer, CAST_INPUT) for layer in layers)
        for layer in layers:
            setattr(layer, CAST_INPUT, cast)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]
