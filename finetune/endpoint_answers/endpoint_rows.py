"""Answer rows with an endpoint: parts of long schemas, grammars, and the output file."""

import os
import sys
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

from answer_generation.answer_schemas import follows, row_schema
from answer_generation.batched_generation import GeneratedAnswer
from answer_generation.schema_parts import answered_lines, parts_of
from json_rows.instruction_rows import prompt_messages
from json_rows.row_files import Row

from endpoint_answers.answer_journal import answer_journal
from endpoint_answers.chat_endpoint import ChatEndpoint
from endpoint_answers.endpoint_run import Question, answer_questions, chat_messages


def answer_with_endpoint(
    endpoint: str, model: str, rows: list[Row], output: str, identity: str, options: dict[str, Any]
) -> tuple[list[Row], list[list[GeneratedAnswer]], float]:
    """Ask an endpoint for the answers to the rows, and write the output.

    Return the rows that were answered, the answers to their parts, and the seconds of this run.

    identity: of the run, for resuming. options: schema_batch, grammar, max_new_tokens, concurrency, timeout and skip.
    """
    parts = [parts_of(row, options["schema_batch"]) for row in rows]
    questions = [
        Question(
            part.location, chat_messages(prompt_messages(part.content or {})),
            row_schema(part) if options["grammar"] else None,
        )
        for each in parts for part in each
    ]  # fmt: skip
    key = os.environ.get("KNOWLM_API_KEY", "")
    with answer_journal(output, identity) as journal:
        client = ChatEndpoint(endpoint, key, model, options["max_new_tokens"], options["timeout"])
        if journal.earlier:
            print(f"notice: resuming after {journal.earlier} of {len(questions)} answers", file=sys.stderr)
        started = time.perf_counter()
        refused = answer_questions(client, questions, journal, options["concurrency"], options["skip"])
        seconds = time.perf_counter() - started
        numbers = iter(range(len(questions)))
        grouped = [list(islice(numbers, len(each))) for each in parts]
        kept = [each for each, members in enumerate(grouped) if not any(number in refused for number in members)]
        for number, reason in sorted(refused.items()):
            print(f"notice: skipped {questions[number].location}: {reason}", file=sys.stderr)
        if not kept:
            raise ValueError("no row was answered; correct the rows")
        if options["grammar"]:
            report_grammar(questions, journal.answers)
        answers = [[journal.answers[number] for number in grouped[each]] for each in kept]
        kept_rows = [rows[each] for each in kept]
        journal.finish(answered_lines(kept_rows, answers))
    return kept_rows, answers, seconds


def report_grammar(questions: Sequence[Question], answers: dict[int, GeneratedAnswer]) -> None:
    """Print a notice if complete answers do not follow their JSON schema: the endpoint ignores structured_outputs."""
    complete = [number for number, answer in answers.items() if answer.finish_reason == "stop"]
    wrong = [
        number
        for number in complete
        if not follows(answers[number].text, questions[number].schema or {"type": "object"})
    ]
    if wrong:
        fact = f"{len(wrong)} of {len(complete)} complete answers do not follow the grammar"
        remedy = "so the endpoint ignores structured_outputs; serve the model with vLLM, or remove --grammar"
        print(f"notice: {fact}, {remedy}", file=sys.stderr)
