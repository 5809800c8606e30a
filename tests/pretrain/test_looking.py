"""preprocess.py's modes read and prune, and samples chosen of long documents: what is shown, left out and recorded."""

import json
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import preprocess
import pytest
from conftest import RunScript, small_texts
from corpora import Documents, document_ids, rows, write_corpus
from corpus_building.samples import chosen
from corpus_files.corpus import Corpus, verify
from corpus_files.corpus_inspection import length_counts, quantile
from corpus_files.corpus_merging import merge
from corpus_files.corpus_pruning import prune, read_sample_ids
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SCRIPT = "pretrain/preprocess.py"


# --- read -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200), st.sampled_from([0.0, 0.25, 0.5, 0.95, 1.0]))
def test_quantiles_are_numpys(lengths: list[int], share: float) -> None:
    assert quantile(np.bincount(lengths), share) == np.quantile(lengths, share, method="inverted_cdf")


def test_reading_tells_of_every_source_and_draws_the_lengths(
    tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path
) -> None:
    for name, text in (("en", "A cat. " * 40), ("zh", "山水人家。")):
        texts = [text, text[:7]]
        source = rows(tmp_path / f"{name}.jsonl", texts)
        preprocess.write([str(source)], str(tmp_path / name), str(tiny_tokenizer), preprocess.Settings(32))
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


# --- prune ------------------------------------------------------------------------------------------------------------


def test_pruning_leaves_exactly_the_rest(tmp_path: Path) -> None:
    sample = st.lists(st.integers(0, 999), min_size=1, max_size=4)
    documents = st.lists(st.lists(sample, min_size=1, max_size=4), min_size=1, max_size=6)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(documents, documents, st.data())
    def holds(first: Documents, second: Documents, data: st.DataObject) -> None:
        for name, part in (("a", first), ("b", second)):
            write_corpus(tmp_path / name, part, overwrite=True)
        merge([str(tmp_path / "a"), str(tmp_path / "b")], [0, 1], tmp_path / "ab", overwrite=True)
        samples = list(chain(*first, *second))
        removed = data.draw(st.sets(st.integers(0, len(samples) - 1), min_size=1, max_size=len(samples)))
        (tmp_path / "ids").write_text("\n".join(map(str, removed)))
        if len(removed) == len(samples):
            with pytest.raises(ValueError, match="no document to write"):
                prune(tmp_path / "ab", tmp_path / "ids", tmp_path / "c", overwrite=True)
            return
        prune(tmp_path / "ab", tmp_path / "ids", tmp_path / "c", overwrite=True)
        corpus = verify(tmp_path / "c")
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

    holds()


def test_pruning_by_command_is_recorded(tmp_path: Path, run_script: RunScript) -> None:
    """Also of a document of many millions of tokens' worth of blocks: the parent stays as it was."""
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
    corpus = verify(tmp_path / "b")
    lengths = np.diff(corpus.documents)
    assert len(lengths) == 997 and lengths.max() == 149_998
    pruned = corpus.sidecar["settings"]["pruned"]
    assert pruned["samples"] == 7 and pruned["sha256"] == Corpus(tmp_path / "a").sidecar["sha256"]
    noted = [json.loads(line)["samples"] for line in (tmp_path / "b.dropped.jsonl").open()]
    assert noted == [[0, 3], [999, 1001], [100_000, 100_001], [151_000, 151_001]]
    assert (tmp_path / "a.bin").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "lists no sample"), ("1\nx", "is no list of sample ids"), ("[1, 2.5]", "is no list of sample ids"),
        ("[1, true]", "is no list of sample ids"), ("4", "lists sample 4, but the corpus has 0 to 3"),
        ("-1", "lists sample -1"), ("[", "is no list of sample ids"), ("99999999999999999999", "is no list of"),
    ],
)  # fmt: skip
def test_a_bad_list_is_one_clear_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "ids").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_sample_ids(tmp_path / "ids", 4)


# --- some samples of each document ------------------------------------------------------------------------------------


@given(st.text(max_size=20), st.integers(2, 40), st.integers(1, 39), st.integers(0, 3))
def test_first_last_and_a_choice_between(text: str, samples: int, keep: int, seed: int) -> None:
    if keep < samples:
        found = chosen(text, samples, keep, seed)
        assert len(found) == keep and all(a < b for a, b in pairwise(found)) and found[0] == 0
        assert keep == 1 or found[-1] == samples - 1
        assert found == chosen(text, samples, keep, seed)


def test_a_few_samples_of_each_document(tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path) -> None:
    """The same ones whatever the shards, other ones with another seed; what is left out is told."""
    texts = ["".join(small_texts(80)[at:]) for at in range(4)] + ["short"]
    source = rows(tmp_path / "a.jsonl", texts)
    preprocess.write([str(source)], str(tmp_path / "all"), str(tiny_tokenizer), preprocess.Settings(32))
    whole = Corpus(tmp_path / "all")
    results = {}
    for name, seed, workers in (("x", 0, 1), ("y", 0, 2), ("z", 1, 1)):
        run_script(
            SCRIPT, "--mode", "write", "--file_path", source, "--save_path", tmp_path / name, "--save_prefix", "few",
            "--tokenizer_path", tiny_tokenizer, "--seq_length", 32, "--num_per_doc", 4, "--seed", seed,
            "--num_workers", workers,
        )  # fmt: skip
        few = results[name] = verify(tmp_path / name / "few")
        assert np.diff(few.documents).tolist() == [4, 4, 4, 4, 1]
        for (a, b), (c, d) in zip(pairwise(whole.documents), pairwise(few.documents), strict=True):
            kept, samples = [few[i].tolist() for i in range(c, d)], [whole[i].tolist() for i in range(a, b)]
            assert kept[0] == samples[0] and kept[-1] == samples[-1] and all(ids in samples for ids in kept)
        noted = [json.loads(line)["reason"] for line in (tmp_path / name / "few.dropped.jsonl").open()]
        had = np.diff(whole.documents)[:4]
        assert noted == [f"{count - 4} of {count} samples, num_per_doc is 4" for count in had]
    assert results["x"].sidecar["sha256"] == results["y"].sidecar["sha256"] != results["z"].sidecar["sha256"]
