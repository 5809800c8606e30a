"""The quick start once more, tuned only on what kg2instruct.py makes of its knowledge graph and texts (slow)."""

import json
import random
import shutil
from pathlib import Path

import pytest
from conftest import RunScript
from test_quickstart import quickstart

RELATION_SHARE = 2 / 3  # of the sentences; the others become entity examples
EXAMPLES = 16000  # as many as the quick start's own


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_model_tuned_on_the_output_of_kg2instruct_alone_extracts_triples(
    tmp_path: Path, run_script: RunScript, extensions: Path
) -> None:
    out, settings = tmp_path / "out", {"SHORT": "", "TORCH_EXTENSIONS_DIR": str(extensions)}
    first = quickstart(out, timeout=5000, **settings)
    assert first.returncode == 0, first.stdout + first.stderr
    graph, world = out / "world/graph", out / "world"
    run_script(
        "finetune/kg2instruct.py", "--text", graph / "texts.jsonl", "--kg", graph / "triples.tsv", "--aliases",
        graph / "aliases.tsv", "--types", graph / "types.tsv", "--schema", graph / "schema.json", "--output",
        tmp_path / "all.jsonl", "--sentences", "related", "--sentences_per_row", 3,
    )  # fmt: skip
    lines = (tmp_path / "all.jsonl").read_text().splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    lines = lines[:EXAMPLES]
    bound = int(len(lines) * RELATION_SHARE)
    for task, part in (("re", lines[:bound]), ("ner", lines[bound:])):
        (tmp_path / "part.jsonl").write_text("".join(part))
        run_script(
            "finetune/ie_build.py", "--input", tmp_path / "part.jsonl", "--task", task, "--schema",
            world / "types.json", "--wording", world / "extraction.json", "--output", tmp_path / f"{task}.jsonl",
        )  # fmt: skip
    rows = (tmp_path / "re.jsonl").read_text() + (tmp_path / "ner.jsonl").read_text()
    (world / "train.jsonl").write_text(rows)
    for name in ("adapter", "merged"):
        shutil.rmtree(out / name)
    for name in ("answers-merged.jsonl", "scores-merged.json", "answer.json"):
        (out / name).unlink()
    second = quickstart(out, timeout=3000, **settings)
    assert second.returncode == 0, second.stdout + second.stderr
    scores = json.loads((out / "scores-merged.json").read_text())
    assert scores["triple"]["f1"] >= 0.85
    assert scores["entity"]["f1"] >= 0.8
