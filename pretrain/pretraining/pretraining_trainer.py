"""Trainer as continued pretraining needs it: rows by the schedule, losses by source, checkpoints complete or absent.

`pretrain/train.py` is the command line.
"""

import math
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from sequence_packing.packed_batches import IGNORED, Collator, HeldOutRows, RankBatches, Row, ScheduledRows
from sequence_packing.sampler import Schedule
from torch import distributed
from torch.nn.functional import cross_entropy, pad
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer

from pretraining import checkpointing
from pretraining.checkpointing import RunState, wait_for_ranks
from pretraining.pretraining_arguments import PretrainingArguments
from pretraining.training_log import TrainingLog, described


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy at each position, (rows, tokens) float32; 0 where the next position has no label.

    logits: (rows, tokens, vocabulary). labels: (rows, tokens) int64.
    """
    wanted = pad(labels, (0, 1), value=IGNORED)[:, 1:]
    losses = cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view_as(labels)


def summed(values: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks."""
    if distributed.is_initialized():
        distributed.all_reduce(values)
    return values


def check_isolation(model: Any, collator: Collator, device: torch.device) -> None:
    """Raise ValueError where samples of a row see one another, as they do where a model's backend overlooks positions.

    Two rows of two samples, twice: what is said of the second sample may not depend on the first.
    """
    second, said = np.arange(8) % 5, []
    for first in (np.arange(8) % 3, np.arange(8) % 4):
        batch = replace(collator, block_size=16)([Row([first, second], 0), Row([second, first], 0)])
        inputs = {name: v.to(device) if torch.is_tensor(v) else v for name, v in batch.items()}
        del inputs["labels"], inputs["sources"]
        training = model.training
        model.eval()
        with torch.no_grad():
            said.append(model(**inputs, use_cache=False).logits[0, 8:])
        model.train(training)
    if not torch.equal(*said):
        raise ValueError(
            "samples that share a row see one another in this model: name another --attn_implementation or --no_packing"
        )


def are_numbers(model: torch.nn.Module) -> torch.Tensor:
    """Whether all weights are finite, () bool; under ZeRO-3, this rank's share of them."""
    shares = [getattr(parameter, "ds_tensor", parameter).detach() for parameter in model.parameters()]
    return torch.stack([share.isfinite().all() for share in shares]).all()


class Tally:
    """Losses and tokens by source, summed where they arise and looked at seldom."""

    def __init__(self, sources: int, device: torch.device) -> None:
        self.sums = torch.zeros(2, sources, dtype=torch.float64, device=device)

    def add(self, losses: torch.Tensor, labels: torch.Tensor, sources: torch.Tensor, weight: float = 1.0) -> None:
        """losses, labels: (rows, tokens); sources: (rows,)."""
        counts = (labels[:, 1:] != IGNORED).sum(1)
        values = torch.stack([losses.detach().sum(1).double(), counts.double()]) * weight
        self.sums.index_add_(1, sources, values)

    def take(self) -> tuple[list[float], list[int]]:
        """Summed losses and tokens of each source since the last time, over all ranks."""
        total = summed(self.sums.clone())
        self.sums.zero_()
        return total[0].tolist(), [round(count) for count in total[1].tolist()]


class Progress(ProgressCallback):
    """Trainer's bar; what is logged is written by `PretrainingTrainer.log`."""

    def on_log(self, *arguments: Any, **more: Any) -> None:
        pass


class StopSignal:
    """SIGTERM, as a cluster sends before it takes the machine away, noted while this is entered."""

    def __init__(self) -> None:
        self.came = False

    def __enter__(self) -> "StopSignal":
        self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True


