"""corpus.py, corpus_merging.py: Megatron's layout to the byte, round trips, and errors for damaged files."""

import json
import pickle
import resource
import struct
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from corpora import TOKENIZER, Documents, write_corpus
from corpus_files.corpus import Corpus, CorpusWriter, check_free_space, verify_corpus
from corpus_files.corpus_merging import merge_corpora
from corpus_files.corpus_sidecar import corpus_paths
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

DOCUMENTS: Documents = [[[1, 5, 6], [7, 2]], [[1, 9, 2]], [[1, 31999, 4, 2]]]


def test_files_have_megatrons_layout_to_the_byte(tmp_path: Path) -> None:
    """The expected index is packed field by field, in the order in which Megatron's reader parses it."""
    prefix = write_corpus(tmp_path / "a", DOCUMENTS)
    assert (tmp_path / "a.bin").read_bytes() == np.concatenate(list(chain(*DOCUMENTS))).astype("<u2").tobytes()
    assert (tmp_path / "a.idx").read_bytes() == b"".join(
        (
            b"MMIDIDX\x00\x00", struct.pack("<Q", 1), struct.pack("<B", 8),  # version, uint16
            struct.pack("<QQ", 4, 4),  # samples, documents + 1
            struct.pack("<4i", 3, 2, 3, 4), struct.pack("<4q", 0, 6, 10, 16), struct.pack("<4q", 0, 2, 3, 4),
        )
    )  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"a.bin", "a.idx", "a.json"}
    assert verify_corpus(prefix).sidecar["documents"] == 3


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_535, "uint16"), (65_536, "int32"), (151_936, "int32")])
def test_dtype_follows_the_size_of_the_vocabulary(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    corpus = verify_corpus(write_corpus(tmp_path / "a", [[[0, vocab_size - 1]]], vocab_size=vocab_size))
    assert corpus[0].tolist() == [0, vocab_size - 1]
    assert corpus[0].dtype == dtype == corpus.sidecar["dtype"]


def test_written_samples_and_documents_are_read_unchanged(tmp_path: Path) -> None:
    sample = st.lists(st.integers(0, 31999), min_size=1, max_size=8)

    @settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.lists(sample, min_size=1, max_size=4), min_size=1, max_size=6))
    def round_trip(documents: Documents) -> None:
        corpus = verify_corpus(write_corpus(tmp_path / "a", documents, overwrite=True))
        samples = list(chain(*documents))
        assert [ids.tolist() for ids in corpus] == samples
        assert corpus.lengths.tolist() == [len(s) for s in samples] and len(corpus) == len(samples)
        assert corpus.documents.tolist() == np.cumsum([0, *(len(d) for d in documents)]).tolist()

    round_trip()


def test_samples_are_read_only_and_a_pickled_corpus_maps_its_files(tmp_path: Path) -> None:
    corpus = Corpus(write_corpus(tmp_path / "a", DOCUMENTS))
    assert corpus[-1].tolist() == corpus[np.int64(3)].tolist() == [1, 31999, 4, 2]
    assert (corpus.vocab_size, corpus.fingerprint, corpus.seq_length) == (32000, "f" * 64, 8)
    with pytest.raises(IndexError, match="sample 4 of 4"):
        corpus[4]
    with pytest.raises(ValueError, match="read-only"):
        corpus[0][0] = 3
    packed = pickle.dumps(corpus)
    assert len(packed) < 500 and pickle.loads(packed)[1].tolist() == [7, 2]


