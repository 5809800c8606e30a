"""Ask a checkpoint the instructions of a file and write its answers: greedy, batched, the same on every run.

    python finetune/ie_run.py --base_model checkpoints/ie --data_path heldout.jsonl --output predictions.jsonl
    python finetune/ie_run.py --base_model B --lora_weights adapters/ie --data_path D --output P --batch_size 64 --fp16

A line of the output is the row with the answer under "prediction", in the order of the file; finetune/ie_eval.py scores
it. The prompt is the checkpoint's own chat template (the adapter's, with --lora_weights), rendered as it was in tuning;
a base model without one is asked with the bare instruction.
"""

from command_line.fire_commands import run

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from chat_prompts.prompt_encoding import PromptEncoder
from chat_prompts.template_files import folder_template
from extraction_scores.answer_generation import answer
from instruction_data.named_templates import load_template
from json_rows.instruction_rows import iterate_instructions, question_of


def check_folder(path: str, names: tuple[str, ...], option: str) -> Path:
    """The folder, if it holds all the files that are needed; raises FileNotFoundError with the first that it lacks."""
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; {option} takes a folder with {' and '.join(names)}")
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}; {option} takes a folder with {' and '.join(names)}")
    return folder


def load(base_model: str, lora_weights: str, dtype: str) -> tuple[Any, Any]:
    """Model and tokenizer on the first GPU, or the CPU; ValueError where adapter and model do not fit together."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    loading: Any = AutoModelForCausalLM.from_pretrained(
        base_model, dtype=getattr(torch, dtype), local_files_only=True, output_loading_info=True
    )
    model, loaded = loading
    if loaded["missing_keys"]:
        raise ValueError(f"{base_model} lacks {len(loaded['missing_keys'])} weights; get the checkpoint again")
    source = base_model
    if lora_weights:
        model = with_adapter(model, lora_weights)
        source = lora_weights if Path(lora_weights, "tokenizer.json").is_file() else base_model
    return model.to(device).eval(), AutoTokenizer.from_pretrained(source, local_files_only=True)


def with_adapter(model: Any, lora_weights: str) -> Any:
    """The model with the adapter merged into its weights; ValueError unless their tensors are the same set."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    adapted = PeftModel.from_pretrained(model, lora_weights)
    with safe_open(Path(lora_weights, "adapter_model.safetensors"), framework="pt") as tensors:
        different = set(tensors.keys()) ^ set(get_peft_model_state_dict(adapted))
    if different:
        raise ValueError(
            f"{lora_weights} does not fit the model: {len(different)} tensors are only in one of them, "
            f"{min(different)} for one; give the --base_model that it was tuned from"
        )
    return adapted.merge_and_unload()


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
) -> None:
    """Write the rows of data_path with the model's answers under "prediction" to output (JSONL).

    Args:
        base_model: the checkpoint's folder.
        data_path: JSON, JSONL or parquet of instruction rows; right answers in them are carried along, not read.
        output: the file to write.
        lora_weights: the folder of an adapter to put on the checkpoint.
        prompt_template_name: another template than the checkpoint's: a name in finetune/templates, or a path.
        batch_size: prompts answered together.
        max_new_tokens: tokens of the longest answer.
        limit: answer only the first rows, 0: all.
        fp16: compute in float16 (GPU).
        bf16: compute in bfloat16.
    """
    base = check_folder(base_model, ("config.json", "tokenizer.json"), "--base_model")
    if lora_weights:
        check_folder(lora_weights, ("adapter_config.json", "adapter_model.safetensors"), "--lora_weights")
    template = load_template(prompt_template_name) if prompt_template_name else folder_template(lora_weights)
    rows = list(islice(iterate_instructions(data_path, answers=False), limit or None))
    target = Path(output)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent} does not exist; make it before --output {target} is written")

    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    dtype = "float16" if fp16 else "bfloat16" if bf16 else "float32"
    model, tokenizer = load(str(base), lora_weights, dtype)
    encoder = PromptEncoder(tokenizer, template)
    prompts = encoder.prompts([question_of(row) for row in rows])
    answers = answer(model, encoder, prompts, batch_size, max_new_tokens)
    scratch = Path(f"{target}.partial")
    with scratch.open("w", encoding="utf-8") as lines:
        for row, text in zip(rows, answers, strict=True):
            lines.write(json.dumps({**row, "prediction": text}, ensure_ascii=False) + "\n")
    scratch.replace(target)
    print(f"{target}: {len(rows)} answers")


if __name__ == "__main__":
    run(main)
