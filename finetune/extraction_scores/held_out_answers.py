"""Held-out rows as questions: the model answers them during training, and its answers are scored as extraction.

finetune.py hands it to the trainer with --eval_generate.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from chat_prompts.prompt_encoding import PromptEncoder
from extraction_metrics.answer_scores import parse_answer, score_answers
from json_rows.instruction_rows import InstructionRow, messages_of, question_of
from packed_attention.segment_attention import NAME, attention_of

from extraction_scores.answer_generation import answer


class HeldOutAnswers:
    """Prompts and right answers of the held-out rows, with their sources.

    Raises ValueError where a right answer is no extraction answer, since nothing could be scored.
    """

    def __init__(
        self, encoder: PromptEncoder, rows: list[tuple[str, InstructionRow]], batch_size: int, max_new_tokens: int
    ) -> None:
        self.sources = [name for name, _ in rows]
        self.encoder = encoder
        self.prompts = encoder.prompts([question_of(row) for _, row in rows])
        self.right = [
            next(m["content"] for m in reversed(messages_of(row)) if m["role"] == "assistant") for _, row in rows
        ]
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        strange = next((text for text in self.right if parse_answer(text) is None), None)
        if strange is not None:
            raise ValueError(
                f"--eval_generate scores JSON objects of lists, and a held-out answer is {strange[:60]!r}; leave it "
                "out, or hold out extraction rows only"
            )

    def __call__(self, trainer: Any) -> dict[str, float]:
        """F1 of all items, of entities and of triples, share of answers that parse; all, and F1 by source."""
        rank, ranks = trainer.args.process_index, trainer.args.world_size
        mine = list(range(rank, len(self.prompts), ranks))
        filled = [*mine, 0][: -(-len(self.prompts) // ranks)]  # under ZeRO-3 all ranks have to go along
        with generating(trainer), trainer.compute_loss_context_manager():
            said = answer(
                trainer.accelerator.unwrap_model(trainer.model), self.encoder,
                [self.prompts[index] for index in filled], self.batch_size, self.max_new_tokens,
            )  # fmt: skip
        gathered = everything(dict(zip(mine, said, strict=False)), ranks)
        pairs = [(gathered[index], right) for index, right in enumerate(self.right)]
        metrics = figures(pairs)
        names = sorted(set(self.sources))
        for name in names if len(names) > 1 else []:
            part = figures([pair for pair, source in zip(pairs, self.sources, strict=True) if source == name])
            metrics |= {f"{key}_{name}": part[key] for key in ("f1", "parsed")}
        return metrics


def figures(pairs: list[tuple[str, str]]) -> dict[str, float]:
    """Scores of (prediction, right answer) pairs as flat figures; f1 is over entities and triples together."""
    scores = score_answers(pairs)
    tasks = [scores["entity"], scores["triple"]]
    found, asked = sum(task["correct"] for task in tasks), sum(task["predicted"] + task["gold"] for task in tasks)
    figures = {"f1": 2 * found / asked if asked else 0.0, "parsed": scores["parsed"], "exact": scores["exact"]}
    for name in ("entity", "triple"):
        if scores[name]["gold"]:
            figures |= {f"{name}_{key}": scores[name][key] for key in ("precision", "recall", "f1")}
    return figures


def everything(mine: dict[int, str], ranks: int) -> dict[int, str]:
    """All ranks' answers, on every rank."""
    if ranks == 1:
        return mine
    gathered: list[dict[int, str]] = [{} for _ in range(ranks)]
    torch.distributed.all_gather_object(gathered, mine)
    return {index: text for part in gathered for index, text in part.items()}


@contextmanager
def generating(trainer: Any) -> Iterator[None]:
    """The model with a cache and ordinary attention, since prompts of a batch are padded."""
    base = trainer.base_model
    before = attention_of(base)
    if before == NAME:
        base.set_attn_implementation("sdpa")
    checkpointed = base.is_gradient_checkpointing
    if checkpointed:
        base.gradient_checkpointing_disable()
    try:
        yield
    finally:
        if checkpointed:
            base.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
        if before == NAME:
            base.set_attn_implementation(before)
