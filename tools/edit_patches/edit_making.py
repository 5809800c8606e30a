"""Load a checkpoint, edit it in memory, and ask each edit's question before and after; show how statistics converge."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from chat_prompts.template_files import folder_template
from edit_scores.answer_matching import count_occurrences
from edit_scores.model_answers import probe_answers
from exact_tokenizers.tokenizer_folders import exact_tokenizer_folder
from knowledge_editing.edit_encoding import EditEncoder
from knowledge_editing.edit_files import Edit, edit_row
from knowledge_editing.edit_run import CACHE, RunSettings, check_run, run_edits
from knowledge_editing.editable_model import MLP_OUTPUT, EditableModel
from knowledge_editing.editors import EDITORS, Rome
from knowledge_editing.key_statistics import cached_moments
from knowledge_editing.matrix_updates import EditedWeights
from model_folders.own_code import from_folder
from quantization.quantization_methods import load_model, suppress_output

from edit_patches.edited_folders import EditedModel

RECORDED = ("stats_tokens", "batch_size", "keep", "prompt_format", "module", "learning_rate", "steps")


@dataclass(frozen=True)
class MadeEdits:
    """Computed edits: updates, rows for edits.jsonl, further fields of the patch's record, and a summary line."""

    updates: EditedWeights
    rows: list[dict[str, Any]]
    fields: dict[str, Any]
    summary: str


def load(folder: Path, prompt_format: str) -> tuple[Any, EditEncoder]:
    """Return a checkpoint's model, in float32 on a CPU, and the encoder of its prompts."""
    from transformers import AutoTokenizer

    model = load_model(folder, "auto" if torch.cuda.is_available() else "float32")
    tokenizer = from_folder(AutoTokenizer, exact_tokenizer_folder(folder, False), False)
    return model, EditEncoder(tokenizer, folder_template(folder), prompt_format)


def run_settings(options: Mapping[str, Any]) -> RunSettings:
    """Return the settings of the options of `edit_knowledge.py apply`."""
    given = {name: options[name] for name in ("steps", "learning_rate") if options[name]}
    defaults = EDITORS[options["method"]].defaults
    optimisation = replace(defaults.optimisation, steps=options["steps"])
    return RunSettings(
        options["method"], options["module"], Path(options["text"]) if options["text"] else None,
        options["stats_tokens"], options["batch_size"], kept=tuple(options["keep"]),
        max_perplexity=options["max_perplexity"],
        options=replace(defaults, layers=tuple(sorted(options["layers"])), optimisation=optimisation, **given),
    )  # fmt: skip


def state_of(model: EditedModel) -> str:
    """Return a text that identifies a model's weights: its base and its patches."""
    return "-".join([model.base[:16], *(weights[:8] for weights in model.below())])


def make_edits(model: EditedModel, edits: Sequence[Edit], options: Mapping[str, Any]) -> MadeEdits:
    """Compute edits on a checkpoint. options: those of `edit_knowledge.py apply`. Raises ValueError as `run_edits`."""
    settings = run_settings(options)
    check_run(edits, settings)
    with suppress_output():
        loaded, encoder = load(model.folder, options["prompt_format"])
        questions, targets = [edit.question for edit in edits], [edit.target for edit in edits]
        before = probe_answers(loaded, encoder, questions, targets)
        result = run_edits(loaded, encoder, state_of(model), edits, settings)
        after = probe_answers(loaded, encoder, questions, targets)
    answers = zip(edits, before, after, strict=True)
    rows = [edit_row(edit) | {"before": old.text, "after": new.text} for edit, old, new in answers]
    correct = sum(count_occurrences(new.text, edit.target) > 0 for edit, new in zip(edits, after, strict=True))
    ratio = result.health[-1]["perplexity_ratio"]
    text = "" if math.isnan(ratio) else f", perplexity of the text x {ratio:.3f}"
    layers = ", ".join(map(str, result.layers))
    summary = f"{correct} of {len(edits)} questions are answered with the new target; layers {layers}{text}"
    fields = {"options": {name: options[name] for name in RECORDED}, "layers": list(result.layers)}
    return MadeEdits(result.updates, rows, fields, summary)


def print_statistics(model: EditedModel, text: Path, tokens: Sequence[int], layers: Sequence[int]) -> None:
    """Print the relative difference of the key statistics of fewer tokens from those of the most tokens."""
    with suppress_output():
        loaded, encoder = load(model.folder, "auto")
        editable = EditableModel(loaded, MLP_OUTPUT)
        chosen = tuple(layers) or Rome.default_layers(editable.layers)
        moments = {
            count: cached_moments(editable, chosen, encoder.text_ids, text, count, state_of(model), CACHE)
            for count in tokens
        }
    print("tokens  " + "  ".join(f"layer {layer:>3}" for layer in chosen) + "   difference from the last row")
    for count in tokens:
        differences = [(moments[count][layer] - moments[tokens[-1]][layer]).norm() / moments[tokens[-1]][layer].norm()
                       for layer in chosen]  # fmt: skip
        print(f"{count:>6}  " + "  ".join(f"{float(each):>9.3f}" for each in differences))
