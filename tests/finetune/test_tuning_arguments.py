"""tuning_arguments.py: the global batch, published spellings, and invalid options."""

from pathlib import Path

import pytest
from instruction_tuning.tuning_arguments import PUBLISHED, TuningArguments, accumulation_steps, parse
from resumable_checkpoints.complete_checkpoints import resume_point
from training_loop.trainer_options import translate

NEEDED = ["--base_model", "b", "--data_path", "d", "--output_dir", "o"]


@pytest.mark.parametrize(
    ("batch", "micro", "given", "ranks", "expected"),
    [
        (128, 4, 0, 1, 32),
        (128, 4, 0, 8, 4),
        (64, 64, 0, 1, 1),
        (None, 4, 2, 2, 2),
        (None, 4, 0, 2, 16),
    ],
)
def test_accumulation_times_micro_batches_is_the_global_batch(
    batch: int | None, micro: int, given: int, ranks: int, expected: int
) -> None:
    assert accumulation_steps(batch, micro, given, ranks) == expected


@pytest.mark.parametrize(
    ("batch", "micro", "given", "ranks", "message"),
    [
        (100, 8, 0, 1, "x 1 rank; take --batch_size 96 or 104, or --micro_batch_size 5"),
        (12, 4, 0, 8, "x 8 ranks; take --batch_size 32$"),
        (16, 4, 4, 1, "exclude each other"),
        (0, 4, 0, 1, "at least 1"),
        (10**17, 10**17 - 1, 0, 1, "or --micro_batch_size 10000$"),  # the search is limited
    ],
)
def test_error_for_indivisible_batch_proposes_divisible_sizes(
    batch: int, micro: int, given: int, ranks: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        accumulation_steps(batch, micro, given, ranks)


@pytest.mark.parametrize(
    "given",
    [["[q_proj,v_proj]"], ["['q_proj', 'v_proj']"], ["q_proj,v_proj"], ["q_proj", "v_proj"], ["[q_proj,", "v_proj]"]],
)
def test_module_names_are_read_in_every_published_notation(given: list[str]) -> None:
    assert options("--lora_target_modules", *given).lora_target_modules == ["q_proj", "v_proj"]
    with pytest.raises(ValueError, match="--lora_target_modules is missing"):
        options("--lora_target_modules", "[]")


def test_dropped_options_are_translated_with_a_notice_each() -> None:
    argv = "--evaluation_strategy steps --warmup-ratio=0.1 --group_by_length --save_safetensors True --no_cuda --seed 3"
    translated, notices = translate(argv.split(), PUBLISHED)
    assert " ".join(translated) == ("--eval_strategy steps --warmup_steps 0.1 --use_cpu --seed 3")
    assert len(notices) == 5
    assert notices[0] == "--evaluation_strategy is now --eval_strategy steps"
    assert translate(["--wandb_run_name", "a"], PUBLISHED)[0] == ["--run_name", "a"]
    assert translate(["--seed", "3", "--overwrite_output_dir"], PUBLISHED)[0] == ["--seed", "3"]
    assert translate(["--adafactor", "--packing", "true"], PUBLISHED)[0] == ["--optim", "adafactor"]


def options(*more: str) -> TuningArguments:
    return parse([*NEEDED, *more], "")[0]


def test_published_and_trainer_names_set_the_same_options() -> None:
    published = options(
        "--batch_size", "64", "--micro_batch_size", "8", "--num_epochs", "2",
        "--lora_target_modules", "[q_proj,k_proj]",
        "--learning-rate", "2e-3", "--train_on_inputs", "--val_set_size", "0.1", "--resume_from_checkpoint", "False",
    )  # fmt: skip
    trainers = options(
        "--gradient_accumulation_steps", "8", "--per_device_train_batch_size", "8", "--num_train_epochs", "2"
    )
    for args in (published, trainers):
        assert (args.batch_size, args.per_device_train_batch_size, args.accumulation) == (64, 8, 8)
        assert args.num_train_epochs == 2
        assert resume_point(args.resume_from_checkpoint, Path("o")) is None
        assert args.lr_scheduler_type == "linear"
    assert published.lora_target_modules == ["q_proj", "k_proj"]
    assert (published.learning_rate, published.train_on_inputs, published.eval_strategy) == (2e-3, True, "epoch")
    assert trainers.lora_target_modules == ["all-linear"]
    assert (trainers.train_on_inputs, trainers.eval_strategy, trainers.logging_nan_inf_filter) == (False, "no", False)


def test_arguments_of_the_optimizer_are_accepted() -> None:
    assert options("--optim", "sgd", "--optim_args", "momentum=0.9, nesterov=true").optim_args


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--base_mod", "x"], "unknown option --base_mod; did you mean --base_model"),
        (["--zzz"], "unknown option --zzz; see --help"),
        (["--method", "prefix"], "invalid choice: 'prefix'"),
        (["--learning_rate", "fast"], "--learning_rate.*: takes a number, not 'fast'; see --help"),
        (["--learning_rate", "nan"], "takes a number, not 'nan'"),
        (["--weight_decay=-1e999"], "takes a number, not '-1e999'"),
        (["--warmup_steps", "1_0"], "takes a number, not '1_0'"),
        (["--max_steps", "٣"], "takes a whole number, not '٣'"),
        (["--seed", "1" + "0" * 18], "takes a whole number, not '10+' .more than 18 digits"),
        (["--cutoff_len", "1"], "cutoff_len 1 is too small"),
        (["--val_set_size", "nan"], "--val_set_size.*: takes a number, not 'nan'"),
        (["--num_epochs", "inf"], "--num_epochs.*: takes a number, not 'inf'"),
        (["--data_path", ""], "--data_path is missing"),
        (["--learning_rate", "-1"], "--learning_rate -1.0 is too small; it must be at least 0"),
        (["--save_total_limit", "0"], "--save_total_limit 0 is too small; it must be at least 1"),
        (["--lora_dropout", "1"], "--lora_dropout 1.0 is too large; it must be below 1"),
        (["--output_dir", __file__], "test_tuning_arguments.py is a file; name a new folder"),
        (["--optim_args", "momentum"], "--optim_args has 'momentum', which is not KEY=VALUE"),
        (["--optim", "sgd", "--optim_args", "momentum=0.9,rank=2"], "rank=2 changes nothing with --optim sgd; remove"),
        (["--optim_target_modules", "q_proj"], "is for GaLore and APOLLO, not for --optim adamw_torch_fused; remove"),
        (["--optim", "sgd", "--optim_args", "momentum=x"], "--optim_args momentum=x: could not convert string to flo"),
    ],
)
def test_unknown_abbreviated_and_invalid_options_are_errors(more: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options(*more)
