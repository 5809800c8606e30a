"""corpus_inspection.py: `preprocess.py --mode read` shows the sources and draws the lengths of the samples."""

from pathlib import Path

import numpy as np
from conftest import RunScript
from corpora import rows
from corpus_building.corpus_build import write
from corpus_building.samples import Settings
from corpus_files.corpus import Corpus
from corpus_files.corpus_inspection import length_counts, quantile
from corpus_files.corpus_merging import merge
from hypothesis import given
from hypothesis import strategies as st

SCRIPT = "pretrain/preprocess.py"


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200), st.sampled_from([0.0, 0.25, 0.5, 0.95, 1.0]))
def test_quantile_of_counts_equals_numpy(lengths: list[int], share: float) -> None:
    assert quantile(np.bincount(lengths), share) == np.quantile(lengths, share, method="inverted_cdf")


def test_read_prints_statistics_of_each_source_and_draws_the_lengths(
    tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path
) -> None:
    for name, text in (("en", "A cat. " * 40), ("zh", "山水人家。")):
        texts = [text, text[:7]]
        source = rows(tmp_path / f"{name}.jsonl", texts)
        write([str(source)], str(tmp_path / name), str(tiny_tokenizer), Settings(32))
    merge([str(tmp_path / "en"), str(tmp_path / "zh")], [0, 1], tmp_path / "all")
    corpus = Corpus(tmp_path / "all")
    shown = run_script(SCRIPT, "--mode", "read", "--read_path_prefix", tmp_path / "all").stdout
    for source in corpus.sources:
        lengths = corpus.lengths[source["start"] : source["end"]]
        assert length_counts(corpus, source["start"], source["end"]).tolist() == np.bincount(lengths).tolist()
        row = next(line.split() for line in shown.splitlines() if line.startswith(source["name"] + " "))
        assert row[2:6] == [str(source[key]) for key in ("start", "end", "documents", "tokens")]
        assert row[7:] == [
            f"{lengths.mean():.1f}", str(lengths.min()), str(int(np.sort(lengths)[(len(lengths) - 1) // 2])),
            str(lengths.max()), str(lengths.max()),
        ]  # fmt: skip
    assert (tmp_path / "all.lengths.png").read_bytes().startswith(b"\x89PNG") and "all.lengths.png" in shown
    options = ["--show", 0, "--histogram_path", tmp_path / "no/such/x.png"]
    refused = run_script(SCRIPT, "--mode", "read", "--read_path_prefix", tmp_path / "all", *options, status=2)
    assert "no/such" in refused.stderr and refused.stderr.count("\n") == 1
