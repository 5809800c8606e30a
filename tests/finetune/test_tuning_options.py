"""finetune.py: every option of Trainer has an effect, or is refused by name; pretraining has the same cases."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from instruction_data.named_templates import load_template
from instruction_tuning.tuning_arguments import parse
from option_effects import (
    CASES,
    Case,
    Run,
    check_case,
    check_every_option,
    close_weights,
    finished,
    other_steps,
    parametrized,
    passed_to_ddp,
)
from transformers import AutoTokenizer
from tuning_runs import command, trainer_of

ALL = CASES | {
    "train_sampling_strategy": Case("sequential"),
    "logging_first_step": Case("False", "--logging_steps 2", effect=other_steps("loss", [1, 2], [2])),
    "ddp_find_unused_parameters": Case("True", effect=passed_to_ddp("find_unused_parameters", True)),
}
# Options that Trainer implements in the same way for both trainers.
SAME_IN_PRETRAINING = {
    "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "weight_decay", "adam_beta1",
    "adam_beta2", "adam_epsilon", "max_grad_norm", "max_steps", "full_determinism", "torch_empty_cache_steps",
    "log_level", "disable_tqdm", "report_to", "skip_memory_metrics", "save_steps", "save_total_limit", "use_cpu",
    "dataloader_prefetch_factor", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "local_rank",
    "dataloader_pin_memory", "greater_is_better",
}  # fmt: skip
RunWith = Callable[..., Run]


def test_every_option_works_or_is_refused_by_name(tmp_path: Path) -> None:
    def parse_words(words: list[str]) -> Any:
        return parse(command(tmp_path, "data", tmp_path / "out", *words), "")

    check_every_option(parse_words, [*ALL, "auto_find_batch_size"], {"logging_nan_inf_filter"})


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    return {}


@pytest.fixture
def run_with(
    runs: dict[str, Run], tmp_path: Path, tiny_checkpoint: Path, rows_file: Path, capsys: pytest.CaptureFixture[str]
) -> RunWith:
    """run_with("--seed 5") trains three steps; a repeated call with the same options returns the first run."""
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_checkpoint)
    tokenizer.chat_template = load_template("alpaca")
    plain = "--gradient_accumulation_steps 1 --micro_batch_size 4 --max_steps 3"

    def run(words: str, change: Callable[[Any], None] = lambda trainer: None) -> Run:
        if words not in runs:
            output = tmp_path / f"run-{len(runs)}"

            def make() -> Any:
                made = trainer_of(tiny_checkpoint, tokenizer, rows_file, output, *plain.split(), *words.split())
                change(made)
                return made

            runs[words] = finished(make, output, capsys)
        return runs[words]

    return run


@parametrized(ALL, slow=SAME_IN_PRETRAINING)
def test_option_has_its_effect(name: str, run_with: RunWith) -> None:
    check_case(ALL[name], name, "--val_set_size 6", run_with)


def fails_at(call: int) -> Callable[[Any], None]:
    """Make a trainer's loss run out of memory at its n-th call, after it was added to the log's sums."""

    def change(trainer: Any) -> None:
        compute, calls = trainer.compute_loss, iter(range(1, 1000))

        def compute_loss(*arguments: Any, **more: Any) -> Any:
            loss = compute(*arguments, **more)
            if next(calls) == call:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return loss

        trainer.compute_loss = compute_loss

    return change


def test_smaller_micro_batches_after_out_of_memory_give_the_same_weights(run_with: RunWith) -> None:
    plain, smaller = run_with("--logging_steps 1"), run_with("--auto_find_batch_size True", fails_at(1))
    assert smaller.trainer.layout.capacity < plain.trainer.layout.capacity
    assert close_weights(plain, smaller, 1e-6)
    for name in ("loss", "loss_rows", "num_input_tokens_seen"):
        before, after = ([entry[name] for entry in run.log if name in entry] for run in (plain, smaller))
        assert before == pytest.approx(after, abs=1e-4), name
    with pytest.raises(ValueError, match="out of memory after the first step, which --auto_find_batch_size cannot"):
        run_with("--auto_find_batch_size True --seed 2", fails_at(3))
