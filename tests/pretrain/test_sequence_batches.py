"""sequence_batches.py, packed_attention/: packed samples have the logits of each sample alone, on every backend."""

import copy
import itertools
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RunScript, small_texts
from corpus_files.corpus import Corpus
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_attention import segment_attention
from packed_attention.segment_attention import Segment, attention_arguments
from pretraining.pretraining_arguments import PretrainingArguments
from pretraining.pretraining_trainer import PretrainingTrainer, StartPoint
from sequence_packing.packed_sequences import Packing, open_packed_sequences
from sequence_packing.sampler import SequenceOrder
from sequence_packing.sequence_batches import (
    IGNORED,
    Collator,
    PackedSequence,
    RankBatchSampler,
    SourceGroups,
    TrainingSequences,
)
from transformers import AutoModelForCausalLM
from transformers.utils import is_flash_attn_2_available

BACKENDS = [
    ("sdpa_by_segment", False),
    ("sdpa_by_segment", True),
    ("eager", False),
    ("sdpa", False),
    ("sdpa", True),
    pytest.param("flex_attention", False, marks=pytest.mark.slow),  # its compilation takes 17 s
    ("flash_attention_2", False),
]


def random_sequence(*lengths: int) -> PackedSequence:
    draw = np.random.default_rng(sum(lengths))
    return PackedSequence([draw.integers(3, 60, length).astype(np.uint16) for length in lengths], 0)


def test_packed_sequence_restarts_positions_and_labels_no_first_token_of_a_sample() -> None:
    one = PackedSequence([np.array([1, 5, 2], np.uint16), np.array([1, 2], np.uint16)], 1)
    batch = Collator(block_size=6, pad_id=2)([one, PackedSequence([np.array([1], np.uint16)], 0)])
    assert batch["input_ids"].tolist() == [[1, 5, 2, 1, 2, 2], [1, 2, 2, 2, 2, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4]]
    no = IGNORED
    assert batch["labels"].tolist() == [[no, 5, 2, no, 2, no], [no, no, no, no, no, no]]
    assert batch["sources"].tolist() == [1, 0]
    assert "attention_mask" not in batch
    assert batch["segments"] == [[Segment(3), Segment(2), Segment(1)], [Segment(1), Segment(5)]]


def test_backends_get_segments_or_boundaries() -> None:
    segments, device = [[Segment(3), Segment(2), Segment(1)], [Segment(1), Segment(5)]], torch.device("cpu")
    given = attention_arguments("flash_attention_2", segments, device)
    assert given["cu_seq_lens_q"].tolist() == given["cu_seq_lens_k"].tolist() == [0, 3, 5, 6, 7, 12]
    assert given["cu_seq_lens_q"].dtype == torch.int32
    assert given["max_length_q"] == given["max_length_k"] == 5
    assert attention_arguments(segment_attention.NAME, segments, device) == {"segments": segments}
    assert attention_arguments("eager", segments, device) == {}


def test_padding_is_masked_by_length_not_by_id() -> None:
    sequences = [PackedSequence([np.array(ids, np.uint16)], 0) for ids in ([1, 5, 2, 2], [1, 2])]
    batch = Collator(block_size=64, pad_id=2, packed=False)(sequences)
    assert batch["input_ids"].tolist() == [[1, 5, 2, 2], [1, 2, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 5, 2, 2], [IGNORED, 2, IGNORED, IGNORED]]
    assert "position_ids" not in batch


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_every_token_but_the_first_of_each_sample_is_a_label_once(lengths: list[list[int]]) -> None:
    sequences = [random_sequence(*each) for each in lengths]
    batch = Collator(block_size=40, pad_id=0)(sequences)
    labels = batch["labels"][batch["labels"] != IGNORED].tolist()
    assert labels == [int(token) for each in sequences for sample in each.samples for token in sample[1:]]


def make_trainer(
    tmp_path: Path, base: Path, corpus: Corpus, backend: str, packed: bool = True, **options: Any
) -> PretrainingTrainer:
    """Return a trainer as in train.py. options: options of PretrainingArguments."""
    given_: dict[str, Any] = {
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "use_cpu": True,
        "block_size": 128,
    }
    args = PretrainingArguments(
        model_name_or_path=str(base), data_path=corpus.prefix, output_dir=str(tmp_path / "out"), save_strategy="no",
        disable_tqdm=True, logging_steps=1, **given_ | options,
    )  # fmt: skip
    packing = Packing(args.block_size, packed)
    sequences = open_packed_sequences(corpus, packing, tmp_path)
    groups = SourceGroups.of_split(sequences, "train")
    order = SequenceOrder(groups.sizes, groups.sizes, args.seed)
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
    segment_attention.register()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation=backend)
    return PretrainingTrainer(
        TrainingSequences(corpus, sequences, groups, order, args.max_steps * batch), None, {}, StartPoint(),
        log_path=tmp_path / "out/train_log.jsonl", model=model, args=args,
        data_collator=Collator(args.block_size, 2, packed),
    )  # fmt: skip


@pytest.fixture(scope="module")
def short_samples(tmp_path_factory: pytest.TempPathFactory, run_script: RunScript, tiny_tokenizer: Path) -> Corpus:
    folder = tmp_path_factory.mktemp("short")
    (folder / "texts.txt").write_text("\n".join(small_texts(80)), encoding="utf-8")
    run_script(
        "pretrain/preprocess.py", "--mode", "write", "--file_path", folder / "texts.txt", "--save_prefix",
        folder / "short", "--tokenizer_path", tiny_tokenizer, "--seq_length", 64,
    )  # fmt: skip
    return Corpus(folder / "short")


