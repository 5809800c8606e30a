"""Every option of Trainer that the trainers accept: a value other than the default, and its effect on a run.

A case runs a trainer with and without the value, for three steps in this process, and compares the runs.
"""

import gc
import io
import logging
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field, fields
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import dataloader
from training_loop import option_checks
from transformers import TrainingArguments, debug_utils, modeling_utils, trainer
from transformers.utils import logging as transformers_logging


@dataclass
class Run:
    """A finished run: its trainer, final weights, log, files, printed text, and calls of library functions."""

    trainer: Any
    weights: dict[str, torch.Tensor]
    log: list[dict[str, Any]]
    files: set[str]
    printed: str = ""
    calls: Counter[str] = field(default_factory=Counter)
    settings: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the counted calls

    def steps(self, key: str) -> list[int]:
        """Return the steps whose log entry has this key."""
        return [entry["step"] for entry in self.log if key in entry]


Effect = Callable[[Run, Run], None]  # (run without the option, run with it)


@dataclass(frozen=True)
class Case:
    """One option's value, further options of both runs, and the expected effect or error message."""

    value: str
    both: str = ""
    effect: Effect | None = None  # None: the final weights differ
    error: str = ""
    slow: bool = False


def parametrized(cases: Mapping[str, Case], slow: Container[str] = ()) -> Any:
    """Return the mark that runs a test with each case. slow: names of further cases that are slow tests."""
    names = [pytest.param(name, marks=[pytest.mark.slow] * (cases[name].slow or name in slow)) for name in cases]
    return pytest.mark.parametrize("name", names)


def check_case(case: Case, name: str, held_out: str, run_with: Callable[[str], Run]) -> None:
    """Run without and with an option and check its effect. held_out: the option that holds data out."""
    both = case.both.format(held_out=held_out)
    changed = f"{both} --{name} {case.value}"
    if case.error:
        with pytest.raises((ValueError, ImportError, OSError), match=case.error):
            run_with(changed)
    else:
        (case.effect or other_weights)(run_with(both), run_with(changed))


class LibraryCalls:
    """Counts the calls of library functions that options cause, and keeps the keyword arguments."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: Counter[str] = Counter()
        self.settings: dict[str, Any] = {}
        self._count(patch, trainer, "clear_device_cache")
        self._count(patch, modeling_utils, "checkpoint")
        self._count(patch, torch, "compile")
        self._count(patch, debug_utils.DebugUnderflowOverflow, "forward_hook")
        self._count(patch, dataloader._MultiProcessingDataLoaderIter, "__init__")

    def _count(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        function, key = getattr(owner, name), "workers" if name == "__init__" else name

        def counted(*arguments: Any, **settings: Any) -> Any:
            self.calls[key] += 1
            self.settings |= settings
            if name == "__init__":
                loader = arguments[1]
                self.settings |= {"num_workers": loader.num_workers, "prefetch_factor": loader.prefetch_factor}
            return function(*arguments, **settings)

        patch.setattr(owner, name, counted)


def finished(make: Callable[[], Any], output: Path, capture: pytest.CaptureFixture[str]) -> Run:
    """Train and return the run. make: returns the trainer. output: its folder."""
    verbosity, text = transformers_logging.get_verbosity(), io.StringIO()
    handler = logging.StreamHandler(text)
    transformers_logging.add_handler(handler)
    capture.readouterr()
    try:
        with pytest.MonkeyPatch.context() as patch:
            libraries = LibraryCalls(patch)
            made = make()
            compute = made.compute_loss

            def compute_loss(*arguments: Any, **more: Any) -> Any:
                libraries.calls["compute_loss"] += 1
                return compute(*arguments, **more)

            made.compute_loss = compute_loss
            made.train_until_stopped(None)
            libraries.settings["deterministic"] = torch.are_deterministic_algorithms_enabled()
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.remove_handler(handler)
        torch.use_deterministic_algorithms(False)
    gc.freeze()  # otherwise Trainer's garbage collection at the start of the next run takes longer than the run
    weights = {name: part.detach().clone() for name, part in made.model.named_parameters() if part.requires_grad}
    files = {str(path.relative_to(output)) for path in output.rglob("*")}
    printed = text.getvalue() + "".join(capture.readouterr())
    return Run(made, weights, made.state.log_history, files, printed, libraries.calls, libraries.settings)


def close_weights(one: Run, other: Run, tolerance: float) -> bool:
    return all((weight - other.weights[name]).abs().max() <= tolerance for name, weight in one.weights.items())


def equal_weights(one: Run, other: Run) -> bool:
    return close_weights(one, other, 0)


def other_weights(before: Run, after: Run) -> None:
    assert before.weights.keys() == after.weights.keys()
    assert not equal_weights(before, after)
    assert all(weight.isfinite().all() for weight in after.weights.values())


def other_steps(key: str, before_steps: list[int], after_steps: list[int]) -> Effect:
    """Return the effect that the log has `key` at other steps, and the weights are equal."""

    def effect(before: Run, after: Run) -> None:
        found = before.steps(key), after.steps(key)
        assert found == (before_steps, after_steps), found
        assert equal_weights(before, after)

    return effect


def other_checkpoints(before_steps: list[int], after_steps: list[int]) -> Effect:
    def effect(before: Run, after: Run) -> None:
        for run, steps in ((before, before_steps), (after, after_steps)):
            assert {name for name in run.files if name.startswith("checkpoint-") and "/" not in name} == {
                f"checkpoint-{step}" for step in steps
            }
        assert equal_weights(before, after)

    return effect


def called(name: str, exact: bool = True, **settings: Any) -> Effect:
    """Return the effect that a library function is called, or called with these settings, and the weights are equal.

    exact: equal to the last bit; otherwise within 1e-4.
    """

    def effect(before: Run, after: Run) -> None:
        assert after.calls[name] > (0 if settings else before.calls[name])
        for key, value in settings.items():
            assert after.settings[key] == value
            assert before.settings.get(key) != value
        assert close_weights(before, after, 0 if exact else 1e-4)

    return effect


def printed(text: str) -> Effect:
    def effect(before: Run, after: Run) -> None:
        assert text in after.printed
        assert text not in before.printed
        assert equal_weights(before, after)

    return effect


def passed_to_ddp(name: str, value: object) -> Effect:
    """Return the effect that DistributedDataParallel's settings have the value; on one rank, nothing else changes."""

    def effect(before: Run, after: Run) -> None:
        assert getattr(after.trainer.accelerator.ddp_handler, name) == value
        assert getattr(before.trainer.accelerator.ddp_handler, name) != value
        assert equal_weights(before, after)

    return effect


