"""Base of both trainers: losses by source, checks after each step, stopping on signals.

Trainer sees a run as one epoch of `args.max_steps` steps. The data loader of a resumed run begins at the first batch
after the checkpoint, so Trainer skips no batch. No private method of Trainer is overridden or called. Besides callbacks
and options, the following members are used (a test asserts that each exists, has the expected signature and is called):

| name | reason |
| --- | --- |
| `set_initial_training_values` | the loader of a resumed run is shorter than the run |
| `get_train_dataloader`, `get_batch_samples` | own order and packing; time spent waiting for data |
| `training_step`, `compute_loss`, `loss_is_scaled_for_ga` | the loss is the mean over the tokens of a step |
| `create_scheduler` | reads the command line's settings before a checkpoint replaces them |
| `floating_point_ops`, `create_optimizer` | instruction tuning: a loader item is a step; learning rates of LoRA+ |
| `log`, `evaluate`, `callback_handler.on_evaluate` | losses by source; held-out loss per token |
| `LambdaLR.base_lrs`, `lr_lambdas`, `_last_lr` | resumed_settings.py: the rate of the new command line |
| `_tr_loss` | sum of losses for the log; after a loss that is not finite, Trainer would log NaN to the end |
| `state.compute_steps` | the command line, not the checkpoint, sets logging, evaluation and saving steps |
| `PreTrainedModel.save_pretrained`, `all_tied_weights_keys` | tied matrices are stored once under ZeRO-1 and 2 too |
| `PreTrainedModel.should_save_on_this_rank` | --save_on_each_node |
| `PreTrainedConfig._attn_implementation` | segment_attention.py: no public attribute names the attention in use |
| `TrainingArguments._n_gpu` | a process uses one GPU; otherwise Trainer would multiply the batch by the GPUs |
| `ds_tensor`, `ds_numel`, `skipped_steps` | DeepSpeed: partition of a rank, size of a parameter, skipped fp16 steps |
"""

import math
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rank_group.rank_errors import stop_before_first_step
from rank_group.ranks import sum_over_ranks
from resumable_checkpoints.run_state import CheckpointCompletion, RunState
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from training_loop import resumed_settings
from training_loop.loss_meter import LossMeter, MeanLosses
from training_loop.run_folders import write_errors_of
from training_loop.training_log import TrainingLog

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # from clusters, Ctrl-C and a closed terminal
STOPPED = 128 + signal.SIGTERM  # exit status of a run that a signal ended with a checkpoint
SIGINT_REPEAT_SECONDS = 1.0  # a launcher may repeat a terminal's SIGINT; a SIGINT after this time is a second Ctrl-C
RESUME = "the same command with --resume_from_checkpoint True resumes the run"


def leave_signals_to_parent(worker: int) -> None:
    """Make a data loader's worker ignore STOP_SIGNALS: systemd, `timeout` and Slurm send them to a whole group."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class ProgressBar(ProgressCallback):
    """Trainer's progress bar without its printing of log entries; `SourceTrainer.log` prints them."""

    def on_log(self, *arguments: Any, **more: Any) -> None:
        pass


class StepControl(TrainerCallback):
    """Calls the trainer before the first step and after each step."""

    def __init__(self, trainer: "SourceTrainer") -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        state.compute_steps(args, state.max_steps)  # replaces logging, evaluation and saving steps of the checkpoint
        self.trainer.check_restart()
        self.trainer.check_fsdp()
        self.trainer.check_weights()
        self.trainer.use_own_settings()
        self.trainer.before_training()
        self.trainer.has_begun = True

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.trainer.has_changed_weights = True
        self.trainer.check_step(control)


def save_tied_matrices_once(model: Any) -> None:
    """Make the model's save_pretrained store one of two tied matrices.

    Under ZeRO-1 and 2, Trainer passes independent copies of both, which save_pretrained would store.
    """
    save, tied = model.save_pretrained, model.all_tied_weights_keys  # name of a tied weight -> name that is stored

    def save_pretrained(folder: Any, *more: Any, state_dict: dict[str, Any] | None = None, **options: Any) -> None:
        if state_dict:
            state_dict = {name: weight for name, weight in state_dict.items() if name not in tied}
        save(folder, *more, state_dict=state_dict, **options)

    model.save_pretrained = save_pretrained


