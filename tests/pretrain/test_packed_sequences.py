"""packed_sequences.py: best-fit decreasing, every sample in one sequence, stored beside the corpus."""

import errno
import json
import multiprocessing
import os
import subprocess
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from corpus_files.corpus import Corpus, CorpusWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from sequence_packing.packed_sequences import (
    PackedSequences,
    Packing,
    best_fit_decreasing,
    held_out_samples,
    open_packed_sequences,
)


def textbook_spaces(lengths: list[int], block_size: int) -> list[int]:
    """Return the free tokens of each sequence, ascending, by the textbook algorithm."""
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [(space, sequence) for sequence, space in enumerate(spaces) if space >= length]
        if fitting:
            spaces[min(fitting)[1]] -= length
        else:
            spaces.append(block_size - length)
    return sorted(spaces)


@given(st.integers(1, 40).flatmap(lambda block: st.tuples(st.just(block), st.lists(st.integers(1, block), min_size=1))))
@settings(max_examples=300, deadline=None)
def test_sequences_equal_those_of_textbook_best_fit_decreasing(given_: tuple[int, list[int]]) -> None:
    block, lengths = given_
    sequence_of = best_fit_decreasing(np.array(lengths, np.int32), block)
    filled = np.bincount(sequence_of, lengths).astype(int)
    assert sorted((block - filled).tolist()) == textbook_spaces(lengths, block)
    assert (filled > 0).all()


def test_sequences_of_many_samples_are_over_99_9_percent_full() -> None:
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(6.1, 0.9, 400_000), 1, 1024).astype(np.int32)
    sequence_of = best_fit_decreasing(lengths, 4096)
    filled = np.bincount(sequence_of, lengths)
    assert filled.max() <= 4096
    assert lengths.sum() / (4096 * len(filled)) > 0.999


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("fraction", [0.0, 0.1])
def test_every_sample_is_in_one_sequence_of_its_source(
    two_sources: Path, tmp_path: Path, packed: bool, fraction: float
) -> None:
    corpus = Corpus(two_sources)
    sequences = open_packed_sequences(corpus, Packing(128, packed, fraction, seed=3), tmp_path)
    seen: list[int] = []
    for source, of in zip(sequences.sources, corpus.sources, strict=True):
        for split in ("train", "held_out"):
            for index in range(*source[split]):
                samples = sequences[index].tolist()
                assert all(of["start"] <= sample < of["end"] for sample in samples)
                assert corpus.lengths[samples].sum() <= 128
                assert packed or len(samples) == 1
                seen += samples
    assert sorted(seen) == list(range(len(corpus)))
    is_held_out = held_out_samples(corpus, fraction, 3)
    held = [sample for s in sequences.sources for i in range(*s["held_out"]) for sample in sequences[i].tolist()]
    assert sorted(held) == np.flatnonzero(is_held_out).tolist()
    assert sequences.tokens + sequences.held_out_tokens == corpus.sidecar["tokens"]
    if fraction:
        documents = np.repeat(np.arange(len(corpus.documents) - 1), np.diff(corpus.documents))
        assert not set(documents[is_held_out]) & set(documents[~is_held_out])  # whole documents
        assert len(set(documents[is_held_out])) == pytest.approx(0.1 * (len(corpus.documents) - 1), abs=2)


def test_sequences_are_stored_and_packed_again_for_another_corpus(two_sources: Path, tmp_path: Path) -> None:
    corpus = Corpus(two_sources)
    sequences = open_packed_sequences(corpus, Packing(96), tmp_path)
    assert sequences.folder.name == "all.rows-96"
    made = (sequences.folder / "rows.json").stat().st_mtime_ns
    assert open_packed_sequences(corpus, Packing(96), tmp_path).folder.joinpath("rows.json").stat().st_mtime_ns == made
    record = json.loads((sequences.folder / "rows.json").read_text())
    (sequences.folder / "rows.json").write_text(json.dumps(record | {"corpus": {"bin": "other", "idx": "other"}}))
    assert json.loads((open_packed_sequences(corpus, Packing(96), tmp_path).folder / "rows.json").read_text()) == record
    assert not list(two_sources.parent.glob("*.partial"))
    reopened = PackedSequences(sequences.folder)
    assert [reopened[i].tolist() for i in range(3)] == [sequences[i].tolist() for i in range(3)]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_sequences_of_a_read_only_corpus_are_stored_in_the_output_folder(
    two_sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The test raises the error itself, since root may write into any folder."""
    real = Path.mkdir

    def refuse(self: Path, *arguments: object, **more: object) -> None:
        if self.parent == two_sources.parent:
            raise OSError(number, os.strerror(number), str(self))
        real(self, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert open_packed_sequences(Corpus(two_sources), Packing(80), tmp_path).folder == tmp_path / "all.rows-80"


def test_samples_longer_than_a_sequence_are_refused(two_sources: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="more than --block_size 16; write it again with --seq_length 16"):
        open_packed_sequences(Corpus(two_sources), Packing(16), tmp_path)


def test_packing_on_a_full_disk_raises_an_error(tmp_path: Path) -> None:
    """The packed sequences need 0.96 MB, and 0.5 MB of the disk of 3 MB is free.

    Packing runs in a process of its own, since writing to a memory map on a full disk would kill the process (SIGBUS).
    """
    disk, count = tmp_path / "disk", 120_000
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", disk], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        with CorpusWriter(disk / "all", 100) as writer:
            writer.add(np.zeros(count, np.int64), np.ones(count, np.int32), np.ones(count, np.int64))
            source = {"name": "a", "type": 0, "start": 0, "end": count, "documents": count, "tokens": count}
            writer.finish([source], {"fingerprint": "", "vocab_size": 100}, {}, {}, 1)
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            packing = pool.submit(open_packed_sequences, Corpus(disk / "all"), Packing(64), tmp_path)
            with pytest.raises(OSError, match="No space left on device"):
                packing.result()
        assert {path.name for path in disk.iterdir()} == {"all.bin", "all.idx", "all.json"}
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
