"""packed_rows.py: rows of best-fit decreasing, every sample in one row, made once and kept."""

import json
from pathlib import Path

import numpy as np
import pytest
from corpus_files.corpus import Corpus
from hypothesis import given, settings
from hypothesis import strategies as st
from sequence_packing.packed_rows import Packing, Rows, best_fit_decreasing, held_out, open_rows


def textbook_rooms(lengths: list[int], block_size: int) -> list[int]:
    """What is left in each row, by the textbook's algorithm, ascending."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [(room, row) for row, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting)[1]] -= length
        else:
            rooms.append(block_size - length)
    return sorted(rooms)


@given(st.integers(1, 40).flatmap(lambda block: st.tuples(st.just(block), st.lists(st.integers(1, block), min_size=1))))
@settings(max_examples=300, deadline=None)
def test_rows_are_those_of_best_fit_decreasing(given_: tuple[int, list[int]]) -> None:
    block, lengths = given_
    row_of = best_fit_decreasing(np.array(lengths, np.int32), block)
    filled = np.bincount(row_of, lengths).astype(int)
    assert sorted((block - filled).tolist()) == textbook_rooms(lengths, block)
    assert (filled > 0).all()


def test_rows_of_many_samples_are_more_than_999_thousandths_full() -> None:
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(6.1, 0.9, 400_000), 1, 1024).astype(np.int32)
    row_of = best_fit_decreasing(lengths, 4096)
    filled = np.bincount(row_of, lengths)
    assert filled.max() <= 4096
    assert lengths.sum() / (4096 * len(filled)) > 0.999


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("fraction", [0.0, 0.1])
def test_every_sample_is_in_one_row_of_its_source(
    two_sources: Path, tmp_path: Path, packed: bool, fraction: float
) -> None:
    corpus = Corpus(two_sources)
    rows = open_rows(corpus, Packing(128, packed, fraction, seed=3), tmp_path)
    seen: list[int] = []
    for source, of in zip(rows.sources, corpus.sources, strict=True):
        for kind in ("rows", "held_out"):
            for number in range(*source[kind]):
                samples = rows[number].tolist()
                assert all(of["start"] <= sample < of["end"] for sample in samples)
                assert corpus.lengths[samples].sum() <= 128
                assert packed or len(samples) == 1
                seen += samples
    assert sorted(seen) == list(range(len(corpus)))
    apart = held_out(corpus, fraction, 3)
    held = [sample for s in rows.sources for number in range(*s["held_out"]) for sample in rows[number].tolist()]
    assert sorted(held) == np.flatnonzero(apart).tolist()
    assert rows.tokens + rows.held_out_tokens == corpus.sidecar["tokens"]
    if fraction:
        documents = np.repeat(np.arange(len(corpus.documents) - 1), np.diff(corpus.documents))
        assert not set(documents[apart]) & set(documents[~apart])  # whole documents
        assert len(set(documents[apart])) == pytest.approx(0.1 * (len(corpus.documents) - 1), abs=2)


def test_rows_are_cached_and_made_again_for_another_corpus(two_sources: Path, tmp_path: Path) -> None:
    corpus = Corpus(two_sources)
    rows = open_rows(corpus, Packing(96), tmp_path)
    assert rows.folder.name == "all.rows-96"
    made = (rows.folder / "rows.json").stat().st_mtime_ns
    assert open_rows(corpus, Packing(96), tmp_path).folder.joinpath("rows.json").stat().st_mtime_ns == made
    record = json.loads((rows.folder / "rows.json").read_text())
    (rows.folder / "rows.json").write_text(json.dumps(record | {"corpus": {"bin": "other", "idx": "other"}}))
    assert json.loads((open_rows(corpus, Packing(96), tmp_path).folder / "rows.json").read_text()) == record
    assert not list(two_sources.parent.glob("*.partial"))
    assert [row.tolist() for row in map(Rows(rows.folder).__getitem__, range(3))] == [
        rows[i].tolist() for i in range(3)
    ]


def test_rows_of_a_read_only_corpus_are_made_in_the_output_folder(
    two_sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests may run as root, whom no mode keeps out: the refusal is made here."""
    real = Path.mkdir

    def refuse(self: Path, *arguments: object, **more: object) -> None:
        if self.parent == two_sources.parent:
            raise PermissionError(13, "Permission denied", str(self))
        real(self, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert open_rows(Corpus(two_sources), Packing(80), tmp_path).folder == tmp_path / "all.rows-80"


def test_samples_longer_than_a_row_are_refused(two_sources: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="over --block_size 16; write it again with --seq_length 16"):
        open_rows(Corpus(two_sources), Packing(16), tmp_path)
