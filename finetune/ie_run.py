"""Answer the instructions of a file with a checkpoint, in batches, with greedy decoding.

    python finetune/ie_run.py --base_model checkpoints/ie --data_path heldout.jsonl --output predictions.jsonl
    python finetune/ie_run.py --base_model B --lora_weights adapters/ie --data_path D --output P --batch_size 64 --fp16

The output has the rows in the order of the file, each with the answer under "prediction" and a "finish_reason": "stop"
if the model ended the answer, "length" if the answer reached the token limit or the end of the context.
finetune/ie_eval.py scores the answers. Prompts are rendered with the chat template of the adapter or checkpoint, as in
tuning; without a template, a prompt is the instruction and the input, separated by a blank line.

If vLLM is installed, inference/batch.py answers a long file faster; this command does not need vLLM.
"""

from command_line.fire_commands import run

import json
import sys
import time
from itertools import islice
from typing import Any, Literal

from adapter_loading.checkpoint_loading import check_folders, load_checkpoint
from answer_generation.batched_generation import generate_answers
from chat_prompts.prompt_encoding import PromptEncoder
from chat_prompts.template_files import folder_template, missing_template
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


def main(
    base_model: str,
    data_path: str,
    output: str,
    lora_weights: str = "",
    prompt_template_name: str = "",
    batch_size: int = 32,
    max_new_tokens: int = 256,
    limit: int = 0,
    on_error: Literal["stop", "skip"] = "stop",
    fp16: bool = False,
    bf16: bool = False,
    trust_remote_code: bool = False,
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
    """
    for name, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise ValueError(f"--{name} {value} is too small; it must be at least 1")
    check_output(output, [data_path])
    check_folders(base_model, lora_weights)
    template = (
        load_template(prompt_template_name) if prompt_template_name else folder_template(lora_weights, base_model)
    )
    skip = on_error == "skip"
    rows = usable_rows(list(islice(checked_rows(data_path, answers=False), limit or None)), skip)

    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    dtype = "float16" if fp16 else "bfloat16" if bf16 else "float32"
    model, tokenizer = load_merged(base_model, lora_weights, dtype, trust_remote_code)
    encoder = PromptEncoder(tokenizer, template)
    if not encoder.template:
        warning = missing_template(lora_weights or base_model, "--prompt_template_name alpaca")
        print(f"notice: {warning}", file=sys.stderr)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    encoded = [encode_prompt(encoder, row, context) for row in rows]
    rows = usable_rows([row for row, _ in encoded], skip)
    if not rows:
        raise ValueError(f"{data_path} has no row that can be answered; correct the rows")
    with new_file(output, replace=True) as file, file.open("w", encoding="utf-8") as lines:
        started = time.perf_counter()
        answers = generate_answers(model, encoder, [ids for _, ids in encoded if ids], batch_size, max_new_tokens)
        seconds = time.perf_counter() - started
        for row, (text, finish_reason) in zip(rows, answers, strict=True):
            answered = {**(row.content or {}), "prediction": text, "finish_reason": finish_reason}
            lines.write(json.dumps(answered, ensure_ascii=False) + "\n")
    speed = f"{seconds:.{1 if seconds < 10 else 0}f} s ({seconds / len(rows):.2f} s a row)"
    print(f"{output}: {len(rows)} answer{'s' * (len(rows) != 1)} in {speed}")


if __name__ == "__main__":
    run(main)
