"""Answer the instructions of a file with a checkpoint, in batches, with greedy decoding.

    python finetune/ie_run.py --base_model checkpoints/ie --data_path heldout.jsonl --output predictions.jsonl
    python finetune/ie_run.py --base_model B --lora_weights adapters/ie --data_path D --output P --batch_size 64 --fp16

The output has the rows in the order of the file, each with the answer under "prediction"; finetune/ie_eval.py scores
the answers. Prompts are rendered with the chat template of the adapter or checkpoint, as in tuning; if a base model has
no template, the prompt is only the instruction.
"""

from command_line.fire_commands import run

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from adapter_loading.checkpoint_loading import check_folders, load_checkpoint
from answer_generation.batched_generation import generate_answers
from chat_prompts.prompt_encoding import PromptEncoder
from chat_prompts.template_files import folder_template, missing_template
from instruction_data.named_templates import load_template
from json_rows.instruction_rows import iterate_instructions, prompt_messages


def load_merged(base_model: str, lora_weights: str, dtype: str, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Return (model, tokenizer), on the first GPU or the CPU; raises ValueError if adapter and base do not fit."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"merge": True, "trust_remote_code": trust_remote_code, "dtype": getattr(torch, dtype)}
    model, tokenizer = load_checkpoint(base_model, lora_weights, **options)
    return model.to(device), tokenizer


def main(
    base_model: str,
    data_path: str,
    output: str,
    lora_weights: str = "",
    prompt_template_name: str = "",
    batch_size: int = 32,
    max_new_tokens: int = 256,
    limit: int = 0,
    fp16: bool = False,
    bf16: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Write the rows of data_path with the answers under "prediction" to output (JSONL).

    Args:
        base_model: the folder of the checkpoint.
        data_path: JSON, JSONL or parquet of instruction rows; correct answers are optional and copied to the output.
        output: the file to write.
        lora_weights: the folder of an adapter for the checkpoint.
        prompt_template_name: a name in finetune/templates, or a path; default: the template of the checkpoint.
        batch_size: prompts per batch.
        max_new_tokens: maximum tokens per answer.
        limit: answer only the first `limit` rows; 0: all.
        fp16: compute in float16 (GPU).
        bf16: compute in bfloat16.
        trust_remote_code: execute the Python code in the folder of base_model.
    """
    check_folders(base_model, lora_weights)
    template = (
        load_template(prompt_template_name) if prompt_template_name else folder_template(lora_weights, base_model)
    )
    rows = list(islice(iterate_instructions(data_path, answers=False), limit or None))
    target = Path(output)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent} does not exist; create the folder of --output {target} first")

    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    dtype = "float16" if fp16 else "bfloat16" if bf16 else "float32"
    model, tokenizer = load_merged(base_model, lora_weights, dtype, trust_remote_code)
    encoder = PromptEncoder(tokenizer, template)
    if not encoder.template:
        warning = missing_template(lora_weights or base_model, "--prompt_template_name alpaca")
        print(f"notice: {warning}", file=sys.stderr)
    prompts = encoder.prompts([prompt_messages(row) for row in rows])
    answers = generate_answers(model, encoder, prompts, batch_size, max_new_tokens)
    scratch = Path(f"{target}.partial")
    with scratch.open("w", encoding="utf-8") as lines:
        for row, text in zip(rows, answers, strict=True):
            lines.write(json.dumps({**row, "prediction": text}, ensure_ascii=False) + "\n")
    scratch.replace(target)
    print(f"{target}: {len(rows)} answer{'s' * (len(rows) != 1)}")


if __name__ == "__main__":
    run(main)
