"""The contenders of bench_finetune.py: the published script, TRL and this repository. Each runs in its own process.

    python benchmarks/finetune_contenders.py published|trl|ours|unshared|tokenising SCRATCH

SCRATCH is a folder that `bench_finetune.prepare` wrote. The last line of the output is JSON with the measurements.
unshared is ours without shared prefixes; tokenising does not train, but measures both encoders in rows per CPU second.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from measurements import REPOSITORY, read_jsonl

sys.path[:0] = [str(REPOSITORY / stage) for stage in ("finetune", "examples", "tools")]
ADAPTER = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0}
SAVED = "adapter-{}"  # folder in SCRATCH of a contender's adapter, if the settings ask for it
IGNORED = -100  # the label of an unsupervised position
Row = dict[str, Any]
# cutoff and pack_length in tokens; batch and micro: examples per step and per forward pass; warm_up: unmeasured steps;
# steps: measured steps; prompt: a format string; learning_rate; bf16: compute in bfloat16 instead of float32; save:
# write the adapter.
Settings = dict[str, Any]


def batch_counts(batch: dict[str, Any]) -> dict[str, int]:
    """Return counts of a micro batch: examples with a label, labels, tokens, and positions (tokens and padding).

    In our batches, `keep` lists the positions whose logits are computed, and `targets` their labels; each entry of
    `segments` is one example without its shared prefix. TRL's packed examples start where position_ids is 0.
    """
    import torch

    ids = batch["input_ids"]
    supervised = batch["targets" if "targets" in batch else "labels"] != IGNORED
    positions = torch.arange(ids.shape[1])
    if "segments" in batch:
        lengths = torch.tensor([segment.length for segment in batch["segments"]])
        example = torch.arange(len(lengths)).repeat_interleave(lengths)[None]
    else:
        starts = batch.get("position_ids", positions.expand_as(ids)) == 0
        example = starts.flatten().cumsum(0).view_as(ids)  # (sequences, width), example number of each position
    return {
        "examples": example[:, batch.get("keep", positions)][supervised].unique().numel(),
        "supervised_tokens": int(supervised.sum()),
        "tokens": int(batch["attention_mask"].sum()) if "attention_mask" in batch else ids.numel(),
        "positions": ids.numel(),
    }


def train_and_measure(trainer: Any, settings: Settings, name: str) -> dict[str, Any]:
    """Train; return counts and CPU seconds of the steps after the warm-up, and the loss of every step.

    If the settings ask for it, write the adapter of the contender `name` beside the trainer's output folder.
    """
    from transformers import TrainerCallback

    counts: Counter[str] = Counter()
    totals: list[tuple[float, Counter[str]]] = []  # after each step
    step = trainer.training_step

    def counted_step(model: Any, batch: Any, *more: Any, **options: Any) -> Any:
        for micro in batch.get("micro_batches", [batch]):
            counts.update(batch_counts(micro))
        return step(model, batch, *more, **options)

    class RecordTotals(TrainerCallback):
        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            totals.append((time.process_time(), counts.copy()))

    trainer.training_step = counted_step
    trainer.add_callback(RecordTotals())
    trainer.train()
    if settings["save"]:
        trainer.save_model(str(Path(trainer.args.output_dir).with_name(SAVED.format(name))))
    (begun, before), (ended, after) = totals[settings["warm_up"] - 1], totals[-1]
    losses = [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry]
    return {**(after - before), "cpu_s": ended - begun, "losses": losses}


def trainer_options(scratch: Path, settings: Settings) -> dict[str, Any]:
    """Return the training arguments that all contenders share."""
    return {
        "output_dir": str(scratch / "output"), "max_steps": settings["warm_up"] + settings["steps"], "seed": 1,
        "learning_rate": settings["learning_rate"], "bf16": settings["bf16"],
        "lr_scheduler_type": "linear", "warmup_steps": 0, "optim": "adamw_torch",
        "logging_steps": 1, "report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }  # fmt: skip


def load_base(scratch: Path, settings: Settings) -> tuple[Any, Any, Any]:
    """Return the tokenizer and the model of scratch/base, in bfloat16 or float32, and the LoRA configuration."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(scratch / "base")
    model = AutoModelForCausalLM.from_pretrained(
        scratch / "base", dtype=torch.bfloat16 if settings["bf16"] else torch.float32
    )
    return tokenizer, model, LoraConfig(**ADAPTER, target_modules="all-linear", task_type="CAUSAL_LM")


def published_encoder(tokenizer: Any, prompt: str, cutoff: int) -> Callable[[Row], dict[str, list[int]]]:
    """Return a function for datasets.map that encodes a row to ids and labels with two calls of the tokenizer."""

    def encode(text: str, end: bool) -> list[int]:
        ids = tokenizer(text, truncation=True, max_length=cutoff, padding=False)["input_ids"]
        return [*ids, tokenizer.eos_token_id] if end and len(ids) < cutoff else ids

    def encode_row(row: Row) -> dict[str, list[int]]:
        question = prompt.format(instruction=row["instruction"], input=row["input"])
        whole, length = encode(question + row["output"], end=True), len(encode(question, end=False))
        labels = [IGNORED] * length + whole[length:]
        return {"input_ids": whole, "attention_mask": [1] * len(whole), "labels": labels}

    return encode_row


