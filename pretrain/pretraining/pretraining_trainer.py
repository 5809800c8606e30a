"""Trainer for continued pretraining on packed sequences in a SequenceOrder; the loss of a step is the mean over tokens.

The log, checks after each step, evaluation and checkpoints are in training_loop/, which instruction tuning also uses.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device
from packed_attention.isolation_check import keeps_segments_apart
from packed_attention.segment_attention import attention_arguments, attention_of
from resumable_checkpoints.run_state import RunState
from sequence_packing.sequence_batches import IGNORED, HeldOutSequences, RankBatchSampler, TrainingSequences
from torch.nn.functional import cross_entropy, pad
from torch.utils.data import DataLoader
from training_loop.loss_meter import LossMeter, MeanLosses
from training_loop.source_trainer import SourceTrainer, leave_signals_to_parent
from transformers.integrations.deepspeed import deepspeed_init

from pretraining.pretraining_arguments import PretrainingArguments


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy at each position, (sequences, tokens) float32; 0 if the next position has no label.

    logits: (sequences, tokens, vocabulary). labels: (sequences, tokens) int64.
    """
    targets = pad(labels, (0, 1), value=IGNORED)[:, 1:]
    losses = cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view_as(labels)


@dataclass(frozen=True)
class StartPoint:
    """Where the run starts or resumes."""

    step: int = 0  # number of steps before the start
    index: int = 0  # global index of the first sequence
    tokens: int = 0  # number of tokens trained on before the start


