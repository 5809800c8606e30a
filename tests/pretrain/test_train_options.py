"""pretrain/train.py: published spellings; options, bases and losses with which a run ends in an error."""

import json
import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import train
from conftest import RunScript
from pretraining import pretraining_arguments
from pretraining_runs import options, train_here
from resumable_checkpoints import complete_checkpoints as checkpoints
from safetensors.torch import load_file, save_file
from training_loop import option_checks
from training_loop.trainer_options import translate
from transformers import TrainingArguments


def test_published_spellings_are_translated_with_a_notice() -> None:
    given = "--evaluation_strategy no --warmup_ratio=0.1 --overwrite_output_dir --group_by_length True --bf16"
    words, notices = translate(given.split(), pretraining_arguments.PUBLISHED)
    assert words == ["--eval_strategy", "no", "--warmup_steps", "0.1", "--bf16"]
    assert [notice.split()[0].strip(":") for notice in notices] == [
        "--evaluation_strategy", "--warmup_ratio", "--overwrite_output_dir", "--group_by_length",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--model_name_or_path": "nowhere"}, "nowhere does not exist"),
        ({"--model_name_or_path": "tests"}, "tests has no config.json"),
        ({"--data_path": "nowhere/all"}, "nowhere/all.json does not exist"),
        ({"--block_size": "16"}, "more than --block_size 16"),
        ({"--block_size": "4096"}, "more than the context"),
        ({"--source_weights": "zh=1"}, "no source zh"),
        ({"--global_batch_distributed": "[1,2]"}, "not a list of 1 numbers"),
        ({"--eval_fraction": "1"}, "must be at least 0 and below 1"),
        ({"--attn_implementation": "flash_attention_2"}, "is not available here"),
        ({"--resume_from_checkpoint": "nowhere"}, "nowhere does not exist"),
        ({"--resume_from_checkpoint": "True"}, "holds no complete checkpoint"),
        ({"--deepspeed": "nowhere.json"}, "nowhere.json does not exist"),
        ({"--learning_rat": "1"}, "did you mean --learning_rate?"),
        ({"--max_steps": "many"}, "takes a whole number, not 'many'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tmp_path: Path, tiny_checkpoint: Path, small_corpus: Path, change: dict[str, str], message: str
) -> None:
    words = options(tiny_checkpoint, small_corpus, tmp_path / "trained", "--use_cpu", "True")
    given = dict(zip(words[::2], words[1::2], strict=True)) | change
    with pytest.raises((ValueError, OSError), match=re.escape(message)):
        train.make_trainer(*pretraining_arguments.parse([str(word) for pair in given.items() for word in pair], ""))
    assert not (tmp_path / "trained").exists()


@pytest.mark.integration
def test_unknown_option_is_one_line_and_status_2(
    run_script: RunScript, tiny_checkpoint: Path, small_corpus: Path
) -> None:
    done = run_script(
        "pretrain/train.py", *options(tiny_checkpoint, small_corpus, Path("tests")), "--seeed", 1, status=2
    )
    assert done.stderr == "error: unknown option --seeed; did you mean --seed?\n"


def test_corpus_of_another_tokenizer_is_refused(tmp_path: Path, tiny_checkpoint: Path, small_corpus: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_checkpoint, base)
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = "<0x41>", "<0x42>"
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="was not written with the tokenizer of"):
        train_here(*options(base, small_corpus, tmp_path / "trained"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_checkpoint / name, base)
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<unk>"}))
    with pytest.raises(ValueError, match=r"which has different EOS \(2 and 0\); write it again"):
        train_here(*options(base, small_corpus, tmp_path / "trained"))


def test_base_with_a_missing_weight_is_refused(tmp_path: Path, tiny_checkpoint: Path, small_corpus: Path) -> None:
    from safetensors.torch import save_file

    base = tmp_path / "base"
    shutil.copytree(tiny_checkpoint, base)
    weights = load_file(base / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    message = r"another shape .*: 1, such as model\.layers\.1\.mlp\.up_proj\.weight; download it again"
    with pytest.raises(ValueError, match=message):
        train_here(*options(base, small_corpus, tmp_path / "trained"))


# Options of Trainer that work in both trainers, each used by a recipe, a test of these trainers or Trainer itself.
WORKING = {
    "output_dir", "per_device_train_batch_size", "num_train_epochs", "max_steps", "learning_rate",
    "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "weight_decay", "adam_beta1",
    "adam_beta2", "adam_epsilon", "optim_target_modules", "gradient_accumulation_steps", "max_grad_norm", "bf16",
    "fp16", "bf16_full_eval", "fp16_full_eval", "tf32", "gradient_checkpointing", "gradient_checkpointing_kwargs",
    "torch_compile", "torch_compile_backend", "torch_compile_mode", "use_liger_kernel", "liger_kernel_config",
    "use_cache", "neftune_noise_alpha", "torch_empty_cache_steps", "auto_find_batch_size", "logging_strategy",
    "logging_steps", "logging_first_step", "log_on_each_node", "logging_nan_inf_filter",
    "include_num_input_tokens_seen", "log_level", "log_level_replica", "disable_tqdm", "report_to", "run_name",
    "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "eval_strategy", "eval_steps",
    "eval_delay", "per_device_eval_batch_size", "eval_on_start", "save_strategy", "save_steps", "save_on_each_node",
    "save_total_limit", "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy",
    "hub_always_push", "hub_revision", "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
    "ignore_data_skip", "full_determinism", "seed", "data_seed", "use_cpu", "dataloader_num_workers",
    "dataloader_pin_memory", "dataloader_prefetch_factor", "remove_unused_columns", "train_sampling_strategy",
    "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend",
    "ddp_timeout", "fsdp", "fsdp_config", "deepspeed", "debug", "skip_memory_metrics", "resume_from_checkpoint",
    "local_rank",
}  # fmt: skip
OTHER_VALUES = {
    "label_smoothing_factor": "0.1", "average_tokens_across_devices": "False", "eval_do_concat_batches": "False",
    "dataloader_in_order": "False", "dataloader_multiprocessing_context": "spawn", "length_column_name": "size",
    "accelerator_config": '{"split_batches": true}', "parallelism_config": "{}", "eval_accumulation_steps": "2",
    "include_for_metrics": "loss", "label_names": "labels",
}  # fmt: skip


def test_every_option_of_trainer_works_or_is_refused_by_name(
    tmp_path: Path, tiny_checkpoint: Path, small_corpus: Path
) -> None:
    """A new option of transformers fails here, until it is sorted into one of the two tables."""
    names = {field.name for field in fields(TrainingArguments)}
    assert names == WORKING | option_checks.REFUSED.keys() | {"parallelism_config"}
    assert not WORKING & option_checks.REFUSED.keys()
    for name in (*option_checks.REFUSED, "parallelism_config"):  # the last cannot be written on a command line
        with pytest.raises(ValueError, match=rf"--{name}( has no effect here, as .*; remove it|.*invalid)"):
            train_here(
                *options(tiny_checkpoint, small_corpus, tmp_path / "out", f"--{name}", OTHER_VALUES.get(name, "True"))
            )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--report_to", "wandb"], r"--report_to wandb: WandbCallback requires wandb to be installed"),
        (["--use_liger_kernel", "True"], r"--use_liger_kernel needs liger-kernel, which is not installed: pip install"),
        (["--optim", "galore_adamw"], r"--optim galore_adamw: You need to install `galore_torch`"),
        (["--optim", "adamw_bnb_8bit"], r"--optim adamw_bnb_8bit: You need to install `bitsandbytes`"),
        (
            ["--lr_scheduler_type", "warmup_stable_decay"],
            r"--lr_scheduler_type warmup_stable_decay does not fit --lr_scheduler_kwargs \{\}: .*'num_decay_steps'",
        ),
        (["--lr_scheduler_type", "cosine_with_min_lr"], r"cosine_with_min_lr does not fit .* min_lr or min_lr_rate"),
        (["--lr_scheduler_kwargs", '{"foo": 1}'], r"cosine does not fit --lr_scheduler_kwargs \{\"foo\": 1\}: .*'foo'"),
        (["--deepspeed", "pretrain/configs/zero1.json"], r"--deepspeed needs a launcher, also for one rank"),
        (
            ["--load_best_model_at_end", "True", "--eval_strategy", "steps", "--eval_steps", 1, "--save_steps", 2],
            "--eval_steps 1 and --save_steps 2: the best step may have no checkpoint",
        ),
    ],
)
def test_missing_package_or_argument_is_named_before_the_model_is_loaded(
    tmp_path: Path, tiny_checkpoint: Path, small_corpus: Path, more: list[object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train_here(*options(tiny_checkpoint, small_corpus, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_named(tmp_path: Path, tiny_checkpoint: Path, small_corpus: Path) -> None:
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    message = r"the base has weights that are not finite \(NaN or infinite\), such as model\.layers\.1\.mlp\.up_proj"
    with pytest.raises(ValueError, match=message):
        train_here(*options(base, small_corpus, tmp_path / "trained"))


def test_tokenizer_that_cannot_be_saved_is_refused_before_training(
    tmp_path: Path, tiny_checkpoint: Path, small_corpus: Path
) -> None:
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    listed = [{"name": name, "template": "{{ messages }}"} for name in ("default", "../../evil")]
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": listed}))
    with pytest.raises(ValueError, match=r"/base cannot be saved by transformers \(Invalid chat template name: '\."):
        train_here(*options(base, small_corpus, tmp_path / "out"))
    shutil.copyfile(tiny_checkpoint / "tokenizer_config.json", base / "tokenizer_config.json")
    (base / "generation_config.json").write_text('{"temperature": 0.9}')  # as LLaMA-2's, without do_sample
    with pytest.raises(ValueError, match=r"/base/generation_config\.json cannot be saved by .*temperature"):
        train_here(*options(base, small_corpus, tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.integration
def test_non_finite_loss_ends_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, run_script: RunScript, tiny_checkpoint: Path, small_corpus: Path
) -> None:
    given = options(tiny_checkpoint, small_corpus, tmp_path / "trained", "--use_cpu", "True", "--save_steps", 1)
    given[given.index("1e-2")] = "1e37"
    done = run_script("pretrain/train.py", *given, "--max_grad_norm", 0, "--warmup_steps", 2, status=2)
    assert "the loss or a weight was not finite for 3 steps" in done.stderr
    good = checkpoints.list_checkpoints(tmp_path / "trained")
    assert good
    assert all(checkpoints.is_complete(path) for path in good)
    for path in good:
        assert all(tensor.isfinite().all() for tensor in load_file(path / "model.safetensors").values())
    ends = options(tiny_checkpoint, small_corpus, tmp_path / "ends", "--warmup_steps", 2, "--max_steps", 3)
    ends[ends.index("1e-2")] = "1e37"
    with pytest.raises(ValueError, match="weights are not finite after step 3"):
        train_here(*ends, "--max_grad_norm", 0)
    assert not (tmp_path / "ends" / "config.json").exists()
