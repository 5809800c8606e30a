"""Generate answers to the held-out examples during training, and score them as extractions (--eval_generate)."""

from typing import Any

from accelerate.utils import gather_object
from chat_prompts.prompt_encoding import PromptEncoder
from extraction_metrics.answer_items import gold_error
from extraction_metrics.answer_scores import precision_recall_f1, score_answers
from extraction_metrics.item_kinds import TASKS
from json_rows.instruction_rows import InstructionRow, messages_of, prompt_messages
from packed_attention.segment_attention import NAME, attention_of, padded_attention

from answer_generation.batched_generation import generate_answers

BATCHES_PER_CHECK = 4  # batches generated between two checks for a stop signal


class AnswerScorer:
    """Callable that generates answers to the held-out examples with the model of a trainer, and scores them.

    The constructor raises ValueError if a correct answer cannot be scored.
    """

    def __init__(
        self, encoder: PromptEncoder, rows: list[InstructionRow], batch_size: int, max_new_tokens: int
    ) -> None:
        self.encoder, self.batch_size, self.max_new_tokens = encoder, batch_size, max_new_tokens
        self.prompts = encoder.batch_prompt_ids([prompt_messages(row) for row in rows])
        self.gold = [messages_of(row)[-1]["content"] for row in rows]
        if error := next(filter(None, map(gold_error, self.gold)), ""):
            raise ValueError(
                f"--eval_generate scores entities and triples, but a held-out answer {error}; remove the option, or "
                "hold out only extraction examples"
            )

    def __call__(self, trainer: Any) -> dict[str, float]:
        """Return `scores_by_name` of all held-out examples, or {} if a stop signal ended the generation.

        All ranks must call it, with the model in evaluation mode.
        """
        rank, ranks = trainer.args.process_index, trainer.args.world_size
        mine = range(rank, len(self.prompts), ranks)
        padded = [*mine, 0][: -(-len(self.prompts) // ranks)]  # under ZeRO-3 all ranks must generate the same number
        attention = attention_of(trainer.base_model)
        order = sorted(padded, key=lambda index: -len(self.prompts[index]))
        if attention == NAME:
            trainer.base_model.set_attn_implementation(padded_attention(trainer.base_model))
        model, answers = trainer.accelerator.unwrap_model(trainer.model), list[str]()
        with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
            for start in range(0, len(order), size := self.batch_size * BATCHES_PER_CHECK):
                if trainer.is_stopping():
                    break
                prompts = [self.prompts[index] for index in order[start : start + size]]
                generated = generate_answers(model, self.encoder, prompts, self.batch_size, self.max_new_tokens)
                answers += [answer.text for answer in generated]
        trainer.base_model.set_attn_implementation(attention)
        answered = dict(gather_object(list(zip(order, answers, strict=False))))
        if len(answered) < len(self.prompts):
            return {}
        return scores_by_name([(answered[index], gold) for index, gold in enumerate(self.gold)])


def scores_by_name(pairs: list[tuple[str, str]]) -> dict[str, float]:
    """Return the scores of (prediction, correct answer) pairs: name -> score.

    f1 counts entities and triples together; parsed and exact are shares of answers.
    """
    scores = score_answers(pairs)
    counts = [sum(scores[task][key] for task in TASKS) for key in ("correct", "predicted", "gold")]
    by_name = {"f1": precision_recall_f1(*counts)["f1"], "parsed": scores["parsed"], "exact": scores["exact"]}
    for task in TASKS:
        if scores[task]["gold"]:
            by_name |= {f"{task}_{key}": scores[task][key] for key in ("precision", "recall", "f1")}
    return by_name
