"""Score extraction answers: precision, recall and F1 of entities and of triples, exact answers, answers that parse.

    python finetune/ie_eval.py --predictions predictions.jsonl
    python finetune/ie_eval.py --predictions predictions.jsonl --gold heldout.jsonl --output scores.json

`predictions` has the model's answer under "prediction" (finetune/ie_run.py writes it); the right answer is the row's
"output", or that of the same row of `gold`. extraction_metrics/answer_scores.py says how answers are matched.
"""

from command_line.fire_commands import run

import json
from pathlib import Path

from extraction_metrics.answer_scores import score_answers, scores_table
from extraction_metrics.scored_files import answer_pairs


def main(predictions: str, gold: str = "", output: str = "") -> None:
    """Print the scores of a predictions file as a table and, with --output, write them as JSON.

    Args:
        predictions: rows with the model's answer under "prediction".
        gold: the same rows with the right answers under "output"; without it, the "output" of the predictions.
        output: where to write the scores.
    """
    scores = score_answers(answer_pairs(predictions, gold))
    print(scores_table(scores))
    if output:
        scratch = Path(f"{output}.partial")
        scratch.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
        scratch.replace(output)


if __name__ == "__main__":
    run(main)
