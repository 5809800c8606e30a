"""Generate answers to the held-out examples during training and score them as extraction (--eval_generate)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from chat_prompts.prompt_encoding import PromptEncoder
from extraction_metrics.answer_scores import parse_answer, score_answers
from json_rows.instruction_rows import InstructionRow, messages_of, question_of
from packed_attention.segment_attention import NAME, attention_of

from extraction_scores.answer_generation import generate_answers


class HeldOutAnswers:
    """Prompts and correct answers of the held-out examples; called with a trainer, it returns scores of its answers.

    rows: (name of the source, row) of each held-out example. Raises ValueError if a correct answer is not an extraction
    answer.
    """

    def __init__(
        self, encoder: PromptEncoder, rows: list[tuple[str, InstructionRow]], batch_size: int, max_new_tokens: int
    ) -> None:
        self.sources = [name for name, _ in rows]
        self.encoder = encoder
        self.prompts = encoder.prompts([question_of(row) for _, row in rows])
        self.gold = [messages_of(row)[-1]["content"] for _, row in rows]
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        wrong = next((text for text in self.gold if parse_answer(text) is None), None)
        if wrong is not None:
            raise ValueError(
                f"--eval_generate scores JSON objects of lists, and a held-out answer is {wrong[:60]!r}; remove the "
                "option, or hold out extraction examples only"
            )

    def __call__(self, trainer: Any) -> dict[str, float]:
        """Return `flat_scores` of all examples, and f1 and parsed by source; all ranks must call it."""
        rank, ranks = trainer.args.process_index, trainer.args.world_size
        mine = list(range(rank, len(self.prompts), ranks))
        filled = [*mine, 0][: -(-len(self.prompts) // ranks)]  # under ZeRO-3 all ranks must generate equally often
        with generation_mode(trainer), trainer.compute_loss_context_manager():
            answers = generate_answers(
                trainer.accelerator.unwrap_model(trainer.model), self.encoder,
                [self.prompts[index] for index in filled], self.batch_size, self.max_new_tokens,
            )  # fmt: skip
        gathered = gather_answers(dict(zip(mine, answers, strict=False)), ranks)
        pairs = [(gathered[index], gold) for index, gold in enumerate(self.gold)]
        metrics = flat_scores(pairs)
        names = sorted(set(self.sources))
        for name in names if len(names) > 1 else []:
            part = flat_scores([pair for pair, source in zip(pairs, self.sources, strict=True) if source == name])
            metrics |= {f"{key}_{name}": part[key] for key in ("f1", "parsed")}
        return metrics


def flat_scores(pairs: list[tuple[str, str]]) -> dict[str, float]:
    """Return the scores of (prediction, correct answer) pairs by name.

    f1: over entities and triples. parsed, exact: shares of answers.
    """
    scores = score_answers(pairs)
    kinds = [scores["entity"], scores["triple"]]
    correct, total = sum(kind["correct"] for kind in kinds), sum(kind["predicted"] + kind["gold"] for kind in kinds)
    flat = {"f1": 2 * correct / total if total else 0.0, "parsed": scores["parsed"], "exact": scores["exact"]}
    for name in ("entity", "triple"):
        if scores[name]["gold"]:
            flat |= {f"{name}_{key}": scores[name][key] for key in ("precision", "recall", "f1")}
    return flat


def gather_answers(mine: dict[int, str], ranks: int) -> dict[int, str]:
    """Return the answers of all ranks, on every rank."""
    if ranks == 1:
        return mine
    gathered: list[dict[int, str]] = [{} for _ in range(ranks)]
    torch.distributed.all_gather_object(gathered, mine)
    return {index: text for part in gathered for index, text in part.items()}


@contextmanager
def generation_mode(trainer: Any) -> Iterator[None]:
    """Disable gradient checkpointing, which prevents use of the cache, and use an attention that supports padding.

    Both are restored on exit.
    """
    base = trainer.base_model
    attention = attention_of(base)
    if attention == NAME:
        base.set_attn_implementation("sdpa")
    checkpointing = base.is_gradient_checkpointing
    if checkpointing:
        base.gradient_checkpointing_disable()
    try:
        yield
    finally:
        if checkpointing:
            base.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
        if attention == NAME:
            base.set_attn_implementation(attention)
