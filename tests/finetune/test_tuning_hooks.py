"""Methods of transformers' Trainer that tuning overrides: they exist, keep their signature and are called."""

from pathlib import Path
from typing import Any

from instruction_data.named_templates import load_template
from instruction_tuning.instruction_trainer import InstructionTrainer
from packed_attention.segment_attention import NAME, attention_of
from resumable_checkpoints.complete_checkpoints import list_complete, step_of
from trainer_hooks import calls_while_training, check_signatures, overridden_methods
from transformers import AutoTokenizer, PreTrainedConfig
from tuning_runs import trainer_of


def test_overridden_methods_are_public_and_keep_trainers_signatures() -> None:
    check_signatures(InstructionTrainer)
    assert isinstance(vars(PreTrainedConfig)["_attn_implementation"], property)


def test_trainer_calls_every_overridden_method_and_completes_checkpoints(
    tmp_path: Path, tiny_checkpoint: Path, rows_file: Path
) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_checkpoint)
    tokenizer.chat_template = load_template("alpaca")
    more: tuple[object, ...] = ("--batch_size", 4, "--micro_batch_size", 1, "--cutoff_len", 160, "--max_steps", 3)
    more += ("--val_set_size", 4, "--save_strategy", "steps", "--save_steps", 2, "--save_total_limit", 1)
    trainer = trainer_of(tiny_checkpoint, tokenizer, rows_file, tmp_path / "out", *more)
    assert attention_of(trainer.base_model) == NAME
    args: Any = trainer.args
    args._n_gpu = 5
    assert args.n_gpu == 5
    args._n_gpu = 0
    calls = calls_while_training(trainer)
    assert calls.keys() == set(overridden_methods(InstructionTrainer))
    assert calls["training_step"] == calls["get_batch_samples"] == 3
    assert [step_of(checkpoint) for checkpoint in list_complete(tmp_path / "out")] == [3]
    tokens = sum(int(trainer.data.examples.lengths[trainer.data.order.step(step)].sum()) for step in range(3))
    (*_, last) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert last["num_input_tokens_seen"] == tokens
    assert trainer.state.total_flos == 6 * tokens * trainer.model.num_parameters(exclude_embeddings=True)