def steps_done(before: Run, after: Run) -> None:
    assert (before.trainer.state.global_step, after.trainer.state.global_step) == (3, 2)


def half_an_epoch(before: Run, after: Run) -> None:
    assert after.trainer.state.global_step == ceil(after.trainer.args.num_train_epochs * steps_of_epoch(after))


def steps_of_epoch(run: Run) -> float:
    (*_, last) = [entry for entry in run.log if "loss" in entry]
    return last["step"] / last["epoch"]


def more_evaluation_batches(before: Run, after: Run) -> None:
    assert before.log[-2]["eval_loss"] == pytest.approx(after.log[-2]["eval_loss"], rel=1e-5)
    assert equal_weights(before, after)


def weights_of_best_step(before: Run, after: Run) -> None:
    state = after.trainer.state
    losses = [entry["eval_loss"] for entry in after.log if "eval_loss" in entry]
    assert state.best_global_step == 1 + losses.index(min(losses)) < 3
    assert not equal_weights(before, after)


def other_best_step(before: Run, after: Run) -> None:
    assert before.trainer.state.best_global_step != after.trainer.state.best_global_step


def best_by_metric(before: Run, after: Run) -> None:
    args, state = after.trainer.args, after.trainer.state
    values = [entry[f"eval_{args.metric_for_best_model}"] for entry in after.log if "eval_loss" in entry]
    assert before.trainer.state.best_metric != state.best_metric == min(values)


def deterministic(before: Run, after: Run) -> None:
    assert (before.settings["deterministic"], after.settings["deterministic"]) == (False, True)


def memory_is_measured(before: Run, after: Run) -> None:
    assert "train_mem_cpu_alloc_delta" in after.log[-1].keys() - before.log[-1].keys()
    assert equal_weights(before, after)


def event_files(before: Run, after: Run) -> None:
    assert any("events.out.tfevents" in name for name in after.files)
    assert not any("events.out.tfevents" in name for name in before.files)


def nothing_else(before: Run, after: Run) -> None:
    """Assert equal weights: the value is already in use on this machine, or another test checks the effect."""
    assert equal_weights(before, after)


