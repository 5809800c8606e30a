"""pretrain/train.py: every option of Trainer has an effect, or is refused by name."""

import signal
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from option_effects import (
    CASES,
    Case,
    Run,
    check_case,
    check_every_option,
    finished,
    other_steps,
    parametrized,
    passed_to_ddp,
)
from pretraining_runs import make_trainer, options
from resumable_checkpoints.complete_checkpoints import list_complete, step_of
from training_loop import resumed_settings
from training_loop.source_trainer import SourceTrainer

ALL = CASES | {
    "ddp_find_unused_parameters": Case("False", effect=passed_to_ddp("find_unused_parameters", False)),
    "logging_first_step": Case("True", "--logging_steps 2", effect=other_steps("loss", [2], [1, 2])),
}
RunWith = Callable[[str], Run]
HELD_OUT = "--eval_fraction 0.2"


def test_every_option_works_or_is_refused_by_name(tmp_path: Path, tiny_checkpoint: Path, small_corpus: Path) -> None:
    def parse(words: list[str]) -> Any:
        return make_trainer(*options(tiny_checkpoint, small_corpus, tmp_path / "out"), *words)

    check_every_option(parse, [*ALL, "logging_nan_inf_filter"], {"auto_find_batch_size", "train_sampling_strategy"})
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    return {}


@pytest.fixture
def run_with(
    runs: dict[str, Run], tmp_path: Path, tiny_checkpoint: Path, small_corpus: Path, capsys: pytest.CaptureFixture[str]
) -> RunWith:
    """Return a function that trains three steps with options, such as "--seed 5"; the same options train only once."""
    more = "--max_steps 3 --save_strategy no"

    def run(words: str) -> Run:
        if words not in runs:
            output = tmp_path / f"run-{len(runs)}"
            given = options(tiny_checkpoint, small_corpus, output, *more.split(), *words.split())
            runs[words] = finished(lambda: make_trainer(*given), output, capsys)
        return runs[words]

    return run


@parametrized(ALL)
def test_option_has_its_effect(name: str, run_with: RunWith) -> None:
    check_case(ALL[name], name, HELD_OUT, run_with)


def test_epoch_is_a_pass_over_the_corpus(run_with: RunWith) -> None:
    """With two epochs, log entries, evaluations and checkpoints are written at the end of each epoch."""
    events = " ".join(f"--{event}_strategy epoch" for event in ("logging", "eval", "save"))
    run = run_with(f"{HELD_OUT} --max_steps=-1 --num_train_epochs 2 {events} --eval_delay 1")
    steps = run.trainer.args.max_steps
    assert run.steps("loss") == run.steps("eval_loss") == [steps // 2, steps]
    assert [step_of(folder) for folder in list_complete(Path(run.trainer.args.output_dir))] == [steps // 2, steps]
    late = run_with(f"{HELD_OUT} --max_steps=-1 --num_train_epochs 2 --eval_strategy epoch --eval_delay 2")
    assert late.steps("eval_loss") == [steps]


def test_save_strategy_best_saves_new_best_steps_and_the_last_step_of_a_stopped_run(
    tmp_path: Path, tiny_checkpoint: Path, small_corpus: Path
) -> None:
    """The first step has the highest loss, so with --greater_is_better True no later step is a new best step."""
    more = f"{HELD_OUT} --eval_strategy steps --eval_steps 1 --save_strategy best --metric_for_best_model loss"
    for name, stop, saved in (("whole", False, [1]), ("stopped", True, [1, 2])):
        given = options(tiny_checkpoint, small_corpus, tmp_path / name, *more.split(), "--greater_is_better", "True")
        trainer = make_trainer(*given)
        trainer.training_step = stopping(trainer, 2) if stop else trainer.training_step
        trainer.train_until_stopped(None)
        assert [step_of(folder) for folder in list_complete(tmp_path / name)] == saved


@pytest.mark.parametrize("hidden", [False, True])
def test_log_has_non_finite_losses_unless_they_are_filtered(
    tmp_path: Path, tiny_checkpoint: Path, small_corpus: Path, hidden: bool
) -> None:
    given = options(tiny_checkpoint, small_corpus, tmp_path / "out", "--max_steps", 3, "--save_strategy", "no")
    trainer = make_trainer(*given, "--logging_nan_inf_filter", hidden)
    compute = trainer.compute_loss

    def compute_loss(*arguments: Any, **more: Any) -> Any:
        """Return the loss, NaN in the second step; gradients are finite."""
        return compute(*arguments, **more) + (float("nan") if trainer.state.global_step == 1 else 0)

    trainer.compute_loss = compute_loss
    trainer.train_until_stopped(None)
    assert [isfinite(entry["loss"]) for entry in trainer.state.log_history[:3]] == [True, hidden, True]


def test_signal_during_an_evaluation_ends_it_after_the_batch(
    tmp_path: Path, tiny_checkpoint: Path, small_corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run stops after the next step: a launcher kills its ranks after 30 s, and an evaluation may take longer."""
    more = f"{HELD_OUT} --eval_strategy steps --eval_steps 2 --per_device_eval_batch_size 1 --save_strategy no"
    given = options(tiny_checkpoint, small_corpus, tmp_path / "out", *more.split(), "--metric_for_best_model", "loss")
    trainer, meters = make_trainer(*given), list[Any]()
    add_losses = trainer._add_losses

    def add_and_stop(meter: Any, *arguments: Any, **more: Any) -> None:
        add_losses(meter, *arguments, **more)
        if meter is not trainer.meter:
            meters.append(meter)
            trainer.stop_requested = True

    trainer._add_losses = add_and_stop
    trainer.train_until_stopped(None)
    assert len(meters) == 1 and trainer.stopped
    assert [step_of(folder) for folder in list_complete(tmp_path / "out")] == [3]
    assert not any("eval_loss" in entry for entry in trainer.state.log_history)
    assert "notice: a signal ended the evaluation after step 2\n" in capsys.readouterr().err


def stopping(trainer: Any, at: int) -> Callable[..., Any]:
    """Return a training_step that requests a stop during step `at`, as the signal handler does."""
    step = trainer.training_step

    def training_step(*arguments: Any, **more: Any) -> Any:
        trainer.stop_requested = trainer.state.global_step + 1 == at
        return step(*arguments, **more)

    return training_step


def test_second_ctrl_c_ends_a_run_at_once_unless_a_launcher_repeats_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer: Any = SimpleNamespace(has_begun=True, stop_requested=False)
    times = iter([100.0, 100.1, 105.0, 106.0])
    monkeypatch.setattr("training_loop.source_trainer.time", SimpleNamespace(monotonic=lambda: next(times)))
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        SourceTrainer._request_stop(trainer, number)
        assert trainer.stop_requested and trainer.stop_signal == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        SourceTrainer._request_stop(trainer, signal.SIGINT)


def test_schedule_without_lambdas_keeps_the_rate_of_the_checkpoint_with_a_notice() -> None:
    """reduce_lr_on_plateau has no base rate to replace, so no notice may say that the new --learning_rate is used."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1, weight_decay=0.2)
    optimizer.param_groups[0]["initial_lr"] = 0.1
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    notices = resumed_settings.apply_settings(optimizer, schedule, [{"initial_lr": 0.5, "weight_decay": 0.3}])
    assert notices == [
        "--weight_decay: 0.3 from this step on, 0.2 until now",
        "--learning_rate has no effect on this resumed run: ReduceLROnPlateau continues with the learning rate of the "
        "checkpoint",
    ]
    assert optimizer.param_groups[0]["lr"] == 0.1
