"""pretrain/train.py: published option names; options, bases and losses that end a run with an error."""

import json
import re
import shutil
from pathlib import Path

import pytest
import train
from conftest import RunScript
from pretraining import pretraining_arguments
from pretraining_runs import options, train_here
from resumable_checkpoints import complete_checkpoints as checkpoints
from safetensors.torch import load_file, save_file
from training_loop.trainer_options import translate


def test_published_option_names_are_translated_with_a_notice() -> None:
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
        ({"--block_size": "4096"}, "exceeds the context"),
        ({"--source_weights": "zh=1"}, "no source zh"),
        ({"--global_batch_distributed": "[1,2]"}, "not a list of 1 numbers"),
        ({"--eval_fraction": "1"}, "must be at least 0 and below 1"),
        ({"--eval_only": "True"}, "--eval_only has no effect without held-out data; give --eval_fraction"),
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
def test_unknown_option_gives_one_error_line_and_status_2(
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
    with pytest.raises(ValueError, match=r"they differ in EOS \(2 and 0\); write it again"):
        train_here(*options(base, small_corpus, tmp_path / "trained"))


def test_base_with_a_missing_weight_is_refused(
    tmp_path: Path, tiny_checkpoint: Path, small_corpus: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """transformers does not also print its table of missing weights."""
    base = tmp_path / "base"
    shutil.copytree(tiny_checkpoint, base)
    weights = load_file(base / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    message = r"another shape .*: 1, such as model\.layers\.1\.mlp\.up_proj\.weight; download the checkpoint again"
    with pytest.raises(ValueError, match=message):
        train_here(*options(base, small_corpus, tmp_path / "trained"))
    assert "MISSING" not in capfd.readouterr().err


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
            [
                "--eval_fraction",
                0.2,
                "--load_best_model_at_end",
                "True",
                "--eval_strategy",
                "steps",
                "--eval_steps",
                1,
                "--save_steps",
                2,
            ],
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


def test_base_with_a_non_finite_weight_is_refused_and_the_weight_is_named(
    tmp_path: Path, tiny_checkpoint: Path, small_corpus: Path
) -> None:
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
    (base / "generation_config.json").write_text('{"temperature": 0.9}')  # as in LLaMA-2's file: without do_sample
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
