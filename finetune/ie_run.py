"""Answer the instructions of a file with a checkpoint or an OpenAI-compatible server, with greedy decoding.

    python finetune/ie_run.py --base_model checkpoints/ie --data_path heldout.jsonl --output predictions.jsonl
    python finetune/ie_run.py --base_model B --lora_weights adapters/ie --data_path D --output P --batch_size 64 --fp16
    python finetune/ie_run.py --url http://127.0.0.1:8090/v1 --data_path D --output P --grammar --orders 3

The output has the rows in the order of the file, each with the answer under "prediction" and a "finish_reason": "stop"
if the model ended the answer, "length" if the answer reached the token limit or the end of the context.
finetune/ie_eval.py scores the answers. Prompts are rendered with the chat template of the adapter or checkpoint, as in
tuning; without a template, a prompt is the instruction and the input, separated by a blank line. A server renders
the messages with its own template; the input follows the instruction after a blank line.

Rows whose instruction is JSON, {"instruction", "schema", "input"}, can be asked with their types in several random
orders (--orders, written under "order"), and in parts of a long schema (--schema_batch), whose answers are merged in
the order of the schema. With --grammar, a server gets the JSON schema of the answer as vLLM's `structured_outputs`.

The answers of a server are kept in OUTPUT.journal: a killed run resumes with the same command and repeats no request.
The server's key is read from the environment variable OPENAI_API_KEY. If vLLM is installed, inference/batch.py answers
a long file faster; this command does not need vLLM.
"""

from command_line.fire_commands import run

import sys
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any, Literal

from adapter_loading.checkpoint_loading import check_folders, load_checkpoint
from answer_generation.batched_generation import GeneratedAnswer, generate_answers
from answer_generation.schema_parts import answered_lines, merged_answer, parts_of, rows_in_orders
from chat_prompts.prompt_encoding import PromptEncoder
from chat_prompts.template_files import folder_template, missing_template
from endpoint_requests.endpoint_option_types import ENDPOINT_OPTION_TYPES
from instruction_data.named_templates import load_template
from json_rows.instruction_rows import checked_rows, prompt_messages
from json_rows.row_files import Row
from partial_folders.atomic_outputs import new_file
from partial_folders.output_paths import check_output


def load_merged(base_model: str, lora_weights: str, dtype: str, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Return (model with the adapter merged, tokenizer); the model is on the first GPU or the CPU.

    Raises FileNotFoundError or ValueError if a folder is incomplete, or if adapter and base do not fit each other.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"merge": True, "trust_remote_code": trust_remote_code, "dtype": getattr(torch, dtype)}
    model, tokenizer = load_checkpoint(base_model, lora_weights, **options)
    return model.to(device), tokenizer


def usable_rows(rows: list[Row], skip: bool) -> list[Row]:
    """Return the rows without an error. For a row with an error, print a notice with `skip`, else raise ValueError."""
    for row in rows:
        if row.content is None and not skip:
            raise ValueError(f"{row.location} {row.error}")
        if row.content is None:
            fact = row.error.partition("; ")[0]  # without the remedy
            print(f"notice: skipped {row.location}, which {fact}", file=sys.stderr)
    return [row for row in rows if row.content is not None]


def encode_prompt(encoder: PromptEncoder, row: Row, context: int) -> tuple[Row, list[int]]:
    """Return a row and the ids of its prompt.

    If the prompt cannot be rendered or fills the context, return a row with an error and [].
    """
    try:
        ids = encoder.prompt_ids(prompt_messages(row.content or {}))
    except ValueError as error:
        return Row(row.location, None, f"cannot be used: {error}; correct it, or give --on_error skip"), []
    if len(ids) < context:
        return row, ids
    fact = f"has a prompt of {len(ids)} tokens, which leaves no room for an answer in the model's {context} positions"
    return Row(row.location, None, f"{fact}; shorten it, or give --on_error skip"), []


def asked_rows(data_path: str, limit: int, skip: bool, orders: int) -> list[Row]:
    """Return the rows to ask, in the order of the output; raises ValueError if a row cannot be used."""
    rows = usable_rows(list(islice(checked_rows(data_path, answers=False), limit or None)), skip)
    rows = rows_in_orders(rows, orders) if orders else rows
    if not rows:
        raise ValueError(f"{data_path} has no row that can be answered; correct the rows")
    return rows


def report(output: str, rows: Sequence[Row], seconds: float, answers: Sequence[Sequence[GeneratedAnswer]]) -> None:
    """Print the number of rows and the time, and a notice if answers to parts of a schema could not be merged."""
    merged = [merged_answer(row.content or {}, parts) for row, parts in zip(rows, answers, strict=True)]
    parts, number = sum(map(len, answers)), len(rows)
    if unparsed := sum(each.get("unparsed_parts", 0) for each in merged):
        fact = f"{unparsed} of {parts} answers to parts of a schema are not JSON objects"
        print(f'notice: {fact}, so they are missing from "prediction"', file=sys.stderr)
    speed = f"{seconds:.{1 if seconds < 10 else 0}f} s ({seconds / number:.2f} s a row)"
    asked = f" to {parts} questions" if parts > number else ""
    print(f"{output}: {number} answer{'s' * (number != 1)}{asked} in {speed}")