@pytest.mark.parametrize(("backend", "recomputed"), BACKENDS)
def test_packed_logits_equal_those_of_each_sample_alone(
    tmp_path: Path, tiny_checkpoint: Path, short_samples: Corpus, backend: str, recomputed: bool
) -> None:
    """A hook records the logits of Trainer's forward passes; they equal the logits of each sample alone."""
    flash = backend.startswith("flash")
    if flash and not (torch.cuda.is_available() and is_flash_attn_2_available()):
        pytest.skip("FlashAttention needs a GPU and its package")
    trainer = make_trainer(
        tmp_path, tiny_checkpoint, short_samples, backend, max_steps=1, gradient_checkpointing=recomputed,
        use_cpu=not flash, bf16=flash,
    )  # fmt: skip
    model: Any = trainer.model
    alone, recorded = copy.deepcopy(model), []
    if backend == segment_attention.NAME:
        alone.set_attn_implementation("sdpa")
    model.register_forward_hook(
        lambda model, arguments, inputs, output: recorded.append((inputs, output.logits.detach().clone())),
        with_kwargs=True,
    )
    trains = backend != "flex_attention" or torch.cuda.is_available()  # it has no backward pass on the CPU
    with nullcontext() if trains else suppress(NotImplementedError, torch._inductor.exc.InductorError):
        trainer.train_until_stopped(None)
    assert len(recorded) == 2 + trains  # the isolation check makes two forward passes
    compared = 0
    for inputs, logits in recorded:
        assert "attention_mask" not in inputs
        for ids, positions, packed in zip(inputs["input_ids"], inputs["position_ids"], logits, strict=True):
            begins = [*torch.nonzero(positions == 0).flatten().tolist(), len(ids)]
            for begin, end in itertools.pairwise(begins):
                with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=flash):
                    by_itself = alone.to(ids.device)(ids[None, begin:end], use_cache=False).logits[0]
                assert torch.allclose(packed[begin:end], by_itself.float(), atol=2e-2 if flash else 1e-5, rtol=0)
                compared += 1
    assert compared >= 8 + 6 * trains


def test_attention_that_mixes_samples_is_refused(tmp_path: Path, tiny_checkpoint: Path, short_samples: Corpus) -> None:
    """The backend has no mask function, so transformers makes no mask for packed sequences."""
    from transformers import AttentionInterface

    def causal_over_all(module: Any, query: Any, key: Any, value: Any, mask: Any, **more: Any) -> Any:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        found = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return found.transpose(1, 2), None

    AttentionInterface.register("ignores_positions", causal_over_all)
    trainer = make_trainer(tmp_path, tiny_checkpoint, short_samples, "ignores_positions")
    with pytest.raises(ValueError, match="samples of a packed sequence attend to each other"):
        trainer.train_until_stopped(None)


def test_packed_and_padded_samples_give_the_same_gradients(
    tmp_path: Path, tiny_checkpoint: Path, short_samples: Corpus
) -> None:
    packed = make_trainer(tmp_path / "a", tiny_checkpoint, short_samples, "sdpa", max_steps=1)
    places = packed.sequences.order.locate(np.arange(2))[1]
    samples = [int(sample) for place in places for sample in packed.sequences.packed[place]]
    packed.train_until_stopped(None)
    single = make_trainer(
        tmp_path / "b", tiny_checkpoint, short_samples, "sdpa", packed=False, max_steps=1,
        per_device_train_batch_size=len(samples),
    )  # fmt: skip
    chosen = {i: PackedSequence([short_samples[sample]], 0) for i, sample in enumerate(samples)}
    chosen_only = {"__getitems__": lambda _, indices: [chosen[i] for i in indices]}
    single.sequences.__class__ = type("Chosen", (TrainingSequences,), chosen_only)
    single.train_until_stopped(None)
    one, other = packed.state.log_history[0], single.state.log_history[0]
    assert one["tokens"] == other["tokens"]
    assert one["loss"] == pytest.approx(other["loss"], abs=1e-6)
    assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)


@pytest.mark.parametrize(("micro_batch", "accumulation"), [(8, 1), (4, 2), (1, 8)])
def test_loss_is_the_mean_over_tokens_of_the_whole_global_batch(
    tmp_path: Path, tiny_checkpoint: Path, short_samples: Corpus, micro_batch: int, accumulation: int
) -> None:
    """Eight sequences of different lengths in one, two or eight micro batches."""
    options = {"per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": accumulation, "max_steps": 1}
    trainer = make_trainer(tmp_path, tiny_checkpoint, short_samples, "sdpa", packed=False, **options)
    model: Any = copy.deepcopy(trainer.model)
    ids = [trainer.sequences[i].samples[0] for i in range(8)]
    trainer.train_until_stopped(None)
    total = torch.zeros(())
    for sample in ids:
        tokens = torch.from_numpy(sample.astype(np.int64))[None]
        total += model(tokens, labels=tokens).loss * (len(sample) - 1)
    mean = total / sum(len(sample) - 1 for sample in ids)
    mean.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    entry = trainer.state.log_history[0]
    assert entry["loss"] == pytest.approx(float(mean.detach()), abs=1e-6)
    assert entry["grad_norm"] == pytest.approx(float(norm), rel=1e-5)


def test_ranks_take_micro_batches_in_turn() -> None:
    assert list(RankBatchSampler(first=10, count=2, micro_batch=2, rank=1, ranks=3)) == [[12, 13], [18, 19]]
