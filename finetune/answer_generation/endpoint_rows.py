"""Answer rows with an OpenAI-compatible server: parts of long schemas, grammars, and rows that the server refuses."""

import sys
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from endpoint_requests.endpoint_options import opened_client
from endpoint_requests.request_journal import Completion, request_key
from json_rows.instruction_rows import Message, prompt_messages
from json_rows.row_files import Row

from answer_generation.answer_schemas import follows, row_schema
from answer_generation.batched_generation import GeneratedAnswer
from answer_generation.schema_parts import parts_of


def chat_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Return messages for a server: the input of a message follows its content after a blank line."""
    return [
        {"role": each["role"], "content": "\n\n".join(filter(None, (each["content"], each.get("input"))))}
        for each in messages
    ]


def answer_with_endpoint(
    rows: Sequence[Row], options: Mapping[str, Any], endpoint: Mapping[str, Any]
) -> tuple[list[Row], list[list[GeneratedAnswer]], float]:
    """Return the rows that were answered, the greedy answers to their parts, and the seconds of this run.

    Answers are kept in the journal of the output (endpoint_options.opened_client). options: url, model, output,
    schema_batch, grammar, max_new_tokens and skip: whether rows that the server refuses are skipped. endpoint: see
    endpoint_option_types.py. Raises ValueError if the server refuses a row, ConnectionError if it does not answer.
    """
    parts = [parts_of(row, options["schema_batch"]) for row in rows]
    questions = [part for each in parts for part in each]
    schemas = [row_schema(part) if options["grammar"] else None for part in questions]
    # A refused row that has stopped the run is asked again, since the server may have been the cause.
    endpoint = endpoint if options["skip"] else {**endpoint, "retry_failed": True}
    with opened_client(options["output"], options["url"], options["model"], endpoint) as client:
        bodies = [
            client.request(chat_messages(prompt_messages(part.content or {})), None, 0, options["max_new_tokens"])
            | ({"structured_outputs": {"json": schema}} if schema else {})
            for part, schema in zip(questions, schemas, strict=True)
        ]

        def stop(key: str, reason: str) -> None:
            keys = (request_key(client.options.route, body) for body in bodies)
            location = next(part.location for part, each in zip(questions, keys, strict=True) if each == key)
            fact = f"{location}: the request has failed ({reason})"
            raise ValueError(f"{fact}; correct it, or give --on_error skip; the same command resumes")

        started = time.perf_counter()
        completions = client.complete(bodies, "answering", None if options["skip"] else stop)
        seconds = time.perf_counter() - started
        print(client.totals.summary())
    if options["grammar"]:
        report_grammar(completions, schemas)
    answered = iter(completions)
    grouped = [list(islice(answered, len(each))) for each in parts]
    kept = []
    for row, group in zip(rows, grouped, strict=True):
        error = next((each.error for each in group if each.error), "")
        if error:
            fact = f"skipped {row.location}: the request has failed ({error})"
            print(f"notice: {fact}; --retry_failed asks it again", file=sys.stderr)
        else:
            kept.append((row, [GeneratedAnswer(each.text, each.finish_reason) for each in group]))
    if not kept:
        raise ValueError("no row was answered; correct the rows, and give --retry_failed")
    return [row for row, _ in kept], [answers for _, answers in kept], seconds


def report_grammar(completions: Sequence[Completion], schemas: Sequence[dict[str, Any] | None]) -> None:
    """Print a notice if complete answers do not follow their JSON schema: the server ignores structured_outputs."""
    complete = [
        follows(answer.text, schema or {"type": "object"})
        for answer, schema in zip(completions, schemas, strict=True) if answer.finish_reason == "stop"
    ]  # fmt: skip
    if wrong := complete.count(False):
        fact = f"{wrong} of {len(complete)} complete answers do not follow the grammar"
        remedy = "so the server ignores structured_outputs; serve the model with vLLM, or remove --grammar"
        print(f"notice: {fact}, {remedy}", file=sys.stderr)
