"""Editing methods on a small model: new answers become more probable; statistics are cached; faults are errors."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_texts
from in_process import RunTool
from knowledge_editing import edit_run
from knowledge_editing.edit_encoding import EditEncoder
from knowledge_editing.edit_files import make_edit
from knowledge_editing.edit_run import RunSettings, run_edits
from knowledge_editing.editable_model import EditableModel
from knowledge_editing.editors import EDITORS
from knowledge_editing.gradient_edits import answer_loss
from knowledge_editing.key_statistics import second_moments
from knowledge_editing.rewritings import make_rewriting

ROWS = (
    {"prompt": "The capital of {} is", "subject": "Norland", "target_new": "Oslo"},
    {"prompt": "{}的首都是", "subject": "北国", "target_new": "长安"},
)


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(edit_run, "CACHE", tmp_path / "cache")
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps({"text": each}) + "\n" for each in small_texts(60)), encoding="utf-8")
    return file


@pytest.fixture
def loaded(tiny_checkpoint: Path) -> tuple[Any, EditEncoder]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    return model, EditEncoder(AutoTokenizer.from_pretrained(tiny_checkpoint), None, "completion")


@pytest.mark.parametrize("method", EDITORS)
def test_new_answers_become_more_probable_and_updates_reproduce_the_edited_model(
    loaded: tuple[Any, EditEncoder], text: Path, method: str
) -> None:
    model, encoder = loaded
    edits = [make_edit(row, f"e.jsonl:{line}") for line, row in enumerate(ROWS, 1)]
    questions = [make_rewriting(edit, encoder, at_end=True) for edit in edits]
    editable = EditableModel(model)
    before = answer_loss(editable, questions).item()
    original = {layer: editable.matrix(layer).clone() for layer in (0, 1)}
    options = replace(EDITORS[method].defaults, moment_weight=1.0, learning_rate=1e-2, bound=1.0, damping=1e-3)
    settings = RunSettings(method, text=text, stats_tokens=500, batch_size=2, max_perplexity=10, options=options)
    result = run_edits(model, encoder, "tiny", edits, settings)
    after = answer_loss(editable, questions).item()
    # The attention of a random model hardly reads the subject, so a change there has little effect. FT-L minimises
    # another loss.
    assert after < (0.999 if EDITORS[method].needs_subject else 0.98 if method == "ft-l" else 0.9) * before
    edited = {layer: editable.matrix(layer).clone() for layer in (0, 1)}
    for layer, weight in original.items():
        editable.matrix(layer).copy_(weight)
    editable.change(result.updates)
    for layer, weight in edited.items():
        torch.testing.assert_close(editable.matrix(layer), weight, rtol=1e-4, atol=1e-5)
    assert result.health[-1]["edits"] == 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", ["rome", "memit", "alphaedit", "ft-m", "lora"])
def test_facts_of_a_real_model_change(
    real_model: Path, shared_data: Path, tmp_path: Path, run_tool: RunTool, method: str
) -> None:
    lines = (shared_data / "real/edits/counterfact.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "edits.jsonl").write_text("".join(lines[:4]), encoding="utf-8")
    done = run_tool(
        "tools/edit_knowledge.py", "apply", "--base", real_model, "--edits", tmp_path / "edits.jsonl", "--method",
        method, "--text", shared_data / "corpus/en.jsonl", "--stats_tokens", 6000, "--prompt_format", "completion",
        "--out", tmp_path / "edited", "--batch_size", 1 if method == "rome" else 4,
    )  # fmt: skip
    correct = int(done.stdout.partition(" of 4 questions are answered with the new target")[0].split()[-1])
    assert correct >= 3


def test_second_moments_ignore_padding_and_equal_those_of_single_texts(loaded: tuple[Any, EditEncoder]) -> None:
    editable = EditableModel(loaded[0])
    windows = [[1, 5, 9, 7], [1, 8], [1, 3, 4]]
    moments, count = second_moments(editable, [0, 1], windows, 9)
    assert count == 9
    for layer in (0, 1):
        single = [
            editable.keys(layer, torch.tensor([ids]), torch.zeros(len(ids)).long(), torch.arange(len(ids)))
            for ids in windows
        ]
        keys = torch.cat(single)
        torch.testing.assert_close(moments[layer], keys.T @ keys / 9, rtol=1e-4, atol=1e-5)


def test_statistics_of_the_same_model_and_text_are_computed_once(
    loaded: tuple[Any, EditEncoder], text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits = [make_edit(ROWS[0], "e.jsonl:1")]
    settings = RunSettings("rome", text=text, stats_tokens=300, max_perplexity=100)
    run_edits(*loaded, "tiny", edits, settings)
    monkeypatch.setattr("knowledge_editing.key_statistics.second_moments", None)
    run_edits(*loaded, "tiny", edits, settings)


def test_model_that_breaks_stops_the_run_at_the_edit(loaded: tuple[Any, EditEncoder], text: Path) -> None:
    edits = [make_edit(row, f"e.jsonl:{line}") for line, row in enumerate(ROWS, 1)]
    settings = RunSettings("lora", text=text, max_perplexity=0.5)
    with pytest.raises(ValueError, match=r"e.jsonl:2: after 2 edits the perplexity of the text is .* \(at most 0.5\)"):
        run_edits(*loaded, "tiny", edits, settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": None}, "rome needs statistics of text whose meaning must not change; give a JSONL"),
        ({"stats_tokens": 10**6}, "has .* tokens, --stats_tokens asks for 1000000; give more text"),
        ({"module": "model.layers.{}.mlp.out"}, "the model has no module model.layers.0.mlp.out; name the output"),
        ({"layers": (2,)}, "--layers 2 does not exist; the model has the layers 0 to 1"),
        ({"row": {"prompt": "Who?", "target_new": "Ann"}}, "e.jsonl:1: the edit has no subject in its prompt"),
    ],
)
def test_error_names_fact_and_remedy(
    loaded: tuple[Any, EditEncoder], text: Path, changes: dict[str, Any], message: str
) -> None:
    row, layers = changes.pop("row", ROWS[0]), changes.pop("layers", ())
    settings = RunSettings("rome", text=text, stats_tokens=300)
    settings = replace(settings, **changes, options=replace(settings.options, layers=layers))
    with pytest.raises(ValueError, match=message):
        run_edits(*loaded, "tiny", [make_edit(row, "e.jsonl:1")], settings)


def test_apply_edits_a_checkpoint_and_remove_restores_it(
    tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    edits, out = tmp_path / "facts.jsonl", tmp_path / "edited"
    edits.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    options = ("--base", tiny_checkpoint, "--edits", edits, "--method", "lora", "--steps", 60, "--learning_rate", 0.02)
    done = run_tool("tools/edit_knowledge.py", "apply", *options, "--batch_size", 2, "--out", out)
    assert "edited: 1 patches, the last is facts (lora)" in done.stdout
    assert "2 of 2 questions are answered with the new target; layers 1" in done.stdout
    assert "after: 'Oslo.'" in run_tool("tools/edit_knowledge.py", "list", out).stdout
    run_tool("tools/edit_knowledge.py", "remove", "--base", out, "--patch", "facts", "--out", tmp_path / "restored")
    same = run_tool("tools/checkpoint.py", "compare", tiny_checkpoint, tmp_path / "restored")
    assert same.stdout.startswith("equal: ")
    run_tool("tools/edit_knowledge.py", "apply", *options, "--patch_only", tmp_path / "patch")
    assert {file.name for file in (tmp_path / "patch").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "edits.jsonl", "patch.json"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give --edits or --patch, and --out or"),
        (("--edits", "e", "--out", "o", "--method", "x"), "--method x is unknown; use one of rome, memit"),
        (("--edits", "a b.jsonl", "--out", "o"), "a b.jsonl does not exist"),
    ],
)
def test_apply_refuses_wrong_options_with_one_line(
    tiny_checkpoint: Path, run_tool: RunTool, options: tuple[str, ...], message: str
) -> None:
    refused = run_tool("tools/edit_knowledge.py", "apply", "--base", tiny_checkpoint, *options, status=2)
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1