def test_opening_a_hundred_million_samples_takes_under_a_second_and_50_mb(tmp_path: Path) -> None:
    """The index is a sparse file of 1.2 GB."""
    write_corpus(tmp_path / "a", [[[7]]])
    samples = 100_000_000
    with (tmp_path / "a.idx").open("wb") as index:
        index.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, samples, 2))
        index.seek(4 * (samples - 1), 1)
        index.write(struct.pack("<i", 1))
        index.truncate(34 + 12 * samples + 16)
    (tmp_path / "a.json").write_text(
        json.dumps(json.loads((tmp_path / "a.json").read_text()) | {"samples": samples, "tokens": 1})
    )
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    corpus = Corpus(tmp_path / "a")
    assert corpus[-1].tolist() == [7] and len(corpus) == samples
    assert time.perf_counter() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def edit(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: cut(f["bin"], 10), "a.bin has 10 bytes, but 24 according to its index .* truncated"),
        (lambda f: f["bin"].write_bytes(b""), "is an empty corpus"),
        (lambda f: cut(f["idx"], 60), "a.idx has 60 bytes, but 114 according to its header; it is truncated"),
        (lambda f: cut(f["idx"], 20), "does not begin with Megatron's magic"),
        (lambda f: f["idx"].write_bytes(b"TNTIDX" + bytes(200)), "does not begin with Megatron's magic MMIDIDX"),
        (lambda f: f["idx"].write_bytes(f["idx"].read_bytes().replace(b"\x01", b"\x07", 1)), "has version 7"),
        (lambda f: f["json"].unlink(), "a.json is missing beside .*a.idx: .*copy it too"),
        (lambda f: f["json"].write_text("{}"), "is not a corpus sidecar .'sources' is missing.; copy"),
        (lambda f: edit(f["json"], '"dtype"', '"type"'), "'dtype' is missing"),
        (lambda f: edit(f["json"], '"vocab_size": 32000', '"vocab_size": "F16"'), "'vocab_size' is 'F16', not a whole"),
        (lambda f: edit(f["json"], '"start": 0', '"start": -1'), "a.json is not a corpus sidecar .'start' is -1"),
        (lambda f: edit(f["json"], '"sources": [', '"sources": [7, '), "item 1 of 'sources' is 7, not an object"),
        (lambda f: edit(f["json"], '"vocab_size"', '"path": 7, "vocab_size"'), "'path' is 7, not text"),
        (lambda f: f["bin"].unlink(), "a.bin does not exist beside .*a.json; copy all files of the corpus"),
    ],
)  # fmt: skip
def test_damaged_corpus_raises_error_with_file_and_reason(tmp_path: Path, damage: object, message: str) -> None:
    assert callable(damage)
    damage(corpus_paths(write_corpus(tmp_path / "a", DOCUMENTS)))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Corpus(tmp_path / "a")


