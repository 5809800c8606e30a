"""pretrain/train.py: published spellings, and options and checkpoints that are refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
import train
from conftest import RunScript
from pretraining import pretraining_arguments
from pretraining_runs import options, train_here
from safetensors.torch import load_file
from training_loop.trainer_options import translate


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
        ({"--max_steps": "many"}, "invalid int value"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tmp_path: Path, tiny_checkpoint: Path, small_corpus: Path, change: dict[str, str], message: str
) -> None:
    words = options(tiny_checkpoint, small_corpus, tmp_path / "trained", "--use_cpu", "True")
    given = dict(zip(words[::2], words[1::2], strict=True)) | change
    with pytest.raises((ValueError, OSError), match=re.escape(message)):
        train.make_trainer([str(word) for pair in given.items() for word in pair])
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
