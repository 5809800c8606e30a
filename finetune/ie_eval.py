"""Score extraction answers: precision, recall and F1 of entities, triples and events, and reports on the errors.

    python finetune/ie_eval.py --predictions predictions.jsonl
    python finetune/ie_eval.py --predictions predictions.jsonl --gold heldout.jsonl --by_type --output scores.json
    python finetune/ie_eval.py --predictions predictions.jsonl --errors errors.html --confusion_picture confusions.svg
    python finetune/ie_eval.py --predictions free.jsonl --compare grammar.jsonl
    python finetune/ie_eval.py --predictions iepile_predictions.json --parity normal

A row of `predictions` has the answer of the model under "prediction", as finetune/ie_run.py writes it, or the answer of
inference/batch.py: "generated_text" (/generate), or "entities", "triples" or "events" (/extract, which returns each
item once). The correct answer is the "output" of the row or of the same row of `gold`, or the last answer of its
"messages". "task" of a row, or --task, is ner, re, spo, kg, ee, eet or eea (extraction_metrics/task_answers.py);
without a task, entities and triples are scored. Entities with spans ("gold" of ie_build.py) or offsets (/extract)
are also scored by these (entity_span).

extraction_metrics/answer_scores.py describes how answers are compared, row_scores.py the scores of the rows, and
extraction_reports/ the confusions, the comparison, the page of errors and the figures of a published scorer (--parity).
"""

from command_line.fire_commands import run

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from extraction_metrics.answer_items import json_object_in
from extraction_metrics.item_kinds import KINDS_OF_TASK
from extraction_metrics.row_scores import ScoredRow, count_rows, score_rows
from extraction_metrics.score_tables import scores_table
from extraction_metrics.scored_files import scored_rows
from extraction_reports.confusion_picture import confusion_svg
from extraction_reports.error_page import page_html
from extraction_reports.item_outcomes import confusions
from extraction_reports.published_scorer import score_published_file
from extraction_reports.score_comparisons import compare_rows, comparison_table
from partial_folders.atomic_outputs import new_file
from partial_folders.output_paths import check_output

ERROR_ROWS = 200  # on the page of errors


def check_options(parity: str, outputs: dict[str, str], inputs: Sequence[str], task: str, error_rows: int) -> None:
    """Check the options before the rows are read; outputs: option -> file; inputs: the files that are read.

    Raises ValueError or FileNotFoundError.
    """
    given = {option: path for option, path in outputs.items() if path}
    for option, path in given.items():
        check_output(path, inputs, option)
    paths = [Path(path).resolve() for path in given.values()]
    if len(set(paths)) < len(paths):
        raise ValueError(f"{' and '.join(f'--{option}' for option in given)} name the same file; give different names")
    if task and task not in KINDS_OF_TASK:
        raise ValueError(f"--task takes one of {', '.join(KINDS_OF_TASK)}, not {task!r}")
    if error_rows < 1:
        raise ValueError(f"--error_rows {error_rows} is too small; it must be at least 1")
    if parity != "none" and (len(inputs) > 1 or set(given) - {"output"}):
        raise ValueError("--parity takes only --predictions, --task and --output; remove the other options")


def lenient_rows(rows: Sequence[ScoredRow]) -> list[ScoredRow]:
    """Return the rows with only the first JSON object in each answer."""
    return [row._replace(prediction=json_object_in(row.prediction, row.task)) for row in rows]


def compare_with(path: str, gold: str, task: str, name: str, rows: list[ScoredRow], scores: dict[str, Any]) -> Any:
    """Print the scores of `rows` beside those of another predictions file, and return them for the JSON output."""
    others = scored_rows(path, gold, task)
    other_scores, differences = score_rows(others), compare_rows(rows, others)
    print(f"\n{comparison_table((name, path), scores, other_scores, differences)}")
    return {"predictions": path, "scores": other_scores, "differences": differences}


def main(
    predictions: str,
    gold: str = "",
    output: str = "",
    lenient: bool = False,
    by_type: bool = False,
    task: str = "",
    parity: Literal["none", "normal", "set"] = "none",
    compare: str = "",
    compare_gold: str = "",
    errors: str = "",
    error_rows: int = ERROR_ROWS,
    confusion_picture: str = "",
) -> None:
    """Print the scores of a predictions file as a table and, with --output, write them as JSON.

    Args:
        predictions: the output of ie_run.py or of inference/batch.py.
        gold: a file of the same rows with the correct answers; default: those in `predictions`.
        output: the file for the scores.
        lenient: also print the scores of the first JSON object in each answer, without code fence and other text.
        by_type: also print the scores of each type and relation.
        task: the task of rows without "task": ner, re, spo, kg, ee, eet or eea.
        parity: only print the figures that IEPile's published scorer gives for rows {"id", "instruction", "label",
            "output"}: normal (items as multisets) or set; P and R are rounded before F1 is computed.
        compare: another predictions file of the same texts; both are printed side by side, with a paired bootstrap.
        compare_gold: the correct answers for `compare`; default: those in `compare`.
        errors: the file for an HTML page of the rows with errors.
        error_rows: maximum number of rows on the page.
        confusion_picture: the file for an SVG picture of the confusions of types.
    """
    outputs = {"output": output, "errors": errors, "confusion_picture": confusion_picture}
    inputs = [path for path in (predictions, gold, compare, compare_gold) if path]
    check_options(parity, outputs, inputs, task, error_rows)
    if parity != "none" and (lenient or by_type):
        raise ValueError("--lenient and --by_type have no effect with --parity; remove them")
    if error_rows != ERROR_ROWS and not errors:
        raise ValueError(f"--error_rows {error_rows} has no effect without --errors; add --errors PAGE, or remove it")
    if compare_gold and not compare:
        raise ValueError("--compare_gold has the correct answers for --compare; give --compare")
    contents: dict[str, str] = {}
    if parity != "none":
        text = json.dumps(score_published_file(predictions, parity, task), ensure_ascii=False, indent=4)
        print(text)
        contents = {output: text + "\n"} if output else {}
    else:
        rows = scored_rows(predictions, gold, task)
        scores = score_rows(rows)
        print(scores_table(scores, by_type))
        if lenient:
            scores["lenient"] = score_rows(lenient_rows(rows))
            table = scores_table(scores["lenient"], by_type)
            print(f"\nlenient: only the first JSON object in each answer\n{table}")
        scores["confusions"] = confusions(rows)
        if compare:
            scores["compare"] = compare_with(compare, compare_gold, task, predictions, rows, scores)
        if errors:
            parsed = [each.parsed for each in count_rows(rows)]
            contents[errors] = page_html(rows, parsed, error_rows, Path(predictions).name)
        if confusion_picture:
            contents[confusion_picture] = confusion_svg(scores["confusions"])
        if output:
            contents[output] = json.dumps(scores, indent=2) + "\n"
    with ExitStack() as stack:
        for path, content in contents.items():
            stack.enter_context(new_file(path, replace=True)).write_text(content, encoding="utf-8", errors="replace")


if __name__ == "__main__":
    run(main)
