"""Score extraction answers: precision, recall and F1 of entities and triples, shares of exact and parsed answers.

    python finetune/ie_eval.py --predictions predictions.jsonl
    python finetune/ie_eval.py --predictions predictions.jsonl --gold heldout.jsonl --by_type --output scores.json

A row of `predictions` has the answer of the model under "prediction", as finetune/ie_run.py writes it, or the answer of
inference/batch.py: "generated_text" (/generate), or "entities" or "triples" (/extract, which returns each item once).
The correct answer is the "output" of the row or of the same row of `gold`, or the last answer of its "messages".
extraction_metrics/answer_scores.py describes how answers are compared, row_scores.py the scores of the rows.
"""

from command_line.fire_commands import run

import json

from extraction_metrics.answer_items import json_object_in
from extraction_metrics.row_scores import score_rows
from extraction_metrics.score_tables import scores_table
from extraction_metrics.scored_files import scored_rows
from partial_folders.atomic_outputs import new_file
from partial_folders.output_paths import check_output


def main(predictions: str, gold: str = "", output: str = "", lenient: bool = False, by_type: bool = False) -> None:
    """Print the scores of a predictions file as a table and, with --output, write them as JSON.

    Args:
        predictions: the output of ie_run.py or of inference/batch.py.
        gold: a file of the same rows with the correct answers; default: the rows of `predictions` have them.
        output: the file for the scores.
        lenient: also print the scores of the first JSON object in each answer, without code fence and other text.
        by_type: also print the scores of each type and relation.
    """
    if output:
        check_output(output, [predictions, gold])
    rows = scored_rows(predictions, gold)
    scores = score_rows(rows)
    print(scores_table(scores, by_type))
    if lenient:
        scores["lenient"] = score_rows([row._replace(prediction=json_object_in(row.prediction)) for row in rows])
        print(f"\nlenient: only the first JSON object in each answer\n{scores_table(scores['lenient'], by_type)}")
    if output:
        with new_file(output, replace=True) as file:
            file.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
