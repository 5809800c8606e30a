"""Check a saved adapter or model and add the other files of the result folder."""

import hashlib
from pathlib import Path
from typing import Any

from instruction_data.data_sources import Source
from training_loop.run_folders import copy_if_there, copy_model_code, run_record
from training_loop.training_log import draw_curves

from instruction_tuning.adapters import PISSA_START, check_adapter_file, convert_pissa_to_lora
from instruction_tuning.tuning_arguments import TuningArguments


def sha256(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def add_stop_ids(model: Any, ids: list[int]) -> bool:
    """Add ids that end generation to the model's generation config; return whether any of them is new."""
    config = model.generation_config
    known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    new = [index for index in ids if index not in known]
    if new:
        config.eos_token_id = [*(index for index in known if index is not None), *new]
    return bool(new)


def complete_result(
    trainer: Any, args: TuningArguments, sources: list[Source], new_stop_ids: bool, folder: Path
) -> None:
    """Check the saved adapter in a folder, convert a PiSSA adapter, and add the other files of the result.

    The other files are run.json, training_curves.png and, if they exist, tokenizer.model, the base's Python code and
    extraction.json. new_stop_ids: whether `add_stop_ids` changed the generation config, which is then saved beside an
    adapter too.
    """
    if args.method != "full":
        if new_stop_ids:
            trainer.model.generation_config.save_pretrained(folder)
        check_adapter_file(folder / "adapter_model.safetensors")
    if args.lora_init.startswith("pissa"):
        convert_pissa_to_lora(folder, Path(args.output_dir or "", PISSA_START))
    copy_if_there(Path(args.base_model, "tokenizer.model"), folder / "tokenizer.model")
    copy_model_code(Path(args.base_model), folder)
    copy_if_there(Path(args.extraction_path), folder / "extraction.json")
    parts, state = trainer.data.examples.parts, trainer.state
    record = run_record(
        "finetune/finetune.py", args, ["peft"],
        arguments=args.to_sanitized_dict() | {"gradient_accumulation_steps": args.accumulation},
        data={str(source.path): sha256(str(source.path)) for source in sources},
        examples={part.name: part.counts() for part in parts},
        held_out=len(trainer.data.held_out),
        packed=trainer.layout.packed,
        best_checkpoint={"step": state.best_global_step, "metric": state.best_metric},
    )  # fmt: skip
    (folder / "run.json").write_text(record)
    draw_curves(state.log_history, folder / "training_curves.png", args.base_model)
