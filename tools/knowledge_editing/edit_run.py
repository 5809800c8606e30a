"""Run an editing method on a model: estimate statistics, edit batch by batch, check the health of the model."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from json_rows.row_files import iterate_texts
from tqdm import tqdm

from knowledge_editing.edit_encoding import EditEncoder
from knowledge_editing.edit_files import Edit
from knowledge_editing.editable_model import MLP_OUTPUT, EditableModel, pad_right
from knowledge_editing.editors import EDITORS, EditOptions
from knowledge_editing.key_statistics import cached_moments, text_windows
from knowledge_editing.matrix_updates import EditedWeights, add_updates
from knowledge_editing.rewritings import essence, make_rewriting, sample_prefixes
from knowledge_editing.target_vectors import Rewriting

CACHE = Path(os.environ.get("KNOWLM_CACHE", "~/.cache/knowlm")).expanduser() / "key_statistics"
HEALTH_TOKENS = 4096  # of text for the perplexity of a health check
HEALTH_INTERVAL = 50  # edits between two health checks


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run beside the method's own options.

    text: JSONL of {"text"} for the statistics and the health check; None without both. stats_tokens: its tokens for the
    statistics. max_perplexity: the largest perplexity of the text, relative to before the edits.
    """

    method: str = "rome"
    module: str = MLP_OUTPUT
    text: Path | None = None
    stats_tokens: int = 20000
    batch_size: int = 1
    prefixes: int = 4
    kept: tuple[str, ...] = ()
    max_perplexity: float = 1.2
    options: EditOptions = field(default_factory=EditOptions)


@dataclass
class EditRun:
    """The result of a run: updates of all edits, and the perplexity after some numbers of edits."""

    updates: EditedWeights
    health: list[dict[str, float]]
    layers: tuple[int, ...]


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Yield consecutive parts of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def perplexity(model: EditableModel, windows: Sequence[Sequence[int]]) -> float:
    """Return the perplexity of token windows; the first token of each is not predicted."""
    total, count = 0.0, 0
    for window in windows:
        ids = pad_right([window], model.model.device)
        with torch.no_grad():
            logits = model.model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        count += len(window) - 1
    return math.exp(total / max(count, 1))


class HealthCheck:
    """Compares the perplexity of a text and the norms of the edited matrices with those before the edits."""

    def __init__(
        self, model: EditableModel, layers: Sequence[int], windows: Sequence[Sequence[int]], limit: float
    ) -> None:
        self.model, self.layers, self.windows, self.limit = model, layers, windows, limit
        self.norms = {layer: model.matrix(layer).norm().item() for layer in layers}
        self.before = perplexity(model, windows) if windows else math.nan
        self.records: list[dict[str, float]] = []

    def check(self, edits: int, location: str) -> None:
        """Record the state after `edits` edits; raises ValueError if the model is damaged.

        location: place of the last edit.
        """
        growth = max(self.model.matrix(layer).norm().item() / norm for layer, norm in self.norms.items())
        now = perplexity(self.model, self.windows) if self.windows else math.nan
        self.records.append({"edits": edits, "norm_growth": growth, "perplexity_ratio": now / self.before})
        if not math.isfinite(growth) or now > self.limit * self.before:
            raise ValueError(
                f"{location}: after {edits} edits the perplexity of the text is {now / self.before:.2f} times that "
                f"before (at most {self.limit:g}), the norm of a matrix {growth:.2f} times; apply fewer edits, choose "
                "another method, or raise --max_perplexity"
            )


def check_run(edits: Sequence[Edit], settings: RunSettings) -> None:
    """Raise ValueError with one line for what a method lacks: subjects, text for statistics, or valid settings."""
    method = settings.method
    if EDITORS[method].needs_subject and (edit := next((edit for edit in edits if not edit.subject), None)):
        others = ", ".join(name for name, editor in EDITORS.items() if not editor.needs_subject)
        raise ValueError(
            f"{edit.location}: the edit has no subject in its prompt, which {method} needs; add one, or use {others}"
        )
    if EDITORS[method].needs_moments and settings.stats_tokens and settings.text is None:
        raise ValueError(
            f"{method} needs statistics of text whose meaning must not change; give a JSONL of "
            '{"text"} with --text, or turn them off with --stats_tokens 0'
        )
    if settings.text is not None and not settings.text.is_file():
        raise FileNotFoundError(f'--text {settings.text} does not exist; give a JSONL of {{"text"}}')
    positive = {"batch_size": settings.batch_size, "steps": settings.options.steps}
    for name, value in positive.items():
        if value < 1:
            raise ValueError(f"--{name} {value} is too small; it must be at least 1")
    for name, number in (
        ("max_perplexity", settings.max_perplexity),
        ("learning_rate", settings.options.learning_rate),
    ):
        if not 0 < number < math.inf:
            raise ValueError(f"--{name} {number} is not a positive number")
    if settings.stats_tokens < 0:
        raise ValueError(f"--stats_tokens {settings.stats_tokens} is negative; give 0 for no statistics")


def run_edits(
    model: Any, encoder: EditEncoder, fingerprint: str, edits: Sequence[Edit], settings: RunSettings
) -> EditRun:
    """Edit a loaded model in memory; return the updates of all edits.

    fingerprint: of the model's weights, for the cache of statistics. Raises ValueError with one line for an edit that
    the method cannot use, for statistics that are needed but have no text, and for a damaged model.
    """
    editor_type = EDITORS[settings.method]
    check_run(edits, settings)
    editable = EditableModel(model, settings.module)
    layers = settings.options.layers or editor_type.default_layers(editable.layers)
    if max(layers) >= editable.layers or min(layers) < 0:
        raise ValueError(f"--layers {max(layers)} does not exist; the model has the layers 0 to {editable.layers - 1}")
    moments = {}
    if editor_type.needs_moments and settings.stats_tokens and settings.text is not None:
        moments = cached_moments(
            editable, layers, encoder.text_ids, settings.text, settings.stats_tokens, fingerprint, CACHE
        )
    editor = editor_type(editable, replace(settings.options, layers=layers, moments=moments))
    windows = []
    if settings.text is not None:
        windows = list(text_windows(encoder.text_ids, iterate_texts(settings.text), HEALTH_TOKENS))
    health = HealthCheck(editable, layers, windows, settings.max_perplexity)
    prefixes = sample_prefixes(editable, encoder, settings.prefixes) if editor_type.needs_subject else []
    total: EditedWeights = {}
    done = 0
    with tqdm(total=len(edits), desc=settings.method, unit="edit", disable=None, leave=False) as bar:
        for batch in batches(edits, settings.batch_size):
            total = add_updates(total, editor.edit([_rewriting(edit, encoder, prefixes, settings) for edit in batch]))
            done += len(batch)
            bar.update(len(batch))
            if done == len(edits) or done // HEALTH_INTERVAL > (done - len(batch)) // HEALTH_INTERVAL:
                health.check(done, batch[-1].location)
    return EditRun(total, health.records, layers)


def _rewriting(edit: Edit, encoder: EditEncoder, prefixes: Sequence[str], settings: RunSettings) -> Rewriting:
    """Return an edit as token ids; the essence of its subject and the given prompts about the subject are kept."""
    needs_subject = EDITORS[settings.method].needs_subject
    templates = [template for template in settings.kept if template != edit.prompt]
    kept = [essence(edit.subject), *(template.replace("{}", edit.subject, 1) for template in templates)]
    return make_rewriting(edit, encoder, prefixes, kept if needs_subject else [], at_end=not needs_subject)
