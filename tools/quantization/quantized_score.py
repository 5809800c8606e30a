"""Measure a model before and after quantisation: weight size, perplexity of held-out answers, extraction F1.

Perplexity is exp of the mean negative log-likelihood (nats) of the answers' tokens including the end token. F1 is
computed by extraction_metrics on greedy answers.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from extraction_metrics.answer_items import gold_error
from extraction_metrics.answer_scores import score_answers
from extraction_metrics.item_kinds import TASKS
from tqdm import tqdm

from quantization.quantization_inputs import CalibrationExample, weight_bytes
from quantization.quantization_methods import load_model

BATCH = 16  # prompts per generation batch
COLUMNS = (("perplexity", "perplexity"), ("entity_f1", "entity F1"), ("triple_f1", "triple F1"), ("exact", "exact"))

Scores = dict[str, float]


def perplexity(model: Any, examples: Sequence[CalibrationExample]) -> float:
    """Return the perplexity of all answer tokens; evaluates one example at a time, without padding."""
    import torch

    total, count = 0.0, 0
    for example in tqdm(examples, desc="perplexity", unit="example", disable=None, leave=False):
        input_ids = torch.tensor([example.prompt + example.answer], device=model.device)  # (1, tokens)
        with torch.no_grad():
            logits = model(input_ids=input_ids, use_cache=False).logits[0, len(example.prompt) - 1 : -1]
        targets = input_ids[0, len(example.prompt) :]
        total += torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum").item()
        count += len(example.answer)
    return math.exp(total / count)


def greedy_answers(model: Any, tokenizer: Any, examples: Sequence[CalibrationExample]) -> list[str]:
    """Return the greedy answer to each prompt, of at most 1.5 times the longest expected answer plus 16 tokens."""
    from transformers import GenerationConfig

    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    own = model.generation_config.eos_token_id
    ends = {example.answer[-1] for example in examples}  # the template's end-of-turn
    ends |= {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    longest = max(len(example.answer) for example in examples)
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=longest + longest // 2 + 16,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id,
    )
    # transformers would take settings that are not given, such as penalties or beams, from model.generation_config.
    kept, model.generation_config = model.generation_config, settings
    texts = [""] * len(examples)
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index].prompt))
    starts = range(0, len(order), BATCH)
    for start in tqdm(starts, desc="answering", unit="batch", disable=None, leave=False):
        chosen = order[start : start + BATCH]
        prompts = {"input_ids": [examples[index].prompt for index in chosen]}
        inputs = tokenizer.pad(prompts, padding_side="left", return_tensors="pt").to(model.device)  # (rows, tokens)
        output = model.generate(**inputs, generation_config=settings)
        for index, ids in zip(chosen, output[:, inputs.input_ids.shape[1] :].tolist(), strict=True):
            length = next((position for position, token in enumerate(ids) if token in ends), len(ids))
            texts[index] = tokenizer.decode(ids[:length], skip_special_tokens=True)
    model.generation_config = kept
    return texts


def extraction_scores(pairs: list[tuple[str, str]]) -> Scores:
    """Return F1 of entities and triples, and the shares of exact and of parsable answers.

    pairs: (answer, expected answer).
    """
    scores = score_answers(pairs)
    tasks = {f"{task}_f1": scores[task]["f1"] for task in TASKS if scores[task]["gold"]}
    return {**tasks, "exact": scores["exact"], "parsed": scores["parsed"]}


def score(
    folder: Path, tokenizer: Any, examples: Sequence[CalibrationExample], trust_remote_code: bool = False
) -> Scores:
    """Return the bytes of a folder's weights; with examples, load the model and add perplexity and F1.

    Raises ValueError if the perplexity is not finite.
    """
    scores: Scores = {"bytes": weight_bytes(folder)}
    if not examples:
        return scores
    model = load_model(folder, trust_remote_code=trust_remote_code)
    scores["perplexity"] = perplexity(model, examples)
    if not math.isfinite(scores["perplexity"]):
        name = str(folder).removesuffix(".partial")
        raise ValueError(f"{name} has no finite perplexity: its values overflow; try another --dtype or --method")
    extracting = [example for example in examples if not gold_error(example.expected or "")]
    if extracting:
        answers = greedy_answers(model, tokenizer, extracting)
        scores |= extraction_scores(
            [(text, str(example.expected)) for example, text in zip(extracting, answers, strict=True)]
        )
        scores["extraction_rows"] = len(extracting)
    return scores


def score_table(before: Scores, after: Scores) -> str:
    """Return a text table of both models' scores, without empty columns."""
    columns = [(key, title) for key, title in COLUMNS if key in before]
    lines = [f"{'':6}{'weights':>12}" + "".join(f"{title:>12}" for _, title in columns)]
    for name, figures in (("before", before), ("after", after)):
        size = f"{figures['bytes'] / 1e6:.2f} MB"
        lines.append(f"{name:6}{size:>12}" + "".join(f"{figures[key]:12.4f}" for key, _ in columns))
    if rows := before.get("extraction_rows"):
        lines.append(f"F1 and exact: of the {rows:.0f} rows whose answers are entities or triples")
    return "\n".join(lines)
