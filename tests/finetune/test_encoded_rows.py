"""tokenized_examples.py: what is kept of a file, when it is made anew, and that memory does not grow with it."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from instruction_data import tokenized_examples
from instruction_data.data_sources import Source
from instruction_data.instructions import Encoder, load_template
from instruction_data.tokenized_examples import Settings, cache_key, open_encoded
from instruction_rows import encoded, opened
from transformers import AutoTokenizer


@pytest.fixture
def tokenizer(tiny_tokenizer: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    tokenizer.chat_template = load_template("alpaca")
    return tokenizer


def test_the_cache_holds_what_was_encoded(
    tmp_path: Path, tokenizer: Any, rows: list[dict[str, str]], rows_file: Path
) -> None:
    examples, report = encoded(tokenizer, rows, 110)
    kept = opened(tokenizer, rows_file, tmp_path, 110)
    assert report.truncated > 0
    assert kept.report == report
    assert len(kept) == len(examples) == report.kept
    for index, example in enumerate(examples):
        ids, spans = kept[index]
        assert ids.tolist() == example.ids
        assert [tuple(span) for span in spans.tolist()] == example.spans
    assert kept.lengths.tolist() == [len(example.ids) for example in examples]
    assert kept.supervised.sum() == report.supervised
    again = pickle.loads(pickle.dumps(kept))
    assert again[3][0].tolist() == kept[3][0].tolist()


def test_rows_that_are_dropped_leave_the_places_of_the_others(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"instruction": "a", "output": text} for text in ("x", "", "y")]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert opened(tokenizer, file, tmp_path / "cache").numbers.tolist() == [0, 2]
    assert len(opened(tokenizer, file, tmp_path / "cache", cutoff=20)) == 0


def test_rows_are_encoded_once_until_something_changes(
    tmp_path: Path, tokenizer: Any, rows_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    write = tokenized_examples._write

    def noted(*given: Any) -> None:
        made.append(given[-1])
        write(*given)

    monkeypatch.setattr(tokenized_examples, "_write", noted)
    encoder, source, cache = Encoder(tokenizer), Source("rows", rows_file), tmp_path / "cache"
    for _ in range(2):
        open_encoded(encoder, source, Settings(512), cache)
    assert len(made) == 1
    other = tmp_path / "other.jsonl"
    other.write_bytes(rows_file.read_bytes())
    open_encoded(encoder, Source("other", other), Settings(512), cache)  # the same rows under another name
    assert len(made) == 1
    open_encoded(encoder, source, Settings(100), cache)
    open_encoded(encoder, source, Settings(512, train_on_inputs=True), cache)
    other.write_bytes(rows_file.read_bytes() + b'{"instruction": "a", "output": "b"}\n')
    open_encoded(encoder, Source("other", other), Settings(512), cache)
    before = cache_key(encoder, rows_file, Settings(512))
    tokenizer.chat_template = load_template("alpaca_short")
    assert cache_key(Encoder(tokenizer), rows_file, Settings(512)) != before
    assert len(made) == 4
    assert {path.name for path in cache.iterdir()} == {path.name for path in made}


def test_a_bad_row_leaves_nothing_half_made(tmp_path: Path, tokenizer: Any) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"instruction": "a", "output": "b"}\n' * 3 + "{}\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl:4 has no text under 'instruction'"):
        opened(tokenizer, file, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


MEASURE = """
import resource, sys
sys.path.insert(0, "finetune")
from pathlib import Path
from instruction_data.tokenized_examples import Settings, open_encoded
from instruction_data.instructions import Encoder, load_template
from instruction_data.data_sources import Source
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
tokenizer.chat_template = load_template("alpaca_short")
encoder = Encoder(tokenizer)
for file in sys.argv[2:]:
    open_encoded(encoder, Source("x", Path(file)), Settings(4096), Path(file).parent / "cache")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path, tiny_tokenizer: Path, repository: Path) -> None:
    """A list four times as long, some 15 MB more of text and of ids, takes next to nothing beyond the first."""
    row = json.dumps({"instruction": "x" * 600, "input": "Bafi was born in Tola. " * 60, "output": "Tola"})
    for name, count in (("small", 2000), ("large", 8000)):
        (tmp_path / f"{name}.json").write_text("[" + ",\n".join([row] * count) + "]")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tiny_tokenizer, tmp_path / "small.json", tmp_path / "large.json"],
        cwd=repository, capture_output=True, text=True, check=True,
    )  # fmt: skip
    small, large = map(int, done.stdout.split())
    assert large - small < 10
