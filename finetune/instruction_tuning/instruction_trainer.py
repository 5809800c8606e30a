"""Trainer for instruction tuning: whole steps as batches, loss by supervised token, held-out loss and answers.

One item of the data loader is one step: this rank's micro batches. The step's loss is the mean over the supervised
tokens of the global batch, whose number every rank knows beforehand, so that loss and gradient are the same for all
ways to divide a batch into micro batches and ranks. What it shares with pretraining (log, checks after each step,
evaluation, checkpoints) is training_loop/.
"""

import inspect
import math
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import DistributedType, send_to_device
from example_packing.example_batches import IGNORED, Layout, Steps, share
from example_packing.example_order import Order
from packed_attention import segment_attention
from packed_attention.isolation_check import keeps_segments_apart, shares_prefixes
from packed_attention.segment_attention import attention_arguments, attention_of
from resumable_checkpoints.run_state import RunState
from torch.utils.data import DataLoader
from training_loop.loss_meter import LossMeter, MeanLosses
from training_loop.source_trainer import SourceTrainer
from transformers.trainer_utils import IntervalStrategy

from instruction_tuning.tuning_arguments import TuningArguments
from instruction_tuning.tuning_data import Data

STRATEGIES = ("logging_strategy", "eval_strategy", "save_strategy")