class SourceTrainer(Trainer):
    """Trainer that logs losses by source; see the module docstring. Subclasses implement the abstract methods.

    Args:
        sources: names of the sources, in the order of their indices.
        batch: the global batch: sequences or examples per step.
        first_step: the step of the checkpoint to resume from; 0 for a new run.
        log_path: the log file (JSON lines).
        max_bad_steps: consecutive steps with a non-finite loss or weight after which ValueError is raised.
        more: further arguments of Trainer.
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the tokens of the whole step
    model: Any
    measures_losses = True  # False if compute_loss adds only token counts to the meter

    def __init__(
        self,
        *,
        sources: Sequence[str],
        batch: int,
        first_step: int,
        log_path: Path,
        max_bad_steps: int = 1,
        **more: Any,
    ) -> None:
        config, args = more["model"].config, more["args"]
        resumed_settings.check_steps(args.max_steps, first_step)
        use_cache = config.use_cache
        if args.n_gpu > 1:
            args._n_gpu = 1
        super().__init__(**more)
        config.use_cache = use_cache  # Trainer sets it to False, which save_pretrained would write
        save_tied_matrices_once(self.model)
        if args.save_on_each_node:  # transformers saves a model only on rank 0
            self.model.should_save_on_this_rank = lambda is_main_process: is_main_process and args.should_save
        self.model_accepts_loss_kwargs = True  # makes Trainer count the tokens of the step
        self.batch, self.first_step, self.max_bad_steps = batch, first_step, max_bad_steps
        self.log_file = TrainingLog(log_path)
        self.meter = LossMeter(sources, self.args.device)
        self.stop_requested, self.stopped = False, False  # on this rank; on all ranks
        self.stop_signal, self._stop_time = signal.SIGTERM, 0.0  # the first signal on this rank, and its time
        self.has_changed_weights = False
        self.has_begun = False  # whether the first step has begun, after model and optimizer were prepared
        self._nonfinite_loss = torch.zeros((), dtype=torch.bool, device=self.args.device)  # in this step
        self._bad_steps = 0  # consecutive
        self._logged_at, self._logged_step = time.perf_counter(), first_step
        self.remove_callback(PrinterCallback)
        if self.pop_callback(ProgressCallback):
            self.add_callback(ProgressBar)
        self.add_callback(StepControl(self))
        self.add_callback(CheckpointCompletion(self.run_state))

    def run_state(self) -> RunState:
        """Return the run state to store in a checkpoint at this step; all ranks call it."""
        raise NotImplementedError

    def epochs(self) -> float:
        """Return the number of passes over the data so far."""
        raise NotImplementedError

    def progress_entry(self, losses: MeanLosses, seconds: float) -> dict[str, float]:
        """Return additional values for a log entry. seconds: duration of the steps since the last entry."""
        raise NotImplementedError

    def measure_held_out(self, meter: LossMeter) -> None:
        """Add the losses of this rank's part of the held-out data to `meter`; called in evaluation mode."""
        raise NotImplementedError

    def held_out_metrics(self, losses: MeanLosses) -> dict[str, float]:
        """Return additional metrics of an evaluation, by name without prefix."""
        return {}

    def before_training(self) -> None:
        """Hook called before the first step, after model and optimizer are prepared."""

    def set_initial_training_values(self, args: Any, dataloader: DataLoader[Any]) -> Any:
        """Return Trainer's step counts for one epoch of all steps, since the loader of a resumed run is shorter."""
        steps, items = args.max_steps, args.max_steps * self.batch
        return 1, steps, items, items, self.batch, steps * args.gradient_accumulation_steps, steps

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        schedule = super().create_scheduler(num_training_steps, optimizer)
        self._settings = resumed_settings.group_settings(self.optimizer)
        return schedule

    def use_own_settings(self) -> None:
        """In a resumed run, replace the settings of the checkpoint by those of the command line, with notices."""
        if self.first_step:
            for notice in resumed_settings.apply_settings(self.optimizer, self.lr_scheduler, self._settings):
                if self.args.should_save:
                    print(f"notice: {notice}", file=sys.stderr)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._nonfinite_loss |= ~loss.isfinite()
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add losses by source, speed and remaining time to Trainer's log entry."""
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                self._tr_loss.zero_()  # Trainer subtracts the sum from itself, so that NaN stays NaN
            now, step = time.perf_counter(), self.state.global_step
            seconds, steps = max(now - self._logged_at, 1e-9), max(step - self._logged_step, 1)
            losses = self.meter.take()
            if self.measures_losses:
                logs |= {f"loss_{name}": round(loss, 4) for name, loss in losses.by_source.items()}
            logs |= self.progress_entry(losses, seconds)
            logs["eta_seconds"] = round(seconds / steps * (self.args.max_steps - step))
            self._logged_at, self._logged_step = now, step
        self.state.epoch = self.epochs()
        super().log(logs, start_time)
        if self.args.should_save:
            self.log_file.update(self.state.log_history, self.args.max_steps)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the mean held-out loss per token, total and by source; it does not depend on batch size or ranks.

        A stop signal ends the evaluation after the current batch, without metrics; see `skip_evaluation`.
        """
        begun, training = time.perf_counter(), self.model_wrapped.training
        meter = LossMeter(self.meter.names, self.args.device)
        self.model_wrapped.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            self.measure_held_out(meter)
        if self.is_stopping():
            return self.skip_evaluation(training)
        losses = meter.take()
        metrics = {"loss": losses.mean}
        if len(losses.by_source) > 1:
            metrics |= {f"loss_{name}": loss for name, loss in losses.by_source.items()}
        metrics |= self.held_out_metrics(losses)
        if self.is_stopping():
            return self.skip_evaluation(training)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.model_wrapped.train(training)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._logged_at += time.perf_counter() - begun  # evaluation does not count as training time
        return metrics

    def is_stopping(self) -> bool:
        """Return whether a rank received a stop signal; all ranks call it at the same batch."""
        return bool(sum_over_ranks(torch.tensor(int(self.stop_requested), device=self.args.device)) > 0)

    def skip_evaluation(self, training: bool) -> dict[str, float]:
        """Print a notice; return NaN for the metric that chooses the best checkpoint, so that this step is not chosen.

        training: the mode that the model returns to.
        """
        self.model_wrapped.train(training)
        if self.args.should_save:
            print(f"notice: a signal ended the evaluation after step {self.state.global_step}", file=sys.stderr)
        name = self.args.metric_for_best_model
        return {f"eval_{name.removeprefix('eval_')}": math.nan} if name else {}

    def check_step(self, control: Any) -> None:
        """Stop all ranks if one received a signal; skip saving on all ranks if one has a non-finite loss or weight.

        Weights are checked only before they are saved, since they become non-finite one step before the loss. Raises
        ValueError after `max_bad_steps` consecutive non-finite steps.
        """
        flags = torch.stack([torch.tensor(self.stop_requested, device=self.args.device), self._nonfinite_loss]).int()
        stop, bad = (count > 0 for count in sum_over_ranks(flags).tolist())
        bad = bad or ((stop or control.should_save) and self.has_nonfinite_weights())
        self._nonfinite_loss.zero_()
        self._bad_steps = self._bad_steps + 1 if bad else 0
        if bad:
            control.should_save = False  # the newest checkpoint must be finite
            if self._bad_steps >= self.max_bad_steps:
                raise self._nonfinite_error(f"the loss or a weight was not finite for {self._bad_steps} steps up to")
        elif stop:
            self.stopped = control.should_training_stop = control.should_save = True
            control.should_evaluate = False  # with --save_strategy best, an evaluation decides whether to save

    def check_restart(self) -> None:
        """Forget losses of a step that ran out of memory; raise ValueError if a step before it changed the weights.

        With --auto_find_batch_size, Trainer starts again at the first step, but keeps the changed weights.
        """
        self.meter.sums.zero_()
        if self.args.auto_find_batch_size and self.has_changed_weights:
            raise ValueError(
                "out of memory after the first step, which --auto_find_batch_size cannot repeat; start again with a "
                "lower --per_device_train_batch_size, or resume with it: --resume_from_checkpoint True"
            )

    def check_fsdp(self) -> None:
        """Raise ValueError if --fsdp has no effect."""
        wrapper = type(self.model_wrapped).__name__
        if self.args.fsdp and "FSDP" not in wrapper and "FullySharded" not in wrapper:
            raise ValueError(f"--fsdp has no effect here (the model is a {wrapper}); remove it, or use --deepspeed")

    def has_nonfinite_weights(self) -> bool:
        """Return whether a trained weight is non-finite on any rank; all ranks call it (ZeRO-3: each for its part)."""
        trained = (weight for weight in self.model.parameters() if weight.requires_grad)
        finite = [getattr(weight, "ds_tensor", weight).detach().isfinite().all() for weight in trained]
        return bool(sum_over_ranks((~torch.stack(finite).all()).int().to(self.args.device)) > 0)

    def check_weights(self) -> None:
        """Raise ValueError if a weight is not finite before the first step, frozen weights included."""
        bad = [name for name, weight in self.model.named_parameters()
               if not getattr(weight, "ds_tensor", weight).detach().isfinite().all()]  # fmt: skip
        if sum_over_ranks(torch.tensor(len(bad), device=self.args.device)) > 0:
            where, remedy = "the base", "download it again"
            if self.first_step:
                where = f"the checkpoint of step {self.first_step}"
                remedy = "name an earlier one with --resume_from_checkpoint"
            example = f", such as {bad[0]}" if bad else ""
            raise ValueError(f"{where} has weights that are not finite (NaN or infinite){example}; {remedy}")

    def _nonfinite_error(self, fact: str) -> ValueError:
        return ValueError(
            f"{fact} step {self.state.global_step}; lower --learning_rate (or use --bf16, not --fp16) and resume from "
            "the last checkpoint: --resume_from_checkpoint True"
        )

    def train_until_stopped(self, checkpoint: Path | None) -> Any:
        """Train, from a checkpoint if given, and return Trainer's result.

        A signal of STOP_SIGNALS, unless the process ignores it, ends the run after the current step with a checkpoint
        and sets `stopped`. Raises ValueError if losses or weights are not finite or the disk is full, and
        KeyboardInterrupt at a second Ctrl-C.
        """
        before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        for number in STOP_SIGNALS:
            if before[number] is not signal.SIG_IGN:  # nohup, or a shell's background job
                signal.signal(number, self._request_stop)
        try:
            with write_errors_of(Path(self.args.output_dir or "")):
                result = self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # ends the loader's workers, for which Python would wait
            raise
        finally:
            for number, handler in before.items():
                at_once = signal.SIG_DFL if handler is stop_before_first_step else handler
                signal.signal(number, at_once)
        if self.has_nonfinite_weights():
            raise self._nonfinite_error("weights are not finite after")
        if self.stopped and self.args.should_save:
            line = f"stopped by {self.stop_signal.name} after step {result.global_step}, with a checkpoint; {RESUME}"
            print(line, file=sys.stderr)
        return result

    def _request_stop(self, number: int, *_: object) -> None:
        """Signal handler of STOP_SIGNALS."""
        if not self.has_begun:
            stop_before_first_step(number)
        now = time.monotonic()
        if not self.stop_requested:
            self.stop_requested, self.stop_signal, self._stop_time = True, signal.Signals(number), now
        elif number == signal.SIGINT and now > self._stop_time + SIGINT_REPEAT_SECONDS:
            raise KeyboardInterrupt
