"""Methods of transformers' Trainer that pretraining overrides: they exist, keep their signature and are called."""

from pathlib import Path

import train
from packed_attention.segment_attention import NAME, attention_of
from pretraining.pretraining_arguments import parse
from pretraining.pretraining_trainer import PretrainingTrainer
from resumable_checkpoints.complete_checkpoints import list_complete, step_of
from trainer_hooks import calls_while_training, check_signatures, overridden_methods
from transformers import PreTrainedConfig


def test_overridden_methods_are_public_and_keep_trainers_signatures() -> None:
    check_signatures(PretrainingTrainer)
    assert isinstance(vars(PreTrainedConfig)["_attn_implementation"], property)


def test_trainer_calls_every_overridden_method_and_completes_checkpoints(
    tmp_path: Path, tiny_checkpoint: Path, two_sources: Path
) -> None:
    given = {
        "model_name_or_path": tiny_checkpoint, "data_path": two_sources, "output_dir": tmp_path / "out",
        "max_steps": 3, "block_size": 128, "eval_fraction": 0.1, "save_steps": 2, "save_total_limit": 1,
        "logging_steps": 1, "report_to": "none",
    }  # fmt: skip
    words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    trainer, _ = train.make_trainer(*parse(words, ""))
    assert attention_of(trainer.model) == NAME
    calls = calls_while_training(trainer)
    assert calls.keys() == set(overridden_methods(PretrainingTrainer))
    assert calls["training_step"] == calls["compute_loss"] == calls["get_batch_samples"] == 3
    assert [step_of(checkpoint) for checkpoint in list_complete(tmp_path / "out")] == [3]
    assert trainer.args.save_total_limit == 1
