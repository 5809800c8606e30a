"""pretrain/train.py: real Trainer, real ZeRO-3 on two ranks, a resume that changes nothing, and clear refusals."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pretraining_arguments
import pytest
import torch
import train
from conftest import REPOSITORY, RunScript, small_texts
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory, run_script: RunScript, tiny_tokenizer: Path) -> Path:
    """Prefix of a corpus of small texts, at most 64 tokens a sample."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "texts.txt").write_text("\n".join(small_texts(60)), encoding="utf-8")
    run_script(
        "pretrain/preprocess.py", "--mode", "write", "--file_path", folder / "texts.txt",
        "--save_prefix", folder / "small", "--tokenizer_path", tiny_tokenizer, "--seq_length", 64,
    )  # fmt: skip
    return folder / "small"


def options(base: Path, corpus: Path, output: Path, *more: object) -> list[object]:
    return [
        "--model_name_or_path", base, "--data_path", corpus, "--output_dir", output, "--max_steps", 6,
        "--per_device_train_batch_size", 8, "--learning_rate", "1e-2", "--logging_steps", 1, "--report_to", "none",
        "--save_strategy", "no", *more,
    ]  # fmt: skip


def test_zero_3_on_two_ranks(tmp_path: Path, tiny_checkpoint: Path, small_corpus: Path) -> None:
    """The launch that users type: both ranks train one model, and one complete checkpoint folder comes out."""
    output = tmp_path / "trained"
    launch = [
        Path(sys.executable).parent / "deepspeed",
        "-q",
        "--num_gpus",
        2,
        "--master_port",
        free_port(),
        "pretrain/train.py",
    ]
    launch += ["--deepspeed", "pretrain/configs/zero3.json", *options(tiny_checkpoint, small_corpus, output)]
    done = subprocess.run(
        list(map(str, launch)), cwd=REPOSITORY, capture_output=True, text=True, timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"),
                          "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DS_ACCELERATOR": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16 rows a step on 2 ranks (cpu)" in done.stdout
    log = [json.loads(line) for line in (output / "train_log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    before, after = load_file(tiny_checkpoint / "model.safetensors"), load_file(output / "model.safetensors")
    assert {name: tensor.shape for name, tensor in before.items()} == {name: t.shape for name, t in after.items()}
    assert all(not torch.equal(before[name], after[name]) for name in before)
    loading: Any = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)
    assert not loading[1]["missing_keys"]
    held = {file.name for file in output.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "run.json"} <= held
    assert not any(name.startswith(("checkpoint-", ".")) or name.endswith(".bin") for name in held)
    run = json.loads((output / "run.json").read_text())
    assert run["seed"] == 42
    assert run["data"] == {str(small_corpus): json.loads(Path(f"{small_corpus}.json").read_text())["sha256"]}


def test_a_resumed_run_ends_at_the_same_weights(
    tmp_path: Path, run_script: RunScript, tiny_checkpoint: Path, small_corpus: Path
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    saving = ("--save_strategy", "steps", "--save_steps", 3, "--save_total_limit", 9)
    run_script("pretrain/train.py", *options(tiny_checkpoint, small_corpus, whole), *saving)
    resumed.mkdir()
    shutil.copytree(whole / "checkpoint-3", resumed / "checkpoint-3")
    refused = run_script("pretrain/train.py", *options(tiny_checkpoint, small_corpus, resumed), *saving, status=2)
    assert "--resume_from_checkpoint True" in refused.stderr
    go_on = ("--resume_from_checkpoint", "True")
    run_script("pretrain/train.py", *options(tiny_checkpoint, small_corpus, resumed), *saving, *go_on)
    one, other = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_grouped_order_has_every_sample_once_and_little_padding() -> None:
    draw = np.random.default_rng(1)
    lengths = np.concatenate([draw.integers(40, 60, 3000), draw.integers(60, 110, 3005)]).astype(np.int32)
    order = train.grouped_order(lengths, 32, seed=7)
    assert sorted(order.tolist()) == list(range(6005))
    runs = lengths[order[: 6005 // 32 * 32]].reshape(-1, 32)
    assert runs.sum() / (runs.max(1) * 32).sum() > 0.97
    means = runs.mean(1)
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2  # a run's length says nothing about the next one's
    assert (
        order.tolist()
        == train.grouped_order(lengths, 32, seed=7).tolist()
        != train.grouped_order(lengths, 32, 8).tolist()
    )


def test_padding_is_masked_by_length_not_by_id() -> None:
    rows = [{"input_ids": np.array(ids, np.uint16)} for ids in ([1, 5, 2, 2], [1, 2])]
    batch = train.collate(rows, pad_id=2)
    assert batch["input_ids"].tolist() == [[1, 5, 2, 2], [1, 2, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[1, 5, 2, 2], [1, 2, -100, -100]]


def test_published_spellings_are_translated_with_a_notice() -> None:
    given = "--evaluation_strategy no --warmup_ratio=0.1 --overwrite_output_dir --group_by_length True --bf16"
    words, notices = pretraining_arguments.translate(given.split())
    assert words == [
        "--eval_strategy",
        "no",
        "--warmup_steps",
        "0.1",
        "--train_sampling_strategy",
        "group_by_length",
        "--bf16",
    ]
    assert [notice.split()[0].strip(":") for notice in notices] == [
        "--evaluation_strategy", "--warmup_ratio", "--overwrite_output_dir", "--group_by_length",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--model_name_or_path": "nowhere"}, "nowhere does not exist"),
        ({"--model_name_or_path": "tests"}, "tests has no config.json"),
        ({"--data_path": "nowhere/all"}, "nowhere/all.json does not exist"),
        ({"--model_max_length": "16"}, "over the limit of 16"),
        ({"--model_max_length": "4096"}, "over the context"),
        ({"--deepspeed": "nowhere.json"}, "nowhere.json does not exist"),
        ({"--learning_rat": "1"}, "did you mean --learning_rate?"),
        ({"--max_steps": "many"}, "invalid int value"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, run_script: RunScript, tiny_checkpoint: Path, small_corpus: Path, change: dict[str, str], said: str
) -> None:
    words = options(tiny_checkpoint, small_corpus, tmp_path / "trained")
    given = dict(zip(words[::2], words[1::2], strict=True)) | change
    done = run_script("pretrain/train.py", *[word for pair in given.items() for word in pair], status=2)
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "trained").exists()


def test_a_corpus_of_another_tokenizer_is_refused(
    tmp_path: Path, run_script: RunScript, tiny_checkpoint: Path, small_corpus: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_checkpoint, base)
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = "<0x41>", "<0x42>"
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    done = run_script("pretrain/train.py", *options(base, small_corpus, tmp_path / "trained"), status=2)
    assert "another tokenizer" in done.stderr


def test_a_checkpoint_that_lacks_weights_is_refused(
    tmp_path: Path, run_script: RunScript, tiny_checkpoint: Path, small_corpus: Path
) -> None:
    from safetensors.torch import save_file

    base = tmp_path / "base"
    shutil.copytree(tiny_checkpoint, base)
    weights = load_file(base / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    done = run_script("pretrain/train.py", *options(base, small_corpus, tmp_path / "trained"), status=2)
    assert "lacks 1 weights, model.layers.1.mlp.up_proj.weight" in done.stderr