class PretrainingTrainer(SourceTrainer):
    """Trains on packed sequences in their order, beginning at the start point.

    Args:
        sequences: the training sequences in order.
        held_out: the sequences for evaluation, or None.
        identity: the settings that must be equal to resume this run; see RunState.
        start: where the run starts or resumes.
        seconds_per_token: time per token at the peak FLOP/s of all GPUs, for MFU; 0 if not known.
        more: further arguments of SourceTrainer and Trainer.
    """

    args: PretrainingArguments

    def __init__(
        self, sequences: TrainingSequences, held_out: HeldOutSequences | None, identity: dict[str, Any],
        start: StartPoint, seconds_per_token: float = 0.0, **more: Any,
    ) -> None:  # fmt: skip
        args = more["args"]
        super().__init__(
            sources=sequences.groups.names, first_step=start.step, max_bad_steps=args.max_nan_steps,
            train_dataset=sequences,
            batch=args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
            eval_dataset=held_out, **more,
        )  # fmt: skip
        self.sequences, self.held_out, self.identity, self.start = sequences, held_out, identity, start
        self.tokens_seen, self.seconds_per_token = start.tokens, seconds_per_token
        self.measures_losses = not args.use_liger_kernel
        self._waited = 0.0  # seconds spent waiting for data since the last log entry

    @property
    def next_index(self) -> int:
        """The global sequence index at which the next step begins."""
        return self.start.index + (self.state.global_step - self.start.step) * self.batch

    def get_train_dataloader(self) -> DataLoader[Any]:
        args = self.args
        batches = RankBatchSampler(
            self.start.index, (args.max_steps - self.start.step) * args.gradient_accumulation_steps,
            args.per_device_train_batch_size, args.process_index, args.world_size,
        )  # fmt: skip
        return self._loader(self.sequences, batches)

    def _loader(self, sequences: Any, batches: Any) -> DataLoader[Any]:
        args = self.args
        return DataLoader(
            sequences, batch_sampler=batches, collate_fn=self.data_collator, num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            prefetch_factor=args.dataloader_prefetch_factor, worker_init_fn=leave_signals_to_parent,
            generator=torch.Generator(),  # otherwise starting the loader would change dropout's random numbers
        )  # fmt: skip

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        begun = time.perf_counter()
        batches = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._waited += time.perf_counter() - begun
        return batches

    def before_training(self) -> None:
        """Raise ValueError if samples of a packed sequence attend to each other: some backends ignore position_ids."""
        collator: Any = self.data_collator
        if collator.packed and not keeps_segments_apart(self.model_wrapped, attention_of(self.model), self.args.device):
            raise ValueError(
                "the samples of a packed sequence attend to each other in this model; "
                "name another --attn_implementation, or give --no_packing"
            )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return (summed loss of this micro batch / tokens of the step) x ranks, as ranks average their gradients."""
        sources, labels = inputs.pop("sources"), inputs["labels"]
        if self.args.use_liger_kernel:  # its fused loss does not return the loss of each token
            inputs |= self._attention_arguments(inputs)
            loss = model(**inputs, use_cache=False, num_items_in_batch=num_items_in_batch).loss
            losses = torch.zeros_like(labels, dtype=torch.float32)
        else:
            losses = token_losses(self._logits(model, inputs), labels)
            loss = losses.sum() / num_items_in_batch
        self._add_losses(self.meter, losses, labels, sources)
        return loss * self.args.world_size

    def _attention_arguments(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments that keep the samples of packed sequences apart; removes segments from `inputs`."""
        segments = inputs.pop("segments", None)
        return attention_arguments(attention_of(self.model), segments, inputs["input_ids"].device) if segments else {}

    def _logits(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the logits of the model, (sequences, tokens, vocabulary); removes labels from `inputs`."""
        del inputs["labels"]
        attention = self._attention_arguments(inputs)
        return model(**inputs, **attention, use_cache=False).logits

    def _add_losses(
        self, meter: LossMeter, losses: torch.Tensor, labels: torch.Tensor, sources: torch.Tensor, weight: float = 1
    ) -> None:
        """Add losses by source to a meter. losses, labels: (sequences, tokens). sources: (sequences,)."""
        meter.add(losses.double().sum(1), labels[:, 1:].ne(IGNORED).sum(1), sources, weight)

    def epochs(self) -> float:
        return round(self.next_index / max(1, self.sequences.packed.train_count), 4)

    def progress_entry(self, losses: MeanLosses, seconds: float) -> dict[str, float]:
        self.tokens_seen += losses.tokens
        rate, order = losses.tokens / seconds, self.sequences.order
        entry: dict[str, float] = {"tokens_per_second": round(rate), "tokens": self.tokens_seen}
        if self.seconds_per_token:
            entry["mfu"] = round(rate * self.seconds_per_token, 4)
        sizes = dict(zip(order.names, order.sizes.tolist(), strict=True))
        for name, consumed in order.consumed(self.next_index).items():
            entry[f"sequences_{name}"] = consumed
            entry[f"epochs_{name}"] = round(consumed / max(1, sizes[name]), 4)
        if self.args.fp16:
            entry["skipped_steps"] = int(getattr(self.model_wrapped, "skipped_steps", 0))
        entry["data_wait"] = round(self._waited / seconds, 4)
        self._waited = 0.0
        return entry

    def evaluate_untrained(self) -> dict[str, float]:
        """Return the held-out metrics of the model as it was loaded; DeepSpeed supports this under ZeRO-3 only."""
        if self.is_deepspeed_enabled:
            deepspeed_init(self, num_training_steps=0, inference=True)
            self.model_wrapped = self.deepspeed = self.accelerator.prepare(self.model)
        else:
            self.model_wrapped = self.accelerator.prepare_model(self.model, evaluation_mode=True)
        return self.evaluate()

    def measure_held_out(self, meter: LossMeter) -> None:
        """Add the losses of this rank's batches, every world_size-th batch, to a meter.

        A rank with fewer batches repeats a batch with weight 0, since ZeRO-3 needs all ranks in every forward pass.
        """
        assert self.held_out is not None
        args, size, total = self.args, self.args.per_device_eval_batch_size, len(self.held_out)
        batches = [list(range(at, min(at + size, total))) for at in range(0, total, size)]
        numbers = range(args.process_index, -(-len(batches) // args.world_size) * args.world_size, args.world_size)
        loader = self._loader(self.held_out, [batches[number % len(batches)] for number in numbers])
        for number, batch in zip(numbers, loader, strict=True):
            if self.is_stopping():
                break
            inputs = send_to_device(batch, args.device)
            sources, labels = inputs.pop("sources"), inputs["labels"]
            losses = token_losses(self._logits(self.model_wrapped, inputs), labels)
            self._add_losses(meter, losses, labels, sources, weight=number < len(batches))

    def held_out_metrics(self, losses: MeanLosses) -> dict[str, float]:
        return {f"perplexity_{name}": math.exp(min(loss, 700)) for name, loss in losses.by_source.items()}

    def run_state(self) -> RunState:
        progress = {
            "next_index": self.next_index, "tokens": self.tokens_seen + self.meter.tokens(),
            "ranks": self.args.world_size, "schedule": self.sequences.order.state(),
        }  # fmt: skip
        return RunState(self.identity, progress)
