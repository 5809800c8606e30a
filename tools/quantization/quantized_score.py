"""What a model is worth, before and after: the size of its weights, perplexity of held-out answers, F1 of extraction.

quantize.py prints and records it. Perplexity is exp of the mean negative log-likelihood (nats) of the
answers' tokens with the one that ends them. F1 is what finetune/ie_eval.py says of greedy answers; it is run as the
program it is, where it lies beside this folder, and left out where it does not.
"""

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkpoint_io.tensors import read_weights
from tqdm import tqdm

from quantization.calibration import Example
from quantization.quantization_methods import load_model

SCORER = Path(__file__).resolve().parent.parent.parent / "finetune" / "ie_eval.py"
BATCH = 16  # prompts answered together
COLUMNS = (("perplexity", "perplexity"), ("entity_f1", "entity F1"), ("triple_f1", "triple F1"), ("exact", "exact"))

Scores = dict[str, float]


def weight_bytes(folder: Path) -> int:
    """Bytes of the files that hold a folder's weights."""
    return sum(file.stat().st_size for file in {tensor.file for tensor in read_weights(folder).values()})


def perplexity(model: Any, examples: Sequence[Example]) -> float:
    """exp of the mean negative log-likelihood of all answer tokens, each row read on its own, without padding."""
    import torch

    total, count = 0.0, 0
    for example in tqdm(examples, desc="perplexity", unit="row", disable=None, leave=False):
        input_ids = torch.tensor([example.prompt + example.answer], device=model.device)  # (1, tokens)
        with torch.no_grad():
            logits = model(input_ids=input_ids, use_cache=False).logits[0, len(example.prompt) - 1 : -1]
        wanted = input_ids[0, len(example.prompt) :]
        total += torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="sum").item()
        count += len(example.answer)
    return math.exp(total / count)


def is_extraction(example: Example) -> bool:
    """Whether the right answer is a JSON object of lists, which finetune/ie_eval.py scores."""
    try:
        answer = json.loads(example.right or "")
    except (json.JSONDecodeError, RecursionError):
        return False
    return isinstance(answer, dict) and all(isinstance(items, list) for items in answer.values())


def answers(model: Any, tokenizer: Any, examples: Sequence[Example]) -> list[str]:
    """The greedy answer to each prompt, at most half as long again as the longest right one (and 16 tokens)."""
    import torch
    from transformers import GenerationConfig

    given = model.generation_config.eos_token_id
    ended = {example.answer[-1] for example in examples}  # the template's end-of-turn
    ends = sorted({tokenizer.eos_token_id, *ended, *(given if isinstance(given, list) else [given])} - {None})
    longest = max(len(example.answer) for example in examples)
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=longest + longest // 2 + 16, eos_token_id=ends, pad_token_id=(ends or [0])[0]
    )
    texts = [""] * len(examples)
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index].prompt))
    starts = range(0, len(order), BATCH)
    for start in tqdm(starts, desc="answering", unit="batch", disable=None, leave=False):
        chosen = order[start : start + BATCH]
        width = len(examples[chosen[0]].prompt)
        gaps = [width - len(examples[index].prompt) for index in chosen]  # padded on the left
        padded = [[settings.pad_token_id] * gap + examples[i].prompt for i, gap in zip(chosen, gaps, strict=True)]
        mask = [[0] * gap + [1] * (width - gap) for gap in gaps]  # (rows, tokens)
        with torch.no_grad():
            output = model.generate(
                input_ids=torch.tensor(padded, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                generation_config=settings,
            )
        for index, ids in zip(chosen, output[:, width:].tolist(), strict=True):
            kept = next((at for at, token in enumerate(ids) if token in ends), len(ids))
            texts[index] = tokenizer.decode(ids[:kept], skip_special_tokens=True)
    return texts


def extraction_scores(predictions: Path) -> Scores:
    """F1 of entities and triples and the share of rows all right, by finetune/ie_eval.py."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch, "scores.json")
        command = [sys.executable, str(SCORER), "--predictions", str(predictions), "--output", str(output)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{SCORER} could not score {predictions}: {done.stderr.strip()[-300:]}")
        found = json.loads(output.read_text(encoding="utf-8"))
    tasks = {f"{task}_f1": found[task]["f1"] for task in ("entity", "triple") if found[task]["gold"]}
    return {**tasks, "exact": found["exact"], "parsed": found["parsed"]}


def score(folder: Path, tokenizer: Any, examples: Sequence[Example], predictions: Path | None) -> Scores:
    """Size, and where there are held-out examples, perplexity and F1 of the model in a folder; holds it in memory.

    predictions: a JSONL file to write with the greedy answers to the extraction rows, as finetune/ie_eval.py reads it.
    Raises ValueError where the model computes no finite perplexity.
    """
    figures: Scores = {"bytes": weight_bytes(folder)}
    if not examples:
        return figures
    model = load_model(folder)
    figures["perplexity"] = perplexity(model, examples)
    if not math.isfinite(figures["perplexity"]):
        name = str(folder).removesuffix(".partial")
        raise ValueError(f"{name} has no finite perplexity: its numbers overflow; try another --dtype or --method")
    asked = [example for example in examples if is_extraction(example)]
    if asked and (predictions or SCORER.is_file()):
        said = answers(model, tokenizer, asked)
        lines = [
            json.dumps({**one.row, "output": one.right, "prediction": text}, ensure_ascii=False) + "\n"
            for one, text in zip(asked, said, strict=True)
        ]
        with tempfile.TemporaryDirectory() as scratch:
            file = predictions or Path(scratch, "predictions.jsonl")
            file.write_text("".join(lines), encoding="utf-8")
            figures |= extraction_scores(file) if SCORER.is_file() else {}
    return figures


def table(before: Scores, after: Scores) -> str:
    """Both models' figures as lines for a terminal, without the columns that neither has."""
    columns = [(key, title) for key, title in COLUMNS if key in before]
    lines = [f"{'':6}{'weights':>12}" + "".join(f"{title:>12}" for _, title in columns)]
    for name, figures in (("before", before), ("after", after)):
        size = f"{figures['bytes'] / 1e6:.2f} MB"
        lines.append(f"{name:6}{size:>12}" + "".join(f"{figures[key]:12.4f}" for key, _ in columns))
    return "\n".join(lines)
