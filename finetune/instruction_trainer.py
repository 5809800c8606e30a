"""Trainer for instruction rows: length-grouped order, a token-weighted eval_loss, and a loss that may not become NaN.

Not a script; finetune.py runs it. That a step's loss is the mean over the supervised tokens of the global batch is
Trainer's own work (it counts them over accumulation steps and ranks and passes num_items_in_batch to the model).
"""

from array import array
from functools import partial
from math import isfinite
from typing import Any

import torch
from instructions import Example
from row_batches import IGNORED, GroupedSampler, collate
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput
from tuning_arguments import TuningArguments


class InstructionTrainer(Trainer):
    """Trainer over rows {"input_ids": array of int32, "spans": supervised [start, end)}."""

    args: TuningArguments
    model: Any

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        lengths = [len(row["input_ids"]) for row in self.train_dataset]  # type: ignore[union-attr]
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return GroupedSampler(lengths, self.args.batch_size or 1, seed)  # the global batch

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Loss summed over tokens and divided once; a row that ranks repeat to fill a batch counts once."""
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64)  # loss, supervised tokens
        for batch in dataloader:
            batch = self._prepare_inputs(batch)
            labels = batch.pop("labels")[:, 1:]
            with torch.no_grad(), self.compute_loss_context_manager():
                logits = self.model(**batch).logits[:, :-1].float()
            losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(1)
            rows = torch.stack([losses, labels.ne(IGNORED).sum(1).to(losses.dtype)], 1)  # (rows, 2)
            sums += self.accelerator.gather_for_metrics(rows).sum(0, dtype=torch.float64).cpu()
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        metrics: dict[str, float] = {f"{metric_key_prefix}_loss": (sums[0] / sums[1]).item()}
        nothing: Any = None
        return EvalLoopOutput(nothing, label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset))


class LossIsFinite(TrainerCallback):
    """Ends a run whose loss is NaN or infinite instead of letting it spoil the weights in silence."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        for name, value in (logs or {}).items():
            if name in ("loss", "eval_loss") and not isfinite(value):
                raise ValueError(
                    f"{name} is {value} at step {state.global_step}; lower --learning_rate, or take --bf16 for --fp16"
                )


def make_trainer(
    args: TuningArguments, model: Any, tokenizer: Any, train: list[Example], validation: list[Example]
) -> InstructionTrainer:
    """The trainer of a run; `validation` may be empty."""
    rows = [
        [{"input_ids": array("i", example.ids), "spans": example.spans} for example in part]
        for part in (train, validation)
    ]
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return InstructionTrainer(
        model=model,
        args=args,
        train_dataset=rows[0],
        eval_dataset=rows[1] or None,
        data_collator=partial(collate, pad_id=pad_id, multiple=1 if args.device.type == "cpu" else 8),
        processing_class=tokenizer,
        callbacks=[LossIsFinite()],
    )
