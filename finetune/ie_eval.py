"""Score extraction answers: precision, recall and F1 of entities and triples, shares of exact and parsed answers.

    python finetune/ie_eval.py --predictions predictions.jsonl
    python finetune/ie_eval.py --predictions predictions.jsonl --gold heldout.jsonl --lenient --output scores.json

A row of `predictions` has the answer of the model under "prediction", as finetune/ie_run.py writes it, or under
"generated_text" (inference/batch.py). The correct answer is the "output" of the row or of the same row of `gold`, or
the last answer of its "messages". extraction_metrics/answer_scores.py describes how answers are compared.
"""

from command_line.fire_commands import run

import json

from extraction_metrics.answer_scores import json_object_in, score_answers, scores_table
from extraction_metrics.scored_files import answer_pairs
from partial_folders.atomic_outputs import new_file
from partial_folders.output_paths import check_output


def main(predictions: str, gold: str = "", output: str = "", lenient: bool = False) -> None:
    """Print the scores of a predictions file as a table and, with --output, write them as JSON.

    Args:
        predictions: rows with the answer of the model under "prediction".
        gold: the same rows with the correct answers under "output"; default: the "output" of the predictions.
        output: the file for the scores.
        lenient: also print the scores of the first JSON object in each answer, without code fence and other text.
    """
    if output:
        check_output(output, [predictions, gold])
    pairs = answer_pairs(predictions, gold)
    scores = score_answers(pairs)
    print(scores_table(scores))
    if lenient:
        scores["lenient"] = score_answers([(json_object_in(prediction), correct) for prediction, correct in pairs])
        print(f"\nlenient: only the first JSON object in each answer\n{scores_table(scores['lenient'])}")
    if output:
        with new_file(output, replace=True) as file:
            file.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
