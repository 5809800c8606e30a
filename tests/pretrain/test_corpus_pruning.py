"""corpus_pruning.py: a copy without the listed samples, and a record of the removed samples."""

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from conftest import RunScript
from corpora import Documents, document_ids, write_corpus
from corpus_files.corpus import Corpus, verify_corpus
from corpus_files.corpus_merging import merge_corpora
from corpus_files.corpus_pruning import prune, read_sample_ids
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SCRIPT = "pretrain/preprocess.py"


def test_pruned_corpus_has_exactly_the_other_samples(tmp_path: Path) -> None:
    sample = st.lists(st.integers(0, 999), min_size=1, max_size=4)
    documents = st.lists(st.lists(sample, min_size=1, max_size=4), min_size=1, max_size=6)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(documents, documents, st.data())
    def holds(first: Documents, second: Documents, data: st.DataObject) -> None:
        for name, part in (("a", first), ("b", second)):
            write_corpus(tmp_path / name, part, overwrite=True)
        merge_corpora([str(tmp_path / "a"), str(tmp_path / "b")], [0, 1], tmp_path / "ab", overwrite=True)
        samples = list(chain(*first, *second))
        removed = data.draw(st.sets(st.integers(0, len(samples) - 1), min_size=1, max_size=len(samples)))
        (tmp_path / "ids").write_text("\n".join(map(str, removed)))
        if len(removed) == len(samples):
            with pytest.raises(ValueError, match=r"ids lists all samples of .*, so no sample would remain"):
                prune(tmp_path / "ab", tmp_path / "ids", tmp_path / "c", overwrite=True)
            return
        prune(tmp_path / "ab", tmp_path / "ids", tmp_path / "c", overwrite=True)
        corpus = verify_corpus(tmp_path / "c")
        numbers = iter(range(len(samples)))
        left = [[s for s in document if next(numbers) not in removed] for document in [*first, *second]]
        assert document_ids(corpus) == [list(chain(*document)) for document in left if document]
        parts = {"a": left[: len(first)], "b": left[len(first) :]}
        expected = [
            (name, len([d for d in part if d]), sum(map(len, chain(*part))))
            for name, part in parts.items()
            if any(part)
        ]
        assert [(s["name"], s["documents"], s["tokens"]) for s in corpus.sources] == expected
        noted = [json.loads(line)["samples"] for line in (tmp_path / "c.dropped.jsonl").open()]
        assert sorted(chain(*(range(a, b) for a, b in noted))) == sorted(removed)
        assert corpus.sidecar["dropped"] == len(left) - len(corpus.documents) + 1

    holds()


def test_prune_records_removed_samples_and_keeps_the_old_corpus(tmp_path: Path, run_script: RunScript) -> None:
    """One document has 1.2 million tokens, more than CHUNK_TOKENS; the old corpus does not change."""
    many = [[[1, 5, 2]] for _ in range(1000)] + [[[3] * 8] * 150_000] + [[[1, 2]]]
    write_corpus(tmp_path / "a", many)
    ids = [0, 1, 2, 999, 1000, 100_000, 151_000]
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    before = (tmp_path / "a.bin").read_bytes()
    done = run_script(
        SCRIPT, "--mode", "prune", "--read_path_prefix", tmp_path / "a", "--sample_ids", tmp_path / "ids.json",
        "--new_path_prefix", tmp_path / "b",
    )  # fmt: skip
    assert "151,001 samples" not in done.stdout and "150,994 samples" in done.stdout
    corpus = verify_corpus(tmp_path / "b")
    lengths = np.diff(corpus.documents)
    assert len(lengths) == 997 and lengths.max() == 149_998
    pruned = corpus.sidecar["settings"]["pruned"]
    assert pruned["samples"] == 7 and pruned["sha256"] == Corpus(tmp_path / "a").sidecar["sha256"]
    noted = [json.loads(line) for line in (tmp_path / "b.dropped.jsonl").open()]
    ranges = [[0, 3], [999, 1001], [100_000, 100_001], [151_000, 151_001]]
    assert [record["samples"] for record in noted] == ranges
    assert [record["documents"] for record in noted] == [3, 1, 0, 1]
    assert " 5 documents dropped, " in done.stdout
    assert (tmp_path / "a.bin").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "lists no sample"), ("1\nx", "is not a list of sample ids"), ("[1, 2.5]", "is not a list of sample ids"),
        ("[1, true]", "is not a list of sample ids"), ("4", "lists sample 4, but the corpus has 0 to 3"),
        ("-1", "lists sample -1"), ("[", "is not a list of sample ids"), ("99999999999999999999", "is not a list of"),
    ],
)  # fmt: skip
def test_bad_list_of_sample_ids_raises_error_with_the_reason(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "ids").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_sample_ids(tmp_path / "ids", 4)
