"""preflight.py: source weights, number of sequences, and where a run starts or resumes."""

import json
import shutil
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from corpus_files.corpus import Corpus
from pretraining import preflight
from pretraining.pretraining_trainer import StartPoint
from resumable_checkpoints.run_state import RunState
from sequence_packing.packed_sequences import PackedSequences, Packing, open_packed_sequences
from sequence_packing.sampler import SequenceOrder
from transformers import AutoConfig


@pytest.fixture
def sequences(two_sources: Path, tmp_path: Path) -> PackedSequences:
    return open_packed_sequences(Corpus(two_sources), Packing(128), tmp_path)


def options(**changed: Any) -> Any:
    defaults = {"source_weights": "size", "global_batch_distributed": "", "per_device_train_batch_size": 4}
    return SimpleNamespace(**defaults | {"world_size": 2} | changed)


def test_weights_name_sources_or_types(sequences: PackedSequences) -> None:
    groups, weights, notices = preflight.source_weights(options(source_weights="zh=0.6,en=0.4"), sequences)
    assert (groups.names, weights) == (["en", "zh"], {"zh": Fraction("0.6"), "en": Fraction("0.4")})
    groups, weights, notices = preflight.source_weights(options(source_weights="0=2,1=1"), sequences)
    assert (groups.names, weights, notices) == (["0", "1"], {"0": 2, "1": 1}, [])
    assert list(groups.sizes.values()) == [last - first for first, last in (s["train"] for s in sequences.sources)]


def test_global_batch_distributed_is_read_as_proportions(sequences: PackedSequences) -> None:
    _, weights, notices = preflight.source_weights(options(global_batch_distributed="[424,80]"), sequences)
    assert weights == {"0": 424, "1": 80}
    assert "sums to 504, but 2 ranks x 4 sequences are 8" in notices[0]
    assert not preflight.source_weights(options(global_batch_distributed="[5,3]"), sequences)[2]
    with pytest.raises(ValueError, match="give one of them"):
        preflight.source_weights(options(global_batch_distributed="[5,3]", source_weights="0=1,1=1"), sequences)
    with pytest.raises(ValueError, match="is not a list of 2 numbers"):
        preflight.source_weights(options(global_batch_distributed="[5,x]"), sequences)


def test_context_missing_in_the_config_is_the_default_of_transformers(
    tmp_path: Path, tiny_checkpoint: Path, small_corpus: Path
) -> None:
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    del config["max_position_embeddings"]
    (base / "config.json").write_text(json.dumps(config))
    assert AutoConfig.from_pretrained(base).max_position_embeddings == 2048
    assert preflight.check_corpus(Corpus(small_corpus), str(base), 0) == 2048
    with pytest.raises(ValueError, match=r"--block_size 4096 exceeds the context of .*, 2048 tokens"):
        preflight.check_corpus(Corpus(small_corpus), str(base), 4096)


def test_more_ranks_than_sequences_are_refused(two_sources: Path, tmp_path: Path) -> None:
    def pack(ranks: int) -> PackedSequences:
        given = options(world_size=ranks, output_dir=tmp_path, main_process_first=lambda **_: nullcontext())
        return preflight.pack_corpus(given, Corpus(two_sources), Packing(128))

    assert pack(4).train_count >= 4
    with pytest.raises(ValueError, match=r"fewer training sequences of 128 tokens \(\d+\) than ranks \(1000\)"):
        pack(1000)


def test_accepted_weights_start_a_phase_and_accepted_corpus_starts_a_new_order(tmp_path: Path) -> None:
    sizes, even = {"zh": 10, "en": 20}, {"zh": 1, "en": 1}
    order, checkpoint = SequenceOrder(sizes, even, 4), tmp_path / "checkpoint-10"
    checkpoint.mkdir()
    identity = {"--data_path": "a", preflight.BATCH: 16, preflight.WEIGHTS: even}
    RunState(identity, {"next_index": 160, "tokens": 999, "schedule": order.state()}).write(checkpoint)
    assert preflight.start_point(identity, order, even, None, False)[0] == StartPoint(0, 0, 0)
    start, resumed = preflight.start_point(identity, SequenceOrder(sizes, even, 4), even, checkpoint, False)
    assert (start, len(resumed.phases)) == (StartPoint(10, 160, 999), 1)

    heavy = {"zh": 3, "en": 1}
    other, changed = SequenceOrder(sizes, heavy, 4), identity | {preflight.WEIGHTS: heavy}
    with pytest.raises(ValueError, match=r"--source_weights was .* and is .*give --accept_changes"):
        preflight.start_point(changed, other, heavy, checkpoint, False)
    start, resumed = preflight.start_point(changed, other, heavy, checkpoint, True)
    assert start == StartPoint(10, 160, 999)
    assert resumed.state()["phases"][1] == {"start": 160, "counts": [3, 1], "before": [80, 80]}
    assert np.bincount(resumed.locate(np.arange(160, 560))[0]).tolist() == [300, 100]

    start, resumed = preflight.start_point(identity | {"--data_path": "b"}, order, even, checkpoint, True)
    assert (start, resumed) == (StartPoint(10, 0, 999), order)
    by_type = SequenceOrder({"0": 30}, {"0": 1}, 4)
    changed = identity | {preflight.WEIGHTS: {"0": 1}}
    assert preflight.start_point(changed, by_type, {"0": 1}, checkpoint, True)[1] is by_type