class InstructionTrainer(SourceTrainer):
    """Trains on the steps of `data.order` from `first_step` on.

    Args:
        data: rows, their order, and the held-out rows.
        layout: how rows become micro batches; turned to padding where the model cannot keep packed rows apart.
        identity: what must be equal to resume this run; see RunState.
        more: arguments of SourceTrainer and Trainer.
    """

    args: TuningArguments

    def __init__(self, data: Data, layout: Layout, identity: dict[str, Any], **more: Any) -> None:
        self.data, self.layout, self.identity = data, layout, identity
        super().__init__(
            sources=data.rows.names, batch=data.order.batch, train_dataset=Steps(data.rows, data.order, layout, 0, 1),
            **more,
        )  # fmt: skip
        self.args.include_num_input_tokens_seen = "no"  # Trainer cannot count a step's tokens; every entry has them

    # --- steps --------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        args = self.args
        micro = self.get_total_train_batch_size(args) // args.world_size  # lower under --auto_find_batch_size
        self.layout.micro, self.layout.capacity = micro, micro * args.cutoff_len
        steps = Steps(self.data.rows, self.data.order, self.layout, args.process_index, args.world_size)
        return DataLoader(
            steps, batch_size=None, sampler=range(self.first_step, args.max_steps),
            num_workers=args.dataloader_num_workers, prefetch_factor=args.dataloader_prefetch_factor,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            generator=torch.Generator(),  # else starting it would advance the generator of dropout
        )  # fmt: skip

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """One step and its number of supervised tokens; none after the last step."""
        step = next(epoch_iterator, None)
        return ([step], step["items"]) if step else ([], None)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward over the micro batches; gradients are exchanged after the last one."""
        under_deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        loss = torch.zeros((), device=self.args.device)
        for left, micro in zip(reversed(range(len(inputs["micro_batches"]))), inputs["micro_batches"], strict=True):
            self.accelerator.sync_gradients = not left
            with self.accelerator.no_sync(model) if left and not under_deepspeed else nullcontext():
                loss += super().training_step(model, micro, num_items_in_batch)
        self.state.num_input_tokens_seen += inputs["tokens"]
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This micro batch's sum by the step's supervised tokens; times ranks, over which gradients are averaged."""
        losses, targets, sources = self.token_losses(model, inputs)
        self.meter.add(losses, targets.ne(IGNORED), sources)
        return losses.sum() / num_items_in_batch * self.args.world_size

    def token_losses(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Losses of the kept positions, 0 where there is no target, with their targets and sources, (lines, kept)."""
        more: dict[str, Any] = {
            key: inputs[key] for key in ("input_ids", "position_ids", "attention_mask") if key in inputs
        }
        if self.layout.packed:
            more |= attention_arguments(attention_of(self.base_model), [inputs["segments"]], more["input_ids"].device)
        keep, targets = inputs["keep"], inputs["targets"]
        narrow = self._narrow_head
        logits = model(**more, use_cache=False, **({"logits_to_keep": keep} if narrow else {})).logits
        logits = (logits if narrow or not self.layout.supervised_head else logits[:, keep]).float()
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
        )
        return losses.view_as(targets), targets, inputs["sources"]

    @property
    def base_model(self) -> Any:
        """The model without its adapter's wrapper."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @cached_property
    def _narrow_head(self) -> bool:
        """Whether the model computes the logits of given positions only."""
        return self.layout.supervised_head and "logits_to_keep" in inspect.signature(self.base_model.forward).parameters

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Trainer's count for the tokens of the step."""
        return super().floating_point_ops({"input_ids": torch.empty(inputs["tokens"], device="meta")})

    # --- before the first step ----------------------------------------------------------------------------------------

    def before_training(self) -> None:
        """Raise ValueError where --fsdp has no effect; pad where this model lets rows of a line see each other."""
        kind = type(self.model_wrapped).__name__
        if self.args.fsdp and "FSDP" not in kind and "FullySharded" not in kind:
            raise ValueError(
                f"--fsdp was given, but the model is wrapped as {kind} here; leave --fsdp out, or take --deepspeed"
            )
        if not self.layout.packed:
            return
        attention = attention_of(self.base_model)
        with self.compute_loss_context_manager():
            trial = (self.model_wrapped, attention, self.args.device)
            if keeps_segments_apart(*trial):
                self.layout.shared = self.layout.shared and shares_prefixes(*trial)
                return
        if self.args.packing == "true":
            raise ValueError(
                f"--packing True: rows of a line see each other in {type(self.base_model).__name__} with {attention} "
                "attention; leave --packing out, and rows are padded"
            )
        if attention == segment_attention.NAME:
            self.base_model.set_attn_implementation("sdpa")
        self.layout.packed = False
        if self.args.train_sampling_strategy == "auto":
            self.data.order.bring_similar_together()

    def create_optimizer(self, model: Any = None) -> Any:
        if self.args.loraplus_lr_ratio and self.optimizer is None:
            from peft.optimizers import create_loraplus_optimizer

            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = create_loraplus_optimizer(
                self.model, kind, loraplus_lr_ratio=self.args.loraplus_lr_ratio,
                loraplus_weight_decay=self.args.weight_decay, **settings,
            )  # fmt: skip
        return super().create_optimizer(model)

    # --- log, evaluation, checkpoints ---------------------------------------------------------------------------------

    def epochs(self) -> float:
        return self.state.global_step / self.data.order.steps

    def progress_entry(self, losses: MeanLosses, seconds: float) -> dict[str, float]:
        return {
            "supervised_tokens_per_second": round(losses.tokens / seconds, 1),
            "num_input_tokens_seen": self.state.num_input_tokens_seen,
        }

    def measure_held_out(self, meter: LossMeter) -> None:
        args, rows = self.args, self.data.rows
        micro = args.per_device_eval_batch_size
        layout = replace(self.layout, micro=micro, capacity=micro * args.cutoff_len)
        together = micro * args.world_size * 8  # rows laid out at once
        members = np.array(sorted(self.data.held_out, key=lambda row: -rows.lengths[row]))
        for start in range(0, len(members), together):
            mine = share(rows, members[start : start + together], layout, args.process_index, args.world_size)
            for micro_batch in mine["micro_batches"]:
                batch = send_to_device(micro_batch, args.device)
                losses, targets, sources = self.token_losses(self.model_wrapped, batch)
                meter.add(losses, targets.ne(IGNORED), sources)

    def held_out_metrics(self, losses: MeanLosses) -> dict[str, float]:
        """Scores of the held-out answers; raises ValueError where the loss is not finite."""
        if not math.isfinite(losses.mean):
            raise ValueError(f"eval_loss is {losses.mean} at step {self.state.global_step}; lower --learning_rate")
        return self.data.scores(self) if self.data.scores else {}

    def run_state(self) -> RunState:
        return RunState(self.identity, {"step": self.state.global_step, "ranks": self.args.world_size})


def run_identity(args: TuningArguments, data: Data) -> dict[str, Any]:
    """What must be equal for a run to be the continuation of another one; see RunState.

    The key of encoded rows stands for file, tokenizer, template, --cutoff_len and --train_on_inputs.
    """
    names = ("batch_size", "seed", "data_seed", "mix", "val_set_size", "method", "load_in", "train_sampling_strategy")
    adapter = ("lora_r", "lora_alpha", "lora_target_modules", "lora_modules_to_save", "lora_bias", "lora_init")
    taken = names if args.method == "full" else (*names, *adapter, "use_rslora", "use_dora")
    keys = [part.folder.name for part in data.rows.parts]
    return {"--data_path (with tokenizer, template and --cutoff_len)": keys} | {
        f"--{name}": getattr(args, name) for name in taken
    }


def in_steps(args: TuningArguments, order: Order) -> None:
    """Turn epochs into steps: --num_epochs, and "epoch" as a strategy."""
    if args.max_steps <= 0:
        args.max_steps = math.ceil(args.num_train_epochs * order.steps)
    for name in STRATEGIES:
        if getattr(args, name) == IntervalStrategy.EPOCH:
            setattr(args, name, IntervalStrategy.STEPS)
            setattr(args, name.replace("strategy", "steps"), order.steps)


def has_dropout(model: Any, args: TuningArguments) -> bool:
    """Whether a forward pass is random: rows that share a prefix would share its dropout."""
    config = model.config.get_text_config().to_dict()
    rates = [value for key, value in config.items() if "drop" in key and isinstance(value, int | float)]
    return any(rates) or (args.method != "full" and args.lora_dropout > 0)


def make_trainer(
    args: TuningArguments, model: Any, tokenizer: Any, data: Data, identity: dict[str, Any], first_step: int = 0
) -> InstructionTrainer:
    """The trainer of a run; data.held_out may be empty."""
    in_steps(args, data.order)
    args.ignore_data_skip = True  # the loader begins at its step; nothing needs to be skipped
    layout = Layout(
        packed=args.packing != "false" and segment_attention.can_pack(model),
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
        raise ValueError(
            f"--packing True: {type(model).__name__} with {attention_of(model)} attention cannot keep rows of a line "
            "apart; leave --packing out, and rows are padded"
        )
    return InstructionTrainer(
        data, layout, identity, first_step=first_step, log_path=Path(args.output_dir or "", "train_log.jsonl"),
        args=args, model=model, processing_class=tokenizer, eval_dataset=data.held_out or None,
        data_collator=lambda rows: rows,
    )  # fmt: skip