@pytest.mark.parametrize(("ending", "at"), [("bin", 5), ("idx", 34)])
def test_verify_and_merge_refuse_a_flipped_bit(tmp_path: Path, ending: str, at: int) -> None:
    """In the index, the bit changes the length of the first sample."""
    data = bytearray((path := corpus_paths(write_corpus(tmp_path / "a", DOCUMENTS))[ending]).read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.{ending} differs from the sha256 in the sidecar"):
        verify_corpus(tmp_path / "a")
    with pytest.raises(ValueError, match=rf"a\.{ending} differs from the sha256 in its sidecar"):
        merge_corpora([str(tmp_path / "a")], None, tmp_path / "b")
    assert not list(tmp_path.glob("b*"))


def test_missing_corpus_raises_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data/x\.json does not exist; give a corpus by its prefix"):
        Corpus(tmp_path / "data/x")


def test_failed_writer_keeps_the_old_corpus_and_leaves_no_file(tmp_path: Path) -> None:
    """A writer that succeeds replaces the old corpus."""
    new = tmp_path / "new/folder"
    with pytest.raises(ValueError, match="no document to write"), CorpusWriter(new / "a", 100) as writer:
        writer.finish([], TOKENIZER, {}, {}, 8)
    assert not new.exists()
    write_corpus(tmp_path / "a", DOCUMENTS)
    with pytest.raises(FileExistsError, match=r"a\.bin exists already; .*--overwrite"):
        write_corpus(tmp_path / "a", DOCUMENTS)
    with pytest.raises(ValueError, match="do not fit a vocabulary of 32000"):
        write_corpus(tmp_path / "a", [[[32000]]], overwrite=True)
    assert len(verify_corpus(tmp_path / "a")) == 4
    write_corpus(tmp_path / "a", [[[4, 4]]], overwrite=True)
    assert len(verify_corpus(tmp_path / "a")) == 1
    assert {path.name for path in tmp_path.glob("a*")} == {"a.bin", "a.idx", "a.json"}


@pytest.mark.parametrize("moved", [["bin"], ["bin", "idx"]])
def test_run_that_was_killed_while_it_moved_its_files_is_repeated_without_overwrite(
    tmp_path: Path, moved: list[str]
) -> None:
    """A .bin and .idx without sidecar are replaced only if a killed run left them."""
    write_corpus(tmp_path / "a", DOCUMENTS)
    (tmp_path / "a.partial").mkdir()
    for ending in {"bin", "idx", "json"} - {*moved}:
        (tmp_path / f"a.{ending}").rename(tmp_path / "a.partial" / ending)
    write_corpus(tmp_path / "a", [[[4, 4]]])
    assert [ids.tolist() for ids in verify_corpus(tmp_path / "a")] == [[4, 4]]
    assert {path.name for path in tmp_path.iterdir()} == {"a.bin", "a.idx", "a.json"}
    (tmp_path / "a.json").unlink()
    with pytest.raises(FileExistsError, match=r"a\.bin exists already"):
        write_corpus(tmp_path / "a", DOCUMENTS)


def test_partial_files_of_a_killed_run_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.partial").mkdir()
    (tmp_path / "a.partial/bin").write_bytes(b"old")
    assert len(verify_corpus(write_corpus(tmp_path / "a", DOCUMENTS))) == 4


def test_merge_renumbers_sources_and_accepts_merged_corpora(tmp_path: Path) -> None:
    a, b = write_corpus(tmp_path / "a", DOCUMENTS), write_corpus(tmp_path / "b", [[[1, 3, 2]], [[1, 2]]])
    merge_corpora([str(a), str(b)], [0, 1], tmp_path / "ab")
    merge_corpora([str(tmp_path / "ab"), str(a)], None, tmp_path / "aba")
    whole = verify_corpus(tmp_path / "aba")
    assert [ids.tolist() for ids in whole] == [ids.tolist() for part in (a, b, a) for ids in Corpus(part)]
    assert [(s["name"], s["type"], s["start"], s["end"]) for s in whole.sources] == [
        ("a", 0, 0, 4), ("b", 1, 4, 6), ("a-2", 0, 6, 10),
    ]  # fmt: skip
    assert whole.documents.tolist() == [0, 2, 3, 4, 5, 6, 8, 9, 10]
    assert [s["tokens"] for s in whole.sources] == [12, 5, 12]
    merge_corpora([str(tmp_path / "aba")], [7], tmp_path / "one")
    assert {source["type"] for source in Corpus(tmp_path / "one").sources} == {7}


def test_second_writer_of_a_corpus_is_refused_and_the_first_one_finishes(tmp_path: Path) -> None:
    def write(writer: CorpusWriter, token: int) -> None:
        writer.add(np.array([token, token]), np.array([2]), np.array([1]))
        writer.finish([], {}, {}, {}, 2)

    with CorpusWriter(tmp_path / "a", 100) as writer:
        with pytest.raises(ValueError, match=r"a\.partial is being written by another process"):
            CorpusWriter(tmp_path / "a", 100, overwrite=True)
        write(writer, 7)
    assert (tmp_path / "a.bin").read_bytes() == np.array([7, 7], np.uint16).tobytes()
    with pytest.raises(FileExistsError):
        CorpusWriter(tmp_path / "a", 100)
    with CorpusWriter(tmp_path / "a", 100, overwrite=True) as writer:
        write(writer, 8)
    assert (tmp_path / "a.bin").read_bytes() == np.array([8, 8], np.uint16).tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.idx", "a.json"]


def test_merge_refuses_another_tokenizer_or_dtype(tmp_path: Path) -> None:
    a = write_corpus(tmp_path / "a", DOCUMENTS)
    sidecar = json.loads(corpus_paths(write_corpus(tmp_path / "b", DOCUMENTS))["json"].read_text())
    sidecar["tokenizer"] |= {"fingerprint": "0" * 64, "eos_id": 5}
    (tmp_path / "b.json").write_text(json.dumps(sidecar))
    c = write_corpus(tmp_path / "c", DOCUMENTS, vocab_size=70_000)
    pieces = r"pieces \(ffffffffffffffff and 0000000000000000\), EOS \(2 and 5\)"
    for other, different in ((tmp_path / "b", pieces), (c, r"dtype \(uint16 and int32\)")):
        with pytest.raises(ValueError, match=f"and {other} have different {different}; write one of them again"):
            merge_corpora([str(a), str(other)], [0, 1], tmp_path / "m")
    with pytest.raises(ValueError, match="types: 1, corpora: 2; --merge_path_type"):
        merge_corpora([str(a), str(a)], [0], tmp_path / "m")
    assert not list(tmp_path.glob("m*"))


def test_merge_copies_records_of_dropped_documents(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path / "a", 10) as writer:
        writer.add(np.array([1, 2]), np.array([2]), np.array([1]))
        writer.add_dropped({"line": 4, "reason": "no text"})
        source = {"name": "a", "type": 0, "start": 0, "end": 1, "documents": 1, "tokens": 2}
        writer.finish([source], TOKENIZER, {}, {}, 8)
    merge_corpora([str(tmp_path / "a")], None, tmp_path / "b")
    assert json.loads((tmp_path / "b.dropped.jsonl").read_text()) == {
        "corpus": str(tmp_path / "a"), "line": 4, "reason": "no text",
    }  # fmt: skip
    assert Corpus(tmp_path / "b").sidecar["dropped"] == 1


def test_check_free_space_refuses_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs about 1000000000\.00 GB, .* free space there or name a prefix"):
        check_free_space(tmp_path / "not/yet/there", 10**18)
    with pytest.raises(ValueError, match=r" free; free space there or use fewer files$"):
        check_free_space(tmp_path / "not/yet/there", 10**18, "use fewer files")