def answer_with_checkpoint(
    base_model: str, lora_weights: str, template: str | None, rows: list[Row], options: dict[str, Any]
) -> tuple[list[Row], list[list[GeneratedAnswer]], float]:
    """Return the rows that can be asked, the answers to their parts, and the seconds of generation.

    options: data_path, schema_batch, batch_size, max_new_tokens, skip, dtype and trust_remote_code.
    """
    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    model, tokenizer = load_merged(base_model, lora_weights, options["dtype"], options["trust_remote_code"])
    encoder = PromptEncoder(tokenizer, template)
    if not encoder.template:
        warning = missing_template(lora_weights or base_model, "--prompt_template_name alpaca")
        print(f"notice: {warning}", file=sys.stderr)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    encoded = [
        [encode_prompt(encoder, part, context) for part in parts_of(row, options["schema_batch"])] for row in rows
    ]
    first_errors = [
        next((part for part, ids in parts if not ids), row) for row, parts in zip(rows, encoded, strict=True)
    ]
    kept = usable_rows(first_errors, options["skip"])
    if not kept:
        raise ValueError(f"{options['data_path']} has no row that can be answered; correct the rows")
    prompts = [[ids for _, ids in parts] for parts in encoded if all(ids for _, ids in parts)]
    started = time.perf_counter()
    flat = [ids for parts in prompts for ids in parts]
    answers = iter(generate_answers(model, encoder, flat, options["batch_size"], options["max_new_tokens"]))
    grouped = [list(islice(answers, len(parts))) for parts in prompts]
    return kept, grouped, time.perf_counter() - started


def check_options(given: dict[str, Any], endpoint: dict[str, Any]) -> None:
    """Raise ValueError if options are out of range or exclude each other."""
    for name in ("batch_size", "max_new_tokens"):
        if given[name] < 1:
            raise ValueError(f"--{name} {given[name]} is too small; it must be at least 1")
    for name in ("limit", "schema_batch", "orders"):
        if given[name] < 0:
            raise ValueError(f"--{name} {given[name]} is too small; it must be at least 0")
    for name in ("data_path", "output"):
        if not given[name]:
            raise ValueError(f"--{name} is missing; see --help")
    if bool(given["base_model"]) == bool(given["url"]):
        raise ValueError("give either --base_model, the folder of a checkpoint, or --url, the address of a server")
    for_checkpoints = ("lora_weights", "prompt_template_name", "fp16", "bf16")
    for name in for_checkpoints if given["url"] else ("model", "grammar", *endpoint):
        if name in endpoint or given[name]:
            side = "a checkpoint (--base_model)" if given["url"] else "a server (--url)"
            more = "; inference/batch.py answers with a checkpoint and a grammar"
            raise ValueError(f"--{name} is an option for {side}; remove it{more if name == 'grammar' else ''}")


def main(
    base_model: str = "",
    data_path: str = "",
    output: str = "",
    lora_weights: str = "",
    prompt_template_name: str = "",
    batch_size: int = 32,
    max_new_tokens: int = 256,
    limit: int = 0,
    on_error: Literal["stop", "skip"] = "stop",
    fp16: bool = False,
    bf16: bool = False,
    trust_remote_code: bool = False,
    url: str = "",
    model: str = "",
    grammar: bool = False,
    orders: int = 0,
    schema_batch: int = 0,
    **endpoint: Any,
) -> None:
    """Write the rows of data_path with "prediction" and "finish_reason" to output (JSONL).

    Args:
        base_model: the folder of the checkpoint.
        data_path: JSON, JSONL or parquet of instruction rows; correct answers are optional and copied to the output.
        output: the file to write.
        lora_weights: the folder of an adapter for the checkpoint.
        prompt_template_name: a name in finetune/templates, or a path; default: the template of adapter or checkpoint.
        batch_size: prompts per batch.
        max_new_tokens: maximum tokens per answer.
        limit: answer only the first `limit` rows; 0: all.
        on_error: stop at a row that cannot be read, rendered or answered, or skip such rows with a notice.
        fp16: compute in float16 (GPU).
        bf16: compute in bfloat16.
        trust_remote_code: execute the Python code in the folders of base_model and lora_weights.
        url: the address of an OpenAI-compatible server, with or without /v1, instead of base_model.
        model: the name of the model in the requests; default: the first one that the server lists.
        grammar: ask the server for answers that follow the JSON schema of the row (vLLM); rows need "task".
        orders: ask each row with its types in this number of random orders; 0: in the order of the row.
        schema_batch: maximum number of types in a question; the answers to the parts of a row are merged; 0: no limit.
        endpoint: api, extra_body, concurrency, attempts, timeout, retry_failed, api_key, input_price, output_price (see
            finetune/endpoint_requests/endpoint_option_types.py).
    """
    given = {name: value for name, value in locals().items() if name != "endpoint"}
    check_options(given, endpoint)
    check_output(output, [data_path])
    skip = on_error == "skip"
    template = None
    if base_model:
        check_folders(base_model, lora_weights)
        template = (
            load_template(prompt_template_name) if prompt_template_name else folder_template(lora_weights, base_model)
        )
    rows = asked_rows(data_path, limit, skip, orders)
    dtype = "float16" if fp16 else "bfloat16" if bf16 else "float32"
    options = given | {"skip": skip, "dtype": dtype}
    if url:
        from answer_generation.endpoint_rows import answer_with_endpoint

        kept, answers, seconds = answer_with_endpoint(rows, options, endpoint)
        with new_file(output, replace=True) as file:
            file.write_text(answered_lines(kept, answers), encoding="utf-8")
        return report(output, kept, seconds, answers)
    with new_file(output, replace=True) as file:
        kept, answers, seconds = answer_with_checkpoint(base_model, lora_weights, template, rows, options)
        file.write_text(answered_lines(kept, answers), encoding="utf-8")
    return report(output, kept, seconds, answers)


if __name__ == "__main__":
    run(main, extra_option_types=ENDPOINT_OPTION_TYPES)