def run_published(scratch: Path, settings: Settings) -> dict[str, Any]:
    """Train like alpaca-lora's finetune.py: plain Trainer, padding to a multiple of 8 at the left, no packing."""
    from datasets import Dataset
    from peft import get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed

    tokenizer, model, adapter = load_base(scratch, settings)
    tokenizer.pad_token_id, tokenizer.padding_side = 0, "left"
    encode = published_encoder(tokenizer, settings["prompt"], settings["cutoff"])
    options = trainer_options(scratch, settings) | {
        "per_device_train_batch_size": settings["micro"],
        "gradient_accumulation_steps": settings["batch"] // settings["micro"],
    }
    set_seed(options["seed"])
    collator = DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8, return_tensors="pt", padding=True)
    data = Dataset.from_list(read_jsonl(scratch / "rows.jsonl")).map(encode)
    trainer = Trainer(get_peft_model(model, adapter), TrainingArguments(**options), collator, data)
    return train_and_measure(trainer, settings, "published")


def run_trl(scratch: Path, settings: Settings) -> dict[str, Any]:
    """Train with TRL; each step takes as many packed sequences as are needed for about settings["batch"] examples."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    tokenizer, model, adapter = load_base(scratch, settings)
    prompt, length = settings["prompt"], settings["pack_length"]
    rows = [
        {"prompt": prompt.format(instruction=row["instruction"], input=row["input"]), "completion": row["output"]}
        for row in read_jsonl(scratch / "rows.jsonl")
    ]
    tokens = sum(len(ids) + 1 for ids in tokenizer([row["prompt"] + row["completion"] for row in rows])["input_ids"])
    options = trainer_options(scratch, settings) | {
        "gradient_accumulation_steps": max(1, round(settings["batch"] * tokens / len(rows) / length)),
        "packing": True, "packing_strategy": "bfd", "max_length": length, "completion_only_loss": True,
        "per_device_train_batch_size": 1, "gradient_checkpointing": False,
    }  # fmt: skip
    data = Dataset.from_list(rows)
    trainer = SFTTrainer(model, SFTConfig(**options), None, data, processing_class=tokenizer, peft_config=adapter)
    return train_and_measure(trainer, settings, "trl")


def run_ours(scratch: Path, settings: Settings, more_arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Train with finetune.py's functions; more_arguments: further command-line arguments of finetune.py."""
    from chat_prompts.prompt_encoding import PromptEncoder
    from instruction_data.data_sources import find_sources
    from instruction_tuning.adapters import load_model_to_tune
    from instruction_tuning.instruction_trainer import make_trainer
    from instruction_tuning.tuning_arguments import parse
    from instruction_tuning.tuning_data import encode_sources, split_and_order
    from transformers import AutoTokenizer, set_seed

    options = trainer_options(scratch, settings) | {
        "base_model": scratch / "base", "data_path": scratch / "rows.jsonl", "cutoff_len": settings["cutoff"],
        "batch_size": settings["batch"], "micro_batch_size": settings["micro"], "cache_dir": scratch / "cache",
        **{name if name.startswith("lora_") else f"lora_{name}": value for name, value in ADAPTER.items()},
    }  # fmt: skip
    arguments = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    args, _ = parse([*arguments, *more_arguments], "")
    encoder = PromptEncoder(AutoTokenizer.from_pretrained(args.base_model))
    data = split_and_order(args, encode_sources(args, encoder, find_sources(args.data_path)), [])
    set_seed(args.seed)
    trainer = make_trainer(args, load_model_to_tune(args), encoder.tokenizer, data, {})
    return train_and_measure(trainer, settings, "ours")


def run_tokenising(scratch: Path, settings: Settings, min_rows: int = 1500) -> dict[str, float]:
    """Return rows per CPU second of datasets.map and of our encoder; the rows are repeated to at least `min_rows`."""
    from chat_prompts.prompt_encoding import PromptEncoder
    from datasets import Dataset
    from instruction_data.tokenized_examples import EncodingSettings, encode_rows
    from json_rows.row_files import Row
    from transformers import AutoTokenizer

    encoder = PromptEncoder(AutoTokenizer.from_pretrained(scratch / "base"))
    rows = read_jsonl(scratch / "rows.jsonl")
    rows *= -(-min_rows // len(rows))
    data = Dataset.from_list(rows)
    begun = time.process_time()
    data.map(published_encoder(encoder.tokenizer, settings["prompt"], settings["cutoff"]))
    between = time.process_time()
    list(encode_rows(encoder, (Row("rows.jsonl", row) for row in rows), EncodingSettings(settings["cutoff"])))
    return {"published": len(rows) / (between - begun), "ours": len(rows) / (time.process_time() - between)}


TRAINERS: dict[str, Callable[[Path, Settings], dict[str, Any]]] = {
    "published": run_published,
    "trl": run_trl,
    "ours": run_ours,
    "unshared": partial(run_ours, more_arguments=["--share_prefixes", "False"]),
}

if __name__ == "__main__":
    contender, folder = sys.argv[1], Path(sys.argv[2])
    measure = (TRAINERS | {"tokenising": run_tokenising})[contender]
    print(json.dumps(measure(folder, json.loads((folder / "settings.json").read_text()))))
