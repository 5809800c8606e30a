"""Trainer for instruction tuning: mean loss over the supervised tokens of a step, and scores of held-out answers.

An item of the data loader holds this rank's micro batches of one step. The loss of a step is the mean over the
supervised tokens of the global batch. Every rank knows the number of these tokens in advance, so loss and gradient do
not depend on how the batch is divided into micro batches and ranks. training_loop/ has the parts that pretraining also
uses: log, checks after each step, evaluation, checkpoints.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import DistributedType, send_to_device
from example_packing.example_batches import IGNORED, BatchLayout, StepDataset, rank_share
from packed_attention import segment_attention
from packed_attention.isolation_check import keeps_segments_apart, shares_prefixes
from packed_attention.segment_attention import attention_arguments, attention_of
from resumable_checkpoints.run_state import RunState
from torch.utils.data import DataLoader
from training_loop.loss_meter import LossMeter, MeanLosses
from training_loop.source_trainer import SourceTrainer, leave_signals_to_parent
from training_loop.trainer_options import count_epochs_in_steps

from instruction_tuning.tuning_arguments import TuningArguments
from instruction_tuning.tuning_data import TuningData


class InstructionTrainer(SourceTrainer):
    """Trains on the steps of `data.order` from `first_step` on.

    Args:
        data: examples, their order, and the held-out examples.
        layout: how examples become micro batches; it is changed to one example per sequence if the attention of the
            model mixes the examples of a packed sequence.
        identity: the settings that must be equal to resume this run; see RunState.
        more: arguments of SourceTrainer and Trainer.
    """

    args: TuningArguments
    answer_scorer: Callable[[Any], dict[str, float]] | None = None  # with --eval_generate: scores of held-out answers

    def __init__(self, data: TuningData, layout: BatchLayout, identity: dict[str, Any], **more: Any) -> None:
        self.data, self.layout, self.identity = data, layout, identity
        super().__init__(sources=data.examples.names, batch=data.order.batch_size, **more)

    def get_train_dataloader(self) -> DataLoader[Any]:
        args = self.args
        micro = self.get_total_train_batch_size(args) // args.world_size  # lower under --auto_find_batch_size
        self.layout.capacity = micro * args.cutoff_len
        steps = StepDataset(self.data.examples, self.data.order, self.layout, args.process_index, args.world_size)
        return DataLoader(
            steps, batch_size=None, sampler=range(self.first_step, args.max_steps),
            num_workers=args.dataloader_num_workers, prefetch_factor=args.dataloader_prefetch_factor,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            worker_init_fn=leave_signals_to_parent,
            generator=torch.Generator(),  # otherwise the loader would draw from the generator that dropout uses
        )  # fmt: skip

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Return ([next step], number of its supervised tokens), or ([], None) after the last step."""
        step = next(epoch_iterator, None)
        return ([step], step["supervised"]) if step else ([], None)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Run forward and backward over the micro batches of a step.

        Gradients are reduced over the ranks in the last backward pass; ZeRO-2 and ZeRO-3 reduce them in every one.
        """
        under_deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        loss = torch.zeros((), device=self.args.device)
        for number, micro_batch in enumerate(inputs["micro_batches"], start=1):
            last = number == len(inputs["micro_batches"])
            self.accelerator.sync_gradients = last
            with nullcontext() if last or under_deepspeed else self.accelerator.no_sync(model):
                loss += super().training_step(model, micro_batch, num_items_in_batch)
        self.state.num_input_tokens_seen += inputs["tokens"]
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the summed loss of this micro batch, divided by the supervised tokens of the step, times the ranks.

        The last factor cancels the averaging of gradients over the ranks.
        """
        losses, targets, sources = self.token_losses(model, inputs)
        self.meter.add(losses, targets.ne(IGNORED), sources)
        return losses.sum() / num_items_in_batch * self.args.world_size

    def token_losses(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the losses at the kept positions (0 without a target), targets and sources, each (1, kept)."""
        keep, targets = inputs["keep"], inputs["targets"]
        arguments = {"input_ids": inputs["input_ids"], "logits_to_keep": keep, "use_cache": False}
        if self.layout.packed:
            segments = attention_arguments(attention_of(self.base_model), [inputs["segments"]], keep.device)
            arguments |= {"position_ids": inputs["position_ids"], **segments}
        losses = torch.nn.functional.cross_entropy(
            model(**arguments).logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
        )
        return losses.view_as(targets), targets, inputs["sources"]

    @property
    def base_model(self) -> Any:
        """The model without PEFT's wrapper."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return Trainer's estimate of floating-point operations for the tokens of the step."""
        return super().floating_point_ops({"input_ids": torch.empty(inputs["tokens"], device="meta")})

    def before_training(self) -> None:
        """Disable packing if the attention of this model mixes packed examples, and prefix sharing if unsupported."""
        if self.layout.packed:
            attention = attention_of(self.base_model)
            with self.compute_loss_context_manager():
                checked = (self.model_wrapped, attention, self.args.device)
                self.layout.packed = keeps_segments_apart(*checked)
                self.layout.share_prefixes = self.layout.share_prefixes and shares_prefixes(*checked)
            if not self.layout.packed and attention == segment_attention.NAME:
                self.base_model.set_attn_implementation(segment_attention.padded_attention(self.base_model))

    def create_optimizer(self, model: Any = None) -> Any:
        if self.args.loraplus_lr_ratio and self.optimizer is None:
            from peft.optimizers import create_loraplus_optimizer

            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = create_loraplus_optimizer(
                self.model, kind, loraplus_lr_ratio=self.args.loraplus_lr_ratio,
                loraplus_weight_decay=self.args.weight_decay, **settings,
            )  # fmt: skip
        return super().create_optimizer(model)

    def epochs(self) -> float:
        return self.state.global_step / self.data.order.steps

    def progress_entry(self, losses: MeanLosses, seconds: float) -> dict[str, float]:
        return {
            "supervised_tokens_per_second": round(losses.tokens / seconds, 1),
            "num_input_tokens_seen": self.state.num_input_tokens_seen,
        }

    def measure_held_out(self, meter: LossMeter) -> None:
        args, examples = self.args, self.data.examples
        layout = replace(self.layout, capacity=args.per_device_eval_batch_size * args.cutoff_len)
        chunk = args.per_device_eval_batch_size * args.world_size * 8  # examples that are packed together
        members = np.array(sorted(self.data.held_out, key=lambda index: -examples.lengths[index]))
        for start in range(0, len(members), chunk):
            share = rank_share(examples, members[start : start + chunk], layout, args.process_index, args.world_size)
            for micro_batch in share["micro_batches"]:
                if self.is_stopping():
                    return
                batch = send_to_device(micro_batch, args.device)
                losses, targets, sources = self.token_losses(self.model_wrapped, batch)
                meter.add(losses, targets.ne(IGNORED), sources)

    def held_out_metrics(self, losses: MeanLosses) -> dict[str, float]:
        """Return the scores of the held-out answers; raises ValueError if the loss is not finite."""
        if not math.isfinite(losses.mean):
            raise ValueError(f"eval_loss is {losses.mean} at step {self.state.global_step}; lower --learning_rate")
        return self.answer_scorer(self) if self.answer_scorer else {}

    def run_state(self) -> RunState:
        return RunState(self.identity, {"step": self.state.global_step, "ranks": self.args.world_size})


def tuning_identity(args: TuningArguments, data: TuningData) -> dict[str, Any]:
    """Return the settings that must be equal in a run and in the run that resumes it; see RunState.

    The cache key of a source depends on its file, the tokenizer, the template and EncodingSettings.
    """
    names = ["batch_size", "seed", "data_seed", "mix", "val_set_size", "method", "load_in", "train_sampling_strategy"]
    if args.method != "full":
        names += ["lora_r", "lora_alpha", "lora_target_modules", "lora_modules_to_save", "lora_bias", "lora_init"]
        names += ["use_rslora", "use_dora"]
    keys = [part.file.stem for part in data.examples.parts]
    options = {f"--{name}": getattr(args, name) for name in names}
    return {"--data_path (with tokenizer, template and --cutoff_len)": keys} | options


def make_trainer(
    args: TuningArguments, model: Any, tokenizer: Any, data: TuningData, identity: dict[str, Any], first_step: int = 0
) -> InstructionTrainer:
    """Return the trainer of a run.

    Changes `args`: sets max_steps if it is not given, converts the strategy "epoch" of logging, evaluation and saving
    to steps, sets ignore_data_skip, and removes the warm-up of a run of one step.
    """
    if args.max_steps <= 0:
        args.max_steps = math.ceil(args.num_train_epochs * data.order.steps)
    if args.max_steps == 1:
        args.warmup_steps = 0  # the first step of a warm-up has the learning rate 0
    count_epochs_in_steps(args, data.order.steps)
    args.ignore_data_skip = True  # the loader of a resumed run begins at first_step
    config = model.config.get_text_config().to_dict()
    dropouts = [value for key, value in config.items() if "drop" in key and isinstance(value, int | float)]
    dropouts += [args.lora_dropout] if args.method != "full" else []
    has_noise = any(dropouts) or args.neftune_noise_alpha
    embedding = model.get_input_embeddings()
    embedding = embedding.get_base_layer() if hasattr(embedding, "get_base_layer") else embedding  # with LoRA on it
    ids, rows = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0), embedding.num_embeddings
    layout = BatchLayout(
        packed=segment_attention.can_pack(model),
        capacity=args.per_device_train_batch_size * args.cutoff_len,
        share_prefixes=args.share_prefixes and not has_noise,  # else examples would share the noise of their prefix
        pad_id=next(index for index in ids if index is not None and index < rows),
        multiple=1 if args.device.type == "cpu" else 8,
    )
    return InstructionTrainer(
        data, layout, identity, first_step=first_step, log_path=Path(args.output_dir or "", "train_log.jsonl"),
        args=args, model=model, processing_class=tokenizer, eval_dataset=data.held_out or None,
        data_collator=lambda step: step,
    )  # fmt: skip
