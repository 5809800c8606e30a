"""Trainer for instruction rows: whole steps as batches, loss by supervised token, held-out loss and answers by source.

One item of the data loader is one step: this rank's micro batches. The step's loss
is the mean over the supervised tokens of the global batch, a number that every rank knows beforehand, so that loss and
gradient are the same for all ways to cut a batch into micro batches and ranks. To Trainer the run is one long epoch;
"epoch" in its options is turned into steps, and a resumed run begins at its step with nothing to skip.
"""

import inspect
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from example_packing import example_attention
from example_packing.example_batches import IGNORED, Layout, Steps, share
from example_packing.example_order import Order
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import IntervalStrategy

from instruction_tuning.adapters import check_adapter, tensor_names
from instruction_tuning.tuning_arguments import TuningArguments
from instruction_tuning.tuning_data import Data
from instruction_tuning.tuning_log import TuningLog

STRATEGIES = ("logging_strategy", "eval_strategy", "save_strategy")


class Tally:
    """Losses and supervised tokens by source, summed where they arise and looked at seldom."""

    def __init__(self, names: list[str], device: torch.device) -> None:
        self.names = names
        self.sums = torch.zeros(2, len(names), dtype=torch.float64, device=device)

    def add(self, losses: torch.Tensor, targets: torch.Tensor, sources: torch.Tensor) -> None:
        """losses, targets, sources: (lines, kept)."""
        values = torch.stack([losses.detach().double(), targets.ne(IGNORED).double()]).flatten(1)
        self.sums.index_add_(1, sources.flatten(), values)

    def take(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> tuple[dict[str, float], float, int]:
        """Mean loss of each source that had a token, the mean of all, and their tokens, over all ranks; starts anew."""
        losses, counts = reduce(self.sums.clone()).tolist()
        self.sums.zero_()
        means = {name: loss / count for name, loss, count in zip(self.names, losses, counts, strict=True) if count}
        return means, sum(losses) / max(1, sum(counts)), round(sum(counts))


class Bar(ProgressCallback):
    """Trainer's bar; the log's lines are written by `InstructionTrainer.log`."""

    def on_log(self, *arguments: Any, **more: Any) -> None:
        pass


class InstructionTrainer(Trainer):
    """See the head of this file. `first` is the step that a resumed run goes on from, else 0."""

    args: TuningArguments
    model: Any
    loss_is_scaled_for_ga = True

    def __init__(
        self, args: TuningArguments, data: Data, layout: Layout, first: int, log: TuningLog, **more: Any
    ) -> None:
        self.data, self.layout, self.first, self.log_file = data, layout, first, log
        config = more["model"].config
        use_cache = config.use_cache
        super().__init__(args=args, train_dataset=Steps(data.rows, data.order, layout, 0, 1), **more)
        config.use_cache = use_cache  # Trainer turns it off for good; here each forward pass says it
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)
        if self.pop_callback(ProgressCallback):
            self.add_callback(Bar)
        self.tally = Tally(data.rows.names, args.device)
        self._bad = torch.zeros((), device=args.device)  # losses that were no number
        self._operations = 0  # per token
        self._logged_at, self._logged_step, self._evaluated_at = time.perf_counter(), first, -1

    # --- steps --------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        args = self.args
        self.layout.micro = self._train_batch_size  # fewer than asked for under --auto_find_batch_size
        self.layout.capacity = self.layout.micro * args.cutoff_len
        steps = Steps(self.data.rows, self.data.order, self.layout, args.process_index, args.world_size)
        return DataLoader(
            steps, batch_size=None, sampler=range(self.first, args.max_steps), num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            generator=torch.Generator(),  # or its start would draw from the numbers that dropout draws from
        )  # fmt: skip

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        """Trainer's numbers, for one epoch that is the whole run."""
        steps, batch = args.max_steps, self.data.order.batch
        return 1, steps, steps * batch, steps * batch, batch, steps, steps

    def _init_training_state(self, max_steps: int, *arguments: Any, **more: Any) -> Any:
        """Trainer's, but on a resume, too, it is the command line that says how often to log, evaluate and save."""
        result = super()._init_training_state(max_steps, *arguments, **more)
        self.state.compute_steps(self.args, max_steps)
        return result

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """One step and its number of supervised tokens."""
        step = next(epoch_iterator)
        return [step], step["items"]

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward over the micro batches; gradients are exchanged after the last one."""
        together = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        loss = torch.zeros((), device=self.args.device)
        for left, micro in zip(reversed(range(len(inputs["micro_batches"]))), inputs["micro_batches"], strict=True):
            self.accelerator.gradient_state._set_sync_gradients(not left)
            with self.accelerator.no_sync(model) if left and not together else nullcontext():
                loss += super().training_step(model, micro, num_items_in_batch)
        self._bad += ~loss.isfinite()
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This micro batch's sum by the supervised tokens of the whole step; times ranks, since these are averaged."""
        losses, targets, sources = self.token_losses(model, inputs)
        self.tally.add(losses, targets, sources)
        return losses.sum() / num_items_in_batch * self.args.world_size

    def token_losses(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Losses of the kept positions, 0 where nothing is foretold, with their targets and sources, (lines, kept)."""
        told: dict[str, Any] = {
            key: inputs[key] for key in ("input_ids", "position_ids", "attention_mask") if key in inputs
        }
        if self.layout.packed:
            kind = self._base.config._attn_implementation
            told |= example_attention.arguments_for(kind, inputs["segments"], inputs["input_ids"].device)
        keep, targets = inputs["keep"], inputs["targets"]
        narrow = self._narrow_head
        logits = model(**told, use_cache=False, **({"logits_to_keep": keep} if narrow else {})).logits
        logits = (logits if narrow or not self.layout.supervised_head else logits[:, keep]).float()
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
        )
        return losses.view_as(targets), targets, inputs["sources"]

    @property
    def _base(self) -> Any:
        """The model within its adapter."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @cached_property
    def _narrow_head(self) -> bool:
        """Whether the model is told for which positions logits are wanted."""
        return self.layout.supervised_head and "logits_to_keep" in inspect.signature(self._base.forward).parameters

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Trainer's count, whose walk through all parameters is taken once."""
        first = inputs["micro_batches"][0]["input_ids"]
        self._operations = self._operations or super().floating_point_ops({"input_ids": first}) // first.numel()
        return self._operations * inputs["tokens"]

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        self.state.num_input_tokens_seen += inputs["tokens"]

    # --- before the first step ----------------------------------------------------------------------------------------

    def _prepare_for_training(self, *arguments: Any, **more: Any) -> Any:
        prepared = super()._prepare_for_training(*arguments, **more)
        kind = type(self.model_wrapped).__name__
        if self.args.fsdp and "FSDP" not in kind and "FullySharded" not in kind:
            raise ValueError(
                f"--fsdp was asked for, but the model is wrapped as {kind} here; leave --fsdp out, or take --deepspeed"
            )
        if self.layout.packed:
            self._try_packing()
        return prepared

    def _try_packing(self) -> None:
        """Turn to padded rectangles, or refuse, where this model lets rows of a line see each other."""
        config = self._base.config
        kind, wanted = config._attn_implementation, self.args.packing == "true"
        vocabulary = config.get_text_config().vocab_size
        if example_attention.can_pack(self.model):
            with self.compute_loss_context_manager():
                trial = (self.model_wrapped, kind, vocabulary, self.args.device)
                if example_attention.keeps_rows_apart(*trial):
                    self.layout.shared = self.layout.shared and example_attention.shares_prefixes(*trial)
                    return
        if wanted:
            raise ValueError(
                f"--packing True: rows of a line see each other in {type(self._base).__name__} with {kind} attention; "
                "leave --packing out, and rows are padded"
            )
        if kind == example_attention.NAME:
            self._base.set_attn_implementation("sdpa")
        self.layout.packed = False
        if self.args.train_sampling_strategy == "auto":
            self.data.order.bring_similar_together()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Trainer's, which warns of missing and unexpected weights; here they end the run."""
        adapter = Path(resume_from_checkpoint, "adapter_model.safetensors")
        if adapter.is_file():
            check_adapter(adapter, tensor_names(self.model), trained=False)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def create_optimizer(self, model: Any = None) -> Any:
        if self.args.loraplus_lr_ratio and self.optimizer is None:
            from peft.optimizers import create_loraplus_optimizer

            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = create_loraplus_optimizer(
                self.model, kind, loraplus_lr_ratio=self.args.loraplus_lr_ratio,
                loraplus_weight_decay=self.args.weight_decay, **settings,
            )  # fmt: skip
        return super().create_optimizer(model)

    # --- after each step ----------------------------------------------------------------------------------------------

    def _maybe_log_save_evaluate(self, *arguments: Any, **more: Any) -> None:
        ended = self.state.global_step >= self.args.max_steps and self._evaluated_at < self.args.max_steps
        if ended and self.args.eval_strategy != IntervalStrategy.NO:
            self.control.should_evaluate = True  # the end is looked at, wherever it falls
        if self.control.should_log or self.control.should_save or self.control.should_evaluate:
            self._stop_at_bad_losses()
        super()._maybe_log_save_evaluate(*arguments, **more)

    def _stop_at_bad_losses(self) -> None:
        if self.reduce(self._bad.clone()) > 0:
            raise ValueError(
                f"the loss became no number at or before step {self.state.global_step}; lower --learning_rate, or take "
                "--bf16 for --fp16"
            )

    def reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks."""
        return self.accelerator.reduce(tensor, reduction="sum")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's entry with the loss of each source, the speed and the time that is left."""
        if "loss" in logs:
            logs |= self._entry()
        self.state.epoch = self.state.global_step / self.data.order.steps
        super().log(logs, start_time)
        if self.args.should_save:
            self.log_file.update(self.state.log_history, self.args.max_steps)

    def _entry(self) -> dict[str, float]:
        now, step = time.perf_counter(), self.state.global_step
        seconds, steps = max(now - self._logged_at, 1e-9), max(step - self._logged_step, 1)
        means, _, tokens = self.tally.take(self.reduce)
        self._logged_at, self._logged_step = now, step
        several = self.data.order.takes[1:]  # else its loss is the loss
        return {
            **{f"loss_{name}": round(loss, 4) for name, loss in means.items() if several},
            "supervised_tokens_per_second": round(tokens / seconds, 1),
            "eta_seconds": round(seconds / steps * (self.args.max_steps - step)),
        }

    # --- held-out rows ------------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss of the held-out rows by token, the same for any batch and ranks, and scores of the answers."""
        args, begun = self.args, time.perf_counter()
        self._evaluated_at = self.state.global_step
        rows, held_out = self.data.rows, self.data.held_out
        micro = args.per_device_eval_batch_size
        layout = replace(self.layout, micro=micro, capacity=micro * args.cutoff_len)
        tally = Tally(rows.names, args.device)
        training = self.model_wrapped.training
        self.model_wrapped.eval()
        together = micro * args.world_size * 8  # rows laid out at once
        members = torch.tensor(sorted(held_out, key=lambda row: -rows.lengths[row])).numpy()
        for start in range(0, len(members), together):
            mine = share(rows, members[start : start + together], layout, args.process_index, args.world_size)
            for micro_batch in mine["micro_batches"]:
                with torch.no_grad(), self.compute_loss_context_manager():
                    tally.add(*self.token_losses(self.model_wrapped, self._prepare_inputs(micro_batch)))
        means, mean, _ = tally.take(self.reduce)
        metrics = {f"{metric_key_prefix}_loss": mean}
        if len(means) > 1:
            metrics |= {f"{metric_key_prefix}_loss_{name}": loss for name, loss in means.items()}
        if self.data.scores:
            scores = self.data.scores(self)
            metrics |= {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.model_wrapped.train(training)
        if not math.isfinite(mean):
            raise ValueError(f"eval_loss is {mean} at step {self.state.global_step}; lower --learning_rate")
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._logged_at += time.perf_counter() - begun  # not the training's time
        return metrics


def in_steps(args: TuningArguments, order: Order) -> None:
    """Turn what is said in epochs into steps: --num_epochs, and "epoch" as a strategy."""
    if args.max_steps <= 0:
        args.max_steps = math.ceil(args.num_train_epochs * order.steps)
    for name in STRATEGIES:
        if getattr(args, name) == IntervalStrategy.EPOCH:
            setattr(args, name, IntervalStrategy.STEPS)
            setattr(args, name.replace("strategy", "steps"), order.steps)


def has_dropout(model: Any, args: TuningArguments) -> bool:
    """Whether chance is at work in a forward pass: rows that share a prefix would share its noise."""
    config = model.config.get_text_config().to_dict()
    rates = [value for key, value in config.items() if "drop" in key and isinstance(value, int | float)]
    return any(rates) or (args.method != "full" and args.lora_dropout > 0)


def make_trainer(
    args: TuningArguments, model: Any, tokenizer: Any, data: Data, log: TuningLog, first: int = 0
) -> InstructionTrainer:
    """The trainer of a run; data.held_out may be empty."""
    in_steps(args, data.order)
    args.ignore_data_skip = True  # the loader begins at its step; nothing needs to be skipped
    layout = Layout(
        packed=args.packing != "false" and example_attention.can_pack(model),
        micro=args.per_device_train_batch_size,
        capacity=args.per_device_train_batch_size * args.cutoff_len,
        shared=args.share_prefixes and not has_dropout(model, args),
        pad_id=next(index for index in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if index is not None),
        supervised_head=args.supervised_head,
        multiple=1 if args.device.type == "cpu" else 8,
    )
    if not layout.packed and args.train_sampling_strategy == "auto":
        data.order.bring_similar_together()
    if args.packing == "true" and not layout.packed:
        kind = model.config._attn_implementation
        raise ValueError(
            f"--packing True: {type(model).__name__} with {kind} attention cannot keep rows of a line apart; leave "
            "--packing out, and rows are padded"
        )
    return InstructionTrainer(
        args, data, layout, first, log, model=model, processing_class=tokenizer,
        eval_dataset=data.held_out or None, data_collator=lambda rows: rows,
    )  # fmt: skip