class PretrainingTrainer(Trainer):
    """One epoch of Trainer's is the whole run: global rows from `state.next_row` on, in the schedule's order.

    rows: what to train on. held_out: for evaluation, None without. begun: the state at the start of this process's
    work, with its step. log_file: the run's log. seconds_per_token: at the GPUs' peak, for MFU; 0: not known.
    """

    args: PretrainingArguments
    loss_is_scaled_for_ga = True

    def __init__(
        self, rows: ScheduledRows, held_out: HeldOutRows | None, begun: RunState, begun_at: int, log_file: TrainingLog,
        seconds_per_token: float = 0.0, **more: Any,
    ) -> None:  # fmt: skip
        config = more["model"].config
        use_cache = config.use_cache
        super().__init__(train_dataset=rows, eval_dataset=held_out, **more)
        config.use_cache = use_cache  # Trainer turns it off for good; here each forward pass says it
        self.rows, self.held_out, self.log_file = rows, held_out, log_file
        self.begun, self.begun_at = begun, begun_at
        self.tokens_seen, self.seconds_per_token = begun.tokens, seconds_per_token
        self.remove_callback(PrinterCallback)
        if self.pop_callback(ProgressCallback):
            self.add_callback(Progress)
        self.model_accepts_loss_kwargs = True  # that is, count the tokens of the global batch
        self.tally = Tally(len(rows.streams.names), self.args.device)
        self._operations = 0  # per token
        self.stop = StopSignal()
        self.stopped = False  # by the signal
        self._bad = torch.zeros((), dtype=torch.bool, device=self.args.device)  # a loss was no number
        self._bad_in_a_row, self._looked_at = 0, begun_at
        self._waited, self._logged_at, self._logged_step = 0.0, time.perf_counter(), begun_at

    # --- data ---------------------------------------------------------------------------------------------------------

    @property
    def schedule(self) -> Schedule:
        return self.rows.schedule

    @property
    def next_row(self) -> int:
        """The global row index that the next step begins with."""
        return self.begun.next_row + (self.state.global_step - self.begun_at) * self.begun.global_batch

    def get_train_dataloader(self) -> DataLoader[Any]:
        args = self.args
        batches = RankBatches(
            self.begun.next_row, (args.max_steps - self.begun_at) * args.gradient_accumulation_steps,
            args.per_device_train_batch_size, args.process_index, args.world_size,
        )  # fmt: skip
        return self._loader(self.rows, batches)

    def _loader(self, rows: Any, batches: Any) -> DataLoader[Any]:
        args = self.args
        return DataLoader(
            rows, batch_sampler=batches, collate_fn=self.data_collator, num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            persistent_workers=args.dataloader_num_workers > 0,
            prefetch_factor=args.dataloader_prefetch_factor,
        )  # fmt: skip

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        """Trainer's, for a loader that has the steps from where it begins only."""
        batch, steps = self.begun.global_batch, args.max_steps
        return 1, steps, len(self.rows), steps * batch, batch, steps * args.gradient_accumulation_steps, steps

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        begun = time.perf_counter()
        batches = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._waited += time.perf_counter() - begun
        return batches

    def _init_training_state(self, max_steps: int, *arguments: Any, **more: Any) -> Any:
        """Trainer's, but on a resume, too, it is the command line that says how often to log, evaluate and save."""
        result = super()._init_training_state(max_steps, *arguments, **more)
        self.state.compute_steps(self.args, max_steps)
        return result

    def _prepare_for_training(self, *arguments: Any, **more: Any) -> Any:
        prepared = super()._prepare_for_training(*arguments, **more)
        collator: Any = self.data_collator
        if collator.packed:
            check_isolation(self.model_wrapped, collator, self.args.device)
        return prepared

    # --- loss ---------------------------------------------------------------------------------------------------------

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This micro batch's sum by the tokens of the whole global batch; times ranks, since these are averaged."""
        sources, labels = inputs.pop("sources"), inputs["labels"]
        if self.args.use_liger_kernel:  # it computes the loss without ever having all logits
            loss = model(**inputs, use_cache=False, num_items_in_batch=num_items_in_batch).loss
            self.tally.add(torch.zeros_like(labels[:, :1], dtype=torch.float32), labels, sources)
        else:
            del inputs["labels"]
            losses = token_losses(model(**inputs, use_cache=False).logits, labels)
            self.tally.add(losses, labels, sources)
            loss = losses.sum() / num_items_in_batch
        return loss * self.args.world_size

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Trainer's count, whose walk through all parameters is taken once."""
        tokens = inputs["input_ids"].numel()
        self._operations = self._operations or super().floating_point_ops(inputs) // tokens
        return self._operations * tokens

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._bad |= ~loss.isfinite()
        return loss

    # --- after each step ----------------------------------------------------------------------------------------------

    def _maybe_log_save_evaluate(self, *arguments: Any, **more: Any) -> None:
        if self.state.global_step > self._looked_at:
            self._looked_at = self.state.global_step
            self._agree()
        super()._maybe_log_save_evaluate(*arguments, **more)

    def _agree(self) -> None:
        """Let all ranks know whether one was told to stop, or has a loss that is no number; act on it together.

        A checkpoint is kept of weights that are numbers only: one step may spoil them before a loss shows it.
        """
        flags = torch.stack([torch.tensor(self.stop.came, device=self._bad.device), self._bad]).int()
        stop, bad = (count > 0 for count in summed(flags).tolist())
        bad = bad or ((stop or self.control.should_save) and self.has_bad_weights())
        self._bad.zero_()
        self._bad_in_a_row = self._bad_in_a_row + 1 if bad else 0
        if bad:
            self.control.should_save = False  # the last good checkpoint stays the last
            if self._bad_in_a_row >= self.args.max_nan_steps:
                raise ValueError(
                    f"the loss is no number, {self._bad_in_a_row} steps in a row up to step {self.state.global_step}; "
                    "go on from the last checkpoint with a lower --learning_rate: --resume_from_checkpoint True"
                )
        elif stop:
            self.stopped = self.control.should_training_stop = self.control.should_save = True

    def has_bad_weights(self) -> bool:
        """Whether a weight is no number, on any rank; all of them call it."""
        model: Any = self.model
        return bool(summed((~are_numbers(model)).int().to(self._bad.device)) > 0)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's entry with what only this run knows: sources, speed, data, time left."""
        if "loss" in logs:
            logs |= self._entry()
        self.state.epoch = round(self.next_row / max(1, self.rows.rows.to_train_on), 4)
        super().log(logs, start_time)
        if self.args.should_save:
            self.log_file.update(self.state.log_history)
            tqdm.write(described(self.state.log_history[-1], self.args.max_steps))

    def _entry(self) -> dict[str, float]:
        now, step = time.perf_counter(), self.state.global_step
        seconds, steps = max(now - self._logged_at, 1e-9), max(step - self._logged_step, 1)
        losses, counts = self.tally.take()
        self.tokens_seen += sum(counts)
        rate = sum(counts) / seconds
        entry: dict[str, float] = {"tokens_per_second": round(rate), "tokens": self.tokens_seen}
        if self.seconds_per_token:
            entry["mfu"] = round(rate * self.seconds_per_token, 4)
        consumed = self.schedule.consumed(self.next_row)
        for name, loss, count, size in zip(self.rows.streams.names, losses, counts, self.schedule.sizes, strict=True):
            if count and not self.args.use_liger_kernel:
                entry[f"loss_{name}"] = round(loss / count, 4)
            entry[f"rows_{name}"] = consumed[name]
            entry[f"epochs_{name}"] = round(consumed[name] / max(1, int(size)), 4)
        if self.args.fp16:
            entry["skipped_steps"] = int(getattr(self.model_wrapped, "skipped_steps", 0))
        entry["data_wait"] = round(self._waited / seconds, 4)
        entry["eta_seconds"] = round(seconds / steps * (self.args.max_steps - step))
        self._waited, self._logged_at, self._logged_step = 0.0, now, step
        return entry

    # --- held-out perplexity ------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss and perplexity of the held-out rows, all and by source, by token, the same for any number of ranks."""
        assert self.held_out is not None
        args, begun = self.args, time.perf_counter()
        rows = args.per_device_eval_batch_size
        batches = [list(range(at, min(at + rows, len(self.held_out)))) for at in range(0, len(self.held_out), rows)]
        mine = range(args.process_index, -(-len(batches) // args.world_size) * args.world_size, args.world_size)
        tally = Tally(len(self.rows.streams.names), args.device)
        loader = self._loader(self.held_out, [batches[number % len(batches)] for number in mine])
        training = self.model_wrapped.training
        self.model_wrapped.eval()
        for number, inputs in zip(mine, loader, strict=True):  # ranks with less to do go along: ZeRO-3 needs all
            inputs = self._prepare_inputs(inputs)
            sources, labels = inputs.pop("sources"), inputs.pop("labels")
            with torch.no_grad(), self.compute_loss_context_manager():
                logits = self.model_wrapped(**inputs, use_cache=False).logits
            tally.add(token_losses(logits, labels), labels, sources, float(number < len(batches)))
        self.model_wrapped.train(training)
        losses, counts = tally.take()
        metrics = {f"{metric_key_prefix}_loss": sum(losses) / max(1, sum(counts))}
        for name, loss, count in zip(self.rows.streams.names, losses, counts, strict=True):
            if count:
                metrics[f"{metric_key_prefix}_loss_{name}"] = loss / count
                metrics[f"{metric_key_prefix}_perplexity_{name}"] = math.exp(min(loss / count, 700))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._logged_at += time.perf_counter() - begun  # not the training's time
        return metrics

    def evaluate_at_end(self) -> None:
        """Evaluate, if something is held out and that was not done after this step already."""
        done = [entry["step"] for entry in self.state.log_history if "eval_loss" in entry]
        if self.held_out and self.state.global_step not in done:
            self.evaluate()

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def run_state(self, tokens: int) -> RunState:
        """Where this run is now, with so many tokens seen."""
        return replace(self.begun, next_row=self.next_row, tokens=tokens)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Trainer's, then a marker when all of it is on the disk; only then may older ones go."""
        output = Path(str(self.args.output_dir))
        checkpoint = output / f"checkpoint-{self.state.global_step}"
        tokens = self.tokens_seen + int(summed(self.tally.sums.clone())[1].sum())
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            self.run_state(tokens).write(checkpoint)
        wait_for_ranks()
        if self.is_local_process_zero():
            checkpointing.flush(checkpoint)
        wait_for_ranks()
        if self.args.should_save:
            checkpointing.mark_complete(checkpoint)
            checkpointing.keep_newest(output, limit)
        wait_for_ranks()

    def train_until_stopped(self, checkpoint: Path | None) -> Any:
        """Train, from a checkpoint or from the start; SIGTERM ends it after the step, with a checkpoint.

        Raises ValueError where the loss stays no number, or the weights end as none.
        """
        with self.stop:
            result = self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if self.has_bad_weights():
            raise ValueError(
                f"weights are no numbers after step {self.state.global_step}; "
                "go on from the last checkpoint with a lower --learning_rate: --resume_from_checkpoint True"
            )
        return result