EVALUATED = "--eval_strategy steps --eval_steps 1"
SAVED = "--save_strategy steps --save_steps 1"
# Options that the two trainers share; {held_out}: the option that holds data out.
CASES = {
    "learning_rate": Case("2e-2"),
    "lr_scheduler_type": Case("constant"),
    "lr_scheduler_kwargs": Case('{"num_cycles":2}', "--lr_scheduler_type cosine"),
    "warmup_steps": Case("3"),
    "optim": Case("adafactor"),
    "optim_args": Case("momentum=0.9", "--optim sgd"),
    "weight_decay": Case("0.3"),
    "adam_beta1": Case("0.5"),
    "adam_beta2": Case("0.5"),
    "adam_epsilon": Case("1e-3"),
    "optim_target_modules": Case("q_proj", "--optim galore_adamw", error="--optim galore_adamw: You need to install"),
    "per_device_train_batch_size": Case("2"),
    "gradient_accumulation_steps": Case("2"),
    "max_grad_norm": Case("0.01"),
    "max_steps": Case("2", effect=steps_done),
    "num_train_epochs": Case("0.25", "--max_steps=-1", effect=half_an_epoch),
    "bf16": Case("True"),
    "fp16": Case("True", error="--fp16 needs a GPU"),
    "tf32": Case("True", error="--tf32 requires Ampere"),
    "seed": Case("5"),
    "data_seed": Case("5"),
    "neftune_noise_alpha": Case("5"),
    "full_determinism": Case("True", effect=deterministic),
    "gradient_checkpointing": Case("True", effect=called("checkpoint")),
    "gradient_checkpointing_kwargs": Case(
        '{"use_reentrant":true}', "--gradient_checkpointing True", effect=called("checkpoint", use_reentrant=True)
    ),
    "torch_compile": Case("True", effect=called("compile", exact=False, backend="inductor"), slow=True),
    "torch_compile_backend": Case("eager", effect=called("compile", exact=False, backend="eager"), slow=True),
    "torch_compile_mode": Case(
        "max-autotune", "--torch_compile_backend eager", effect=called("compile", mode="max-autotune"), slow=True
    ),
    "use_liger_kernel": Case("True", error="--use_liger_kernel needs liger-kernel"),
    "liger_kernel_config": Case('{"rope":1}', "--use_liger_kernel True", error="needs liger-kernel"),
    "torch_empty_cache_steps": Case("1", effect=called("clear_device_cache")),
    "logging_strategy": Case("no", effect=other_steps("loss", [1, 2, 3], [])),
    "logging_steps": Case("3", "--logging_first_step False", effect=other_steps("loss", [1, 2, 3], [3])),
    "log_level": Case("info", effect=printed("***** Running training *****")),
    "disable_tqdm": Case("False", effect=printed("3/3 [")),
    "report_to": Case("tensorboard", effect=event_files),
    "run_name": Case("a", "--report_to wandb", error="WandbCallback requires wandb"),
    "project": Case("a", "--report_to trackio", error="TrackioCallback requires trackio"),
    "trackio_space_id": Case("a/b", "--report_to trackio", error="TrackioCallback requires trackio"),
    "trackio_bucket_id": Case("a/b", "--report_to trackio", error="TrackioCallback requires trackio"),
    "trackio_static_space_id": Case("a/b", "--report_to trackio", error="TrackioCallback requires trackio"),
    "skip_memory_metrics": Case("False", effect=memory_is_measured),
    "debug": Case("underflow_overflow", effect=called("forward_hook")),
    "eval_strategy": Case("epoch", "{held_out} --eval_steps 1", effect=other_steps("eval_loss", [1, 2, 3], [3])),
    "eval_steps": Case("1", "{held_out}", effect=other_steps("eval_loss", [3], [1, 2, 3])),
    "eval_delay": Case("2", f"{{held_out}} {EVALUATED}", effect=other_steps("eval_loss", [1, 2, 3], [2, 3])),
    "eval_on_start": Case("True", "{held_out}", effect=other_steps("eval_loss", [3], [0, 3])),
    "per_device_eval_batch_size": Case("2", "{held_out}", effect=more_evaluation_batches),
    "load_best_model_at_end": Case(
        "True", f"{{held_out}} {EVALUATED} {SAVED} --learning_rate 3", effect=weights_of_best_step
    ),
    "greater_is_better": Case(
        "True", f"{{held_out}} {EVALUATED} {SAVED} --metric_for_best_model loss", effect=other_best_step
    ),
    "metric_for_best_model": Case("loss", f"{{held_out}} {EVALUATED} {SAVED}", effect=best_by_metric),
    "save_strategy": Case("epoch", effect=other_checkpoints([], [3])),
    "save_steps": Case("1", "--save_strategy steps", effect=other_checkpoints([3], [1, 2, 3])),
    "save_total_limit": Case("1", SAVED, effect=other_checkpoints([1, 2, 3], [3])),
    "dataloader_num_workers": Case("1", effect=called("workers")),
    "dataloader_prefetch_factor": Case("3", "--dataloader_num_workers 1", effect=called("workers", prefetch_factor=3)),
    "dataloader_pin_memory": Case("False", effect=nothing_else),  # memory is pinned only for a GPU
    "use_cpu": Case("True", effect=nothing_else),
    "ddp_bucket_cap_mb": Case("7", effect=passed_to_ddp("bucket_cap_mb", 7)),
    "ddp_broadcast_buffers": Case("False", effect=passed_to_ddp("broadcast_buffers", False)),
    "ddp_static_graph": Case("True", effect=passed_to_ddp("static_graph", True)),
    "ddp_backend": Case("gloo", error="--ddp_backend has no effect on one rank without a launcher"),
    "fsdp": Case("full_shard", error="fsdp only works in distributed training"),
    "fsdp_config": Case('{"min_num_params":5}', "--fsdp full_shard", error="fsdp only works in distributed training"),
    "deepspeed": Case("pretrain/configs/zero1.json", error="--deepspeed needs a launcher"),
    "local_rank": Case("0", effect=nothing_else),  # DeepSpeed's launcher gives it
}
# Options whose effect other tests show: output_dir (all tests), resume_from_checkpoint (tests of resumed runs), and the
# others (test_nodes.py).
ELSEWHERE = {
    "output_dir", "resume_from_checkpoint", "log_level_replica", "log_on_each_node", "save_on_each_node", "ddp_timeout",
}  # fmt: skip
# Values for refused options that do not take True.
REFUSED_VALUES = {
    "label_smoothing_factor": "0.1", "average_tokens_across_devices": "False", "eval_do_concat_batches": "False",
    "dataloader_in_order": "False", "dataloader_multiprocessing_context": "spawn", "length_column_name": "size",
    "accelerator_config": '{"split_batches": true}', "parallelism_config": "{}", "eval_accumulation_steps": "2",
    "include_for_metrics": "loss", "label_names": "labels", "hub_strategy": "end",
}  # fmt: skip


