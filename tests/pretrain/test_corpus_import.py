"""corpus_import.py: Megatron's reader and ours find the same samples; damaged files of other formats are refused."""

import json
import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RunScript
from corpora import Documents, document_ids, write_corpus
from corpus_files.corpus import Corpus, verify_corpus
from corpus_files.corpus_import import import_corpus

SCRIPT = "pretrain/preprocess.py"
DOCUMENTS: Documents = [[[1, 5, 6], [7, 2]], [[1, 9, 2]], [[1, 799, 4, 2]]]


@pytest.fixture(scope="module")
def megatron() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about kernels that are not installed
        from megatron.core.datasets import indexed_dataset
    return indexed_dataset


@pytest.mark.parametrize("vocab_size", [800, 70_000])
def test_megatron_reads_our_corpus(tmp_path: Path, megatron: Any, vocab_size: int) -> None:
    corpus = Corpus(write_corpus(tmp_path / "a", DOCUMENTS, vocab_size))
    theirs = megatron.IndexedDataset(str(tmp_path / "a"))
    assert [theirs[i].tolist() for i in range(len(theirs))] == [ids.tolist() for ids in corpus]
    assert theirs[0].dtype == corpus.dtype
    assert theirs.document_indices.tolist() == corpus.documents.tolist() == [0, 2, 3, 4]
    assert theirs.sequence_lengths.tolist() == corpus.lengths.tolist()


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16])
def test_import_reads_megatron_dataset(tmp_path: Path, megatron: Any, tiny_tokenizer: Path, dtype: type) -> None:
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    for samples in DOCUMENTS:
        builder.add_document(torch.tensor(list(chain(*samples))), [len(sample) for sample in samples])
    builder.finalize(str(tmp_path / "theirs.idx"))
    import_corpus(tmp_path / "theirs", str(tiny_tokenizer), tmp_path / "ours")
    ours = verify_corpus(tmp_path / "ours")
    assert [ids.tolist() for ids in ours] == list(chain(*DOCUMENTS))
    assert ours.documents.tolist() == [0, 2, 3, 4] and ours.seq_length == 4
    assert ours.sidecar["settings"]["imported"]["format"] == "megatron"


def published(prefix: Path, samples: list[list[int]], types: Any) -> Path:
    """Write a corpus in the format of the original KnowLM pretraining code; return its prefix."""
    lengths = np.array([len(sample) for sample in samples])
    Path(f"{prefix}.bin").write_bytes(np.concatenate(samples).astype("<u2").tobytes())
    starts = (np.cumsum(lengths) - lengths).astype("<u8").tobytes()
    Path(f"{prefix}.idx").write_bytes(starts + lengths.astype("<u2").tobytes())
    torch.save(types, f"{prefix}.dis")
    return prefix


@pytest.mark.integration
def test_import_reads_published_format(tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path) -> None:
    """Types become sources; documents begin at BOS."""
    samples = list(chain(*DOCUMENTS))
    published(tmp_path / "old", samples, [2, 2])
    run_script(
        SCRIPT, "--mode", "import", "--read_path_prefix", tmp_path / "old", "--tokenizer_path", tiny_tokenizer,
        "--new_path_prefix", tmp_path / "new",
    )  # fmt: skip
    corpus = verify_corpus(tmp_path / "new")
    assert document_ids(corpus) == [list(chain(*document)) for document in DOCUMENTS]
    assert [(s["name"], s["type"], s["start"], s["end"], s["documents"], s["tokens"]) for s in corpus.sources] == [
        ("old-0", 0, 0, 2, 1, 5), ("old-1", 1, 2, 4, 2, 7),
    ]  # fmt: skip
    published(tmp_path / "one", samples, [])
    import_corpus(tmp_path / "one", str(tiny_tokenizer), tmp_path / "whole")
    assert [source["name"] for source in Corpus(tmp_path / "whole").sources] == ["one"]


def test_import_finds_documents_of_one_and_of_many_samples(tmp_path: Path, tiny_tokenizer: Path) -> None:
    samples = [[1, 5, 2]] * 9000 + [[1, 4]] + [[6, 7]] * 40_000 + [[8, 2]] + [[1, 2]] * 3
    import_corpus(published(tmp_path / "old", samples, [len(samples)]), str(tiny_tokenizer), tmp_path / "new")
    corpus = verify_corpus(tmp_path / "new")
    assert np.diff(corpus.documents).tolist() == [1] * 9000 + [40_002] + [1] * 3
    assert corpus.ids.tolist() == list(chain(*samples))


class Payload:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("the pickle was executed",)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.with_suffix(".dis").unlink(), "old.dis does not exist beside its .idx"),
        (lambda p: torch.save([1, 1], p.with_suffix(".dis")), "old.dis counts 2 samples, its .idx 4"),
        (lambda p: torch.save({"a": 1}, p.with_suffix(".dis")), "old.dis does not hold a list of whole numbers"),
        (lambda p: torch.save(Payload(), p.with_suffix(".dis")), "old.dis is not a list saved by torch"),
        (lambda p: p.with_suffix(".dis").write_bytes(b"what"), "old.dis is not a list saved by torch"),
        (lambda p: p.with_suffix(".idx").write_bytes(bytes(33)), "nor has 10 bytes per sample"),
        (lambda p: p.with_suffix(".idx").write_bytes(b""), "old.idx is empty"),
        (lambda p: p.with_suffix(".bin").write_bytes(bytes(20)), "old.bin has 10 ids, its index 12"),
        (lambda p: p.with_suffix(".bin").write_bytes(bytes(40)), "old.bin has 20 ids, its index 12"),
        (lambda p: p.with_suffix(".bin").write_bytes(b"\xff" * 24), "do not fit a vocabulary of"),
        (lambda p: p.with_suffix(".bin").unlink(), "old.bin does not exist"),
    ],
)
def test_damaged_published_corpus_is_refused_without_running_its_pickle(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], tiny_tokenizer: Path, damage: Any, message: str
) -> None:
    prefix = published(tmp_path / "old", list(chain(*DOCUMENTS)), [2, 2])
    damage(prefix)
    with pytest.raises((ValueError, FileNotFoundError), match=message.replace(".", r"\.")):
        import_corpus(prefix, str(tiny_tokenizer), tmp_path / "new")
    assert not list(tmp_path.glob("new*"))
    assert "executed" not in capfd.readouterr().out


def test_damaged_megatron_index_raises_error_with_the_reason(
    tmp_path: Path, megatron: Any, tiny_tokenizer: Path
) -> None:
    write_corpus(tmp_path / "a", DOCUMENTS, 800)
    index = (tmp_path / "a.idx").read_bytes()
    for damaged, message in (
        (index[:-9], "truncated"),
        (index.replace(b"\x08", b"\x06", 1), "dtype code 6"),
        (index[:-8] + (5).to_bytes(8, "little"), "first samples of the documents are not in order"),
        (index[:-24] + bytes(7) + b"\x7f" + bytes(7) + b"\x80" + index[-8:], "first samples of the documents"),
        (index[:-16] + index[-8:] + index[-16:-8], "first samples of the documents are not in order"),
    ):
        (tmp_path / "a.idx").write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            import_corpus(tmp_path / "a", str(tiny_tokenizer), tmp_path / "b")
    assert json.loads((tmp_path / "a.json").read_text())["samples"] == 4
