"""Score extraction answers: precision, recall and F1 of entities and of triples, whole rows right, answers that parse.

    python finetune/ie_eval.py --predictions predictions.jsonl
    python finetune/ie_eval.py --predictions predictions.jsonl --gold heldout.jsonl --output scores.json

`predictions` holds one row a line with the model's answer under "prediction" (finetune/ie_run.py writes it); the right
answer is the row's "output", or that of the same line of `gold`. An answer is a JSON object of lists: of names, which
are entities ({"person": ["Ann Lee"]}), or of objects with subject and object, which are triples
({"born in": [{"subject": "Ann Lee", "object": "Oslo"}]}). Counts are over all rows together (micro), items matched as
multisets: a thing said twice counts twice. An answer that is no such object counts as empty.
"""

from command_line.fire_commands import run

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

TASKS = ("entity", "triple")
PAIRS = (("subject", "object"), ("head", "tail"))  # how triples are written: in answers here, in published annotations


class Item(NamedTuple):
    """One extracted thing: its kind, and what must be equal for a match."""

    kind: str
    content: tuple[str, ...]


def parse(answer: str) -> Counter[Item] | None:
    """The items of an answer as a multiset; None where it is no JSON object of lists."""
    try:
        found = json.loads(answer)
    except (json.JSONDecodeError, RecursionError):
        return None
    if not isinstance(found, dict) or not all(isinstance(items, list) for items in found.values()):
        return None
    return Counter(as_item(label, value) for label, items in found.items() for value in items)


def as_item(label: str, value: Any) -> Item:
    """A name is an entity of type `label`; an object with subject and object a triple; anything else is "other"."""
    if isinstance(value, str):
        return Item("entity", (label, value))
    if isinstance(value, dict):
        for first, second in PAIRS:
            if isinstance(value.get(first), str) and isinstance(value.get(second), str):
                return Item("triple", (value[first], label, value[second]))
    return Item("other", (label, json.dumps(value, sort_keys=True, ensure_ascii=False)))


def row_kinds(gold: Counter[Item], predicted: Counter[Item]) -> set[str]:
    """The tasks of a row: the kinds in its right answer; where that is empty, those in the given one."""
    return {item.kind for item in gold} or {item.kind for item in predicted}


def rates(correct: int, predicted: int, gold: int) -> dict[str, float]:
    """Precision, recall and F1 with the counts they come from; 0 where there is nothing to divide by."""
    precision, recall = correct / predicted if predicted else 0.0, correct / gold if gold else 0.0
    f1 = 2 * correct / (predicted + gold) if predicted + gold else 0.0
    counts = {"correct": correct, "predicted": predicted, "gold": gold}
    return {"precision": precision, "recall": recall, "f1": f1, **counts}


def score(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Scores of (prediction, right answer) pairs; ValueError where a right answer does not parse.

    In a row of one task everything that was answered counts for that task, whatever its shape.
    """
    totals = {task: Counter[str]() for task in TASKS}
    parsed = exact = 0
    for number, (prediction, output) in enumerate(pairs, 1):
        gold, answered = parse(output), parse(prediction)
        if gold is None:
            raise ValueError(
                f"the right answer of row {number} is no JSON object of lists ({output[:60]!r}); take extraction rows"
            )
        parsed += answered is not None
        exact += answered == gold
        predicted = answered or Counter[Item]()
        kinds = row_kinds(gold, predicted)
        for task in TASKS:
            if task not in kinds:
                continue
            mine = {item: n for item, n in predicted.items() if item.kind == task or len(kinds) == 1}
            right = {item: n for item, n in gold.items() if item.kind == task}
            totals[task]["predicted"] += sum(mine.values())
            totals[task]["gold"] += sum(right.values())
            totals[task]["correct"] += sum(min(n, mine.get(item, 0)) for item, n in right.items())
    rows = len(pairs)
    by_task = {task: rates(totals[task]["correct"], totals[task]["predicted"], totals[task]["gold"]) for task in TASKS}
    return {"rows": rows, "parsed": parsed / rows, "exact": exact / rows, **by_task}


def table(scores: dict[str, Any]) -> str:
    """The scores as lines for a terminal."""
    lines = [f"{'':8}{'precision':>10}{'recall':>10}{'F1':>10}{'correct':>10}{'predicted':>10}{'gold':>10}"]
    for task in TASKS:
        one = scores[task]
        lines.append(
            f"{task:8}{one['precision']:10.4f}{one['recall']:10.4f}{one['f1']:10.4f}"
            f"{one['correct']:10d}{one['predicted']:10d}{one['gold']:10d}"
        )
    return "\n".join(
        [*lines, f"{scores['rows']} rows, {scores['exact']:.1%} exactly right, {scores['parsed']:.1%} of answers parse"]
    )


def read(path: str, key: str) -> list[dict[str, Any]]:
    """The rows of a JSONL file, every one with text under `key`; raises an error that names file and line."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; a JSONL file of rows with {key!r} is expected")
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number} is not JSON ({error.msg}); one object a line is expected") from None
        if not isinstance(row, dict) or not isinstance(row.get(key), str):
            raise ValueError(f"{path}:{number} has no text under {key!r}; predictions come from finetune/ie_run.py")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no rows; there is nothing to score")
    return rows


def match(predictions: str, gold: str) -> list[tuple[str, str]]:
    """Pairs of prediction and right answer; ValueError where the two files are not about the same questions."""
    answered = read(predictions, "prediction")
    right = read(gold or predictions, "output")
    if len(answered) != len(right):
        raise ValueError(
            f"{predictions} has {len(answered)} rows, {gold} {len(right)}; they must be the same rows in the same order"
        )
    for number, (one, other) in enumerate(zip(answered, right, strict=True), 1):
        for key in ("instruction", "input"):
            if key in one and key in other and one[key] != other[key]:
                raise ValueError(
                    f"row {number} of {predictions} asks something else than that of {gold} ({key} differs)"
                )
    return [(one["prediction"], other["output"]) for one, other in zip(answered, right, strict=True)]


def main(predictions: str, gold: str = "", output: str = "") -> None:
    """Print the scores of a predictions file as a table and, with --output, write them as JSON.

    Args:
        predictions: JSONL with the model's answer under "prediction".
        gold: JSONL with the right answers under "output", line for line; without it the predictions' own "output".
        output: where to write the scores.
    """
    scores = score(match(predictions, gold))
    print(table(scores))
    if output:
        scratch = Path(f"{output}.partial")
        scratch.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
        scratch.replace(output)


if __name__ == "__main__":
    run(main)