def check_every_option(parse: Callable[[list[str]], Any], cases: Iterable[str], refused_here: set[str]) -> None:
    """Assert that each option of Trainer has a case or is refused by name. parse: parses a command line.

    A new option of transformers fails this check until it has a case or is refused.
    """
    refused = {*option_checks.REFUSED, *option_checks.HUB_OPTIONS, *refused_here}
    refused.add("parallelism_config")  # cannot be given as text
    shown = {*cases, *ELSEWHERE}
    assert not {option.name for option in fields(TrainingArguments)} ^ (shown | refused)
    assert not refused & shown
    for name in refused:
        with pytest.raises(
            ValueError, match=rf"--{name}( has no effect here, as .*; |: nothing is uploaded .*: hf upload |.*invalid)"
        ):
            parse([f"--{name}", REFUSED_VALUES.get(name, "True")])
    for name in ("eval_delay", "eval_on_start", "load_best_model_at_end", "greater_is_better"):
        with pytest.raises(ValueError, match=rf"--{name} has no effect without held-out data; give --"):
            parse([f"--{name}", "1"])
    for event in ("logging", "eval", "save"):
        with pytest.raises(ValueError, match=f"--{event}_steps must be above 0; .* --{event}_strategy no"):
            parse([f"--{event}_steps", "0", f"--{event}_strategy", "steps"])
    for name, value, other in (
        ("gradient_checkpointing_kwargs", '{"use_reentrant":true}', "gradient_checkpointing"),
        ("liger_kernel_config", '{"rope":true}', "use_liger_kernel"),
        ("fsdp_config", '{"min_num_params":5}', "fsdp"),
        ("run_name", "a", "report_to wandb"),
        ("project", "a", "report_to trackio"),
    ):
        with pytest.raises(ValueError, match=rf"--{name} has no effect without --{other}"):
            parse([f"--{name}", value])
    with pytest.raises(ValueError, match="--debug tpu_metrics_debug has no effect here"):
        parse(["--debug", "tpu_metrics_debug"])
