"""pretrain/train.py: ZeRO-3 on two ranks, interrupted and resumed runs, source weights."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import train
from launches import Launch, ranks_of
from pretraining.pretraining_arguments import parse
from pretraining_runs import options, train_here
from resumable_checkpoints import complete_checkpoints as checkpoints
from safetensors.torch import load_file, save_file
from stopped_runs import only_checkpoint, stop_by_signal
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="session")
def launch(extensions: Path) -> Launch:
    return Launch(extensions)


@pytest.fixture(scope="session")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, launch: Launch, tiny_checkpoint: Path, small_corpus: Path
) -> Path:
    """Return the output folder of a ZeRO-3 run of six steps on two ranks, with its checkpoints."""
    output = tmp_path_factory.mktemp("uninterrupted") / "trained"
    printed = launch.to_the_end(*options(tiny_checkpoint, small_corpus, output, *SAVING))
    assert "8 sequences per step on 2 ranks (cpu), 6 steps" in printed
    assert "step 6/6 | loss" in printed
    return output


SAVING = ("--save_strategy", "steps", "--save_steps", 2, "--save_total_limit", 2)
RESUME = ("--resume_from_checkpoint", "True")


def read_log(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "train_log.jsonl").read_text().splitlines()]


def exact_entries(output: Path) -> list[list[Any]]:
    """Return the values of each log entry that a resumed run must reproduce exactly; speeds are not among them."""
    names = ("step", "loss", "grad_norm", "learning_rate", "tokens", "loss_small", "sequences_small", "epochs_small")
    return [[entry.get(name) for name in names] for entry in read_log(output) if "loss" in entry]


def assert_same_run(one: Path, other: Path) -> None:
    left, right = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert exact_entries(one) == exact_entries(other)


def test_zero_3_on_two_ranks_writes_one_complete_checkpoint_and_log(
    uninterrupted: Path, tiny_checkpoint: Path, small_corpus: Path
) -> None:
    entries = [entry for entry in read_log(uninterrupted) if "loss" in entry]
    losses = [entry["loss"] for entry in entries]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert all(entry["loss_small"] == pytest.approx(entry["loss"], abs=1e-4) for entry in entries)
    assert [entry["sequences_small"] for entry in entries] == [8, 16, 24, 32, 40, 48]
    assert {"tokens_per_second", "data_wait", "eta_seconds", "epochs_small", "grad_norm"} <= set(entries[0])
    before, after = load_file(tiny_checkpoint / "model.safetensors"), load_file(uninterrupted / "model.safetensors")
    assert {name: tensor.shape for name, tensor in before.items()} == {name: t.shape for name, t in after.items()}
    assert all(not torch.equal(before[name], after[name]) for name in before)
    loading: Any = AutoModelForCausalLM.from_pretrained(uninterrupted, output_loading_info=True)
    assert not loading[1]["missing_keys"]
    assert loading[0].config.use_cache
    held = {file.name for file in uninterrupted.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "run.json"} <= held
    assert {"training_curves.png", "train_log.jsonl"} <= held
    assert {name for name in held if name.startswith(("checkpoint-", "."))} == {"checkpoint-4", "checkpoint-6"}
    assert not any(name.endswith(".bin") for name in held)
    run = json.loads((uninterrupted / "run.json").read_text())
    assert run["seed"] == 42
    assert run["data"] == {str(small_corpus): json.loads(Path(f"{small_corpus}.json").read_text())["sha256"]}


@pytest.fixture(scope="session")
def tied_bases(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> dict[str, Path]:
    """Return bases that are marked as tied: "one" without an output matrix, "two" with an output matrix of its own."""
    folder, weights = tmp_path_factory.mktemp("tied"), load_file(tiny_checkpoint / "model.safetensors")
    for name in ("one", "two"):
        shutil.copytree(tiny_checkpoint, folder / name)
        config = json.loads((folder / name / "config.json").read_text()) | {"tie_word_embeddings": True}
        (folder / name / "config.json").write_text(json.dumps(config))
    del weights["lm_head.weight"]
    save_file(weights, folder / "one/model.safetensors", {"format": "pt"})
    return {name: folder / name for name in ("one", "two")}


@pytest.mark.parametrize(
    ("config", "matrices"),
    [
        ("zero1", "one"),
        *(
            pytest.param(config, matrices, marks=pytest.mark.slow)
            for config, matrices in [
                ("zero1", "two"),
                ("zero2", "one"),
                ("zero2", "two"),
                ("zero3", "one"),
                ("zero3", "two"),
            ]
        ),
    ],
)
def test_two_ranks_write_the_matrices_of_a_base_marked_as_tied_like_one_process(
    tmp_path: Path, launch: Launch, small_corpus: Path, tied_bases: dict[str, Path], config: str, matrices: str
) -> None:
    """One matrix stays one, and is marked as tied; two different matrices stay two."""
    given = options(tied_bases[matrices], small_corpus, tmp_path / "ranks", "--max_steps", 2, "--save_steps", 2)
    launch.to_the_end(*given, config=config)
    given[given.index(tmp_path / "ranks")] = tmp_path / "alone"
    given[given.index("--per_device_train_batch_size") + 1] = 8
    train_here(*given)
    expected = load_file(tmp_path / "alone/model.safetensors")
    assert ("lm_head.weight" in expected) == (matrices == "two")
    logits = {}
    for folder in (tmp_path / "alone", tmp_path / "ranks", tmp_path / "ranks/checkpoint-2"):
        weights = load_file(folder / "model.safetensors")
        assert weights.keys() == expected.keys()
        assert max(float((weights[name] - expected[name]).abs().max()) for name in expected) < 1e-5
        model: Any = AutoModelForCausalLM.from_pretrained(folder)
        assert model.config.tie_word_embeddings == (matrices == "one")
        logits[folder.name] = model(torch.arange(10, 40)[None]).logits
    torch.testing.assert_close(logits["ranks"], logits["alone"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(logits["checkpoint-2"], logits["ranks"], rtol=0, atol=0)


def kill_while_saving(process: "subprocess.Popen[str]", output: Path, after: int, delay: float) -> None:
    """Kill all processes of a run `delay` seconds after it started to write a checkpoint of a step above `after`."""
    while process.poll() is None:
        if any(checkpoints.step_of(path) > after for path in checkpoints.list_checkpoints(output)):
            break
        time.sleep(0.002)
    time.sleep(delay)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def newest_complete(output: Path) -> int:
    return max(map(checkpoints.step_of, checkpoints.list_complete(output)), default=0)


@pytest.mark.slow
def test_run_killed_twice_and_stopped_once_ends_at_the_same_weights(
    tmp_path: Path, launch: Launch, tiny_checkpoint: Path, small_corpus: Path, uninterrupted: Path
) -> None:
    """Two ranks, killed twice while they write a checkpoint, then stopped by SIGTERM."""
    output = tmp_path / "trained"
    given = [*options(tiny_checkpoint, small_corpus, output, *SAVING)]
    draw = random.Random(5)
    kill_while_saving(launch(*given), output, 2, draw.uniform(0, 0.1))
    done = newest_complete(output)
    assert done >= 2
    kill_while_saving(launch(*given, *RESUME), output, done, draw.uniform(0, 0.1))
    assert newest_complete(output) >= done
    shutil.rmtree(output / "checkpoint-6", ignore_errors=True)  # if it is complete, no step is left
    process = launch(*given, *RESUME)
    assert process.stdout
    for line in process.stdout:
        if line.startswith("step "):
            break
    os.kill(ranks_of(process)[0], signal.SIGTERM)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 143, printed
    assert "stopped by SIGTERM after step" in printed
    assert not (output / "config.json").exists()
    launch.to_the_end(*given, *RESUME)
    assert_same_run(uninterrupted, output)


@pytest.mark.slow
def test_run_killed_twenty_times_ends_at_the_same_weights(
    tmp_path: Path, launch: Launch, tiny_checkpoint: Path, small_corpus: Path, uninterrupted: Path
) -> None:
    """The run is killed during start-up, steps and saving; no complete checkpoint is lost."""
    output, draw = tmp_path / "trained", random.Random(11)
    given = [*options(tiny_checkpoint, small_corpus, output, *SAVING)]
    kills = 0
    while kills < 20:
        done = newest_complete(output)
        if done >= 4:  # start anew before the run is finished
            shutil.rmtree(output)
            done = 0
        process = launch(*given, *(RESUME if done else ()))
        if draw.random() < 0.6:
            kill_while_saving(process, output, done, draw.uniform(0, 0.15))
        else:
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=draw.uniform(3, 20))
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        kills += 1
        assert newest_complete(output) >= done
        if (output / "config.json").exists():
            shutil.rmtree(output)
    launch.to_the_end(*given, *(RESUME if newest_complete(output) else ()))
    assert_same_run(uninterrupted, output)


@pytest.mark.integration
def test_resuming_another_run_is_refused_without_accept_changes(
    tmp_path: Path, tiny_checkpoint: Path, small_corpus: Path
) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    train_here(*options(tiny_checkpoint, small_corpus, first, "--save_steps", 3))
    again.mkdir()
    shutil.copytree(first / "checkpoint-3", again / "checkpoint-3")
    given = options(tiny_checkpoint, small_corpus, again, "--save_steps", 3)
    with pytest.raises(ValueError, match="--resume_from_checkpoint True"):
        train_here(*given)
    for change, message in (
        (("--seed", 7), "--seed was 42 and is 7"),
        (("--gradient_accumulation_steps", 2), r"global batch \(.*\) was 4 and is 8"),
        (("--block_size", 96), "--block_size was 128 and is 96"),
        (("--eval_fraction", 0.2), "--eval_fraction was 0.0 and is 0.2"),
    ):
        with pytest.raises(ValueError, match=f"{message}.*; to resume it with these changes, give --accept_changes"):
            train_here(*given, *RESUME, *change)
    train_here(*given, *RESUME, "--gradient_accumulation_steps", 2, "--accept_changes", "--save_steps", 2)
    assert {path.name for path in again.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in (3, 4, 6)}
    sequences = [entry["sequences_small"] for entry in read_log(again) if "loss" in entry]
    assert sequences == [4, 8, 12, 20, 28, 36]


@pytest.mark.integration
def test_resumed_run_in_one_process_ends_at_the_same_weights(
    tmp_path: Path, tiny_checkpoint: Path, small_corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model has dropout; the incomplete checkpoint of a killed run is removed with a notice."""
    whole, resumed, base = tmp_path / "whole", tmp_path / "resumed", shutil.copytree(tiny_checkpoint, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.3}))
    train_here(*options(base, small_corpus, whole, "--save_steps", 3))
    shutil.copytree(whole / "checkpoint-3", resumed / "checkpoint-3")
    shutil.copytree(whole / "checkpoint-6", resumed / "checkpoint-5")
    (resumed / "checkpoint-5" / "optimizer.pt").unlink()
    train_here(*options(base, small_corpus, resumed, "--save_steps", 3, *RESUME))
    assert (
        f"notice: {resumed}/checkpoint-5 was incomplete, since the run was killed while saving it; it was removed\n"
        in capsys.readouterr().err
    )
    assert not (resumed / "checkpoint-5").exists()
    assert_same_run(whole, resumed)
    further = ("--resume_from_checkpoint", whole / "checkpoint-6", "--max_steps", 7)
    fact = f"{whole} holds a finished run, so nothing was done; to train it further, give "
    message = f"{fact}a new --output_dir, --resume_from_checkpoint {whole / 'checkpoint-6'} and a larger --max_steps"
    with pytest.raises(ValueError, match=re.escape(message)):
        train_here(*options(base, small_corpus, whole, *RESUME))
    train_here(*options(base, small_corpus, tmp_path / "further", *further))
    assert "further: 7 steps in " in capsys.readouterr().out
    for checkpoint in whole.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    with pytest.raises(ValueError, match=re.escape(f"{fact}--model_name_or_path {whole} and a new --output_dir")):
        train_here(*options(base, small_corpus, whole))


@pytest.mark.integration
def test_resumed_run_uses_the_learning_rate_weight_decay_and_schedule_of_its_command_line(
    tmp_path: Path, tiny_checkpoint: Path, small_corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a learning rate of almost zero, the weights hardly differ from those of the checkpoint."""
    run = tmp_path / "run"
    train_here(*options(tiny_checkpoint, small_corpus, run, "--save_steps", 3))
    (run / "config.json").unlink()
    shutil.rmtree(run / "checkpoint-6")
    with pytest.raises(ValueError, match="the checkpoint has 3 steps, but the run has only 2; give a larger"):
        train_here(*options(tiny_checkpoint, small_corpus, run, *RESUME, "--max_steps", 2))
    changes = ["--learning_rate", "1e-9", "--weight_decay", 0.5, "--adam_beta1", 0.8, "--lr_scheduler_type", "linear"]
    train_here(*options(tiny_checkpoint, small_corpus, run, "--save_steps", 3, "--warmup_steps", 0, *RESUME, *changes))
    assert "notice: --learning_rate: 1e-09 from this step on, 0.01 until now\n" in (notices := capsys.readouterr().err)
    assert "--weight_decay: 0.5 from this step on, 0.1 until now" in notices
    assert "--adam_beta1 and --adam_beta2: (0.8, 0.95) from this step on, (0.9, 0.95) until now" in notices
    before, after = (load_file(folder / "model.safetensors") for folder in (run / "checkpoint-3", run))
    assert max((after[name] - before[name]).abs().max() for name in before) < 1e-7
    rates = [entry["learning_rate"] for entry in read_log(run) if entry["step"] > 3 and "loss" in entry]
    assert rates == pytest.approx([1e-9 * (6 - step) / 6 for step in (3, 4, 5)])
    (group, *_) = torch.load(run / "checkpoint-6/optimizer.pt", weights_only=True)["param_groups"]
    assert (group["weight_decay"], group["betas"]) == (0.5, (0.8, 0.95))


@pytest.mark.slow
def test_one_rank_resumes_a_run_of_two_ranks(
    tmp_path: Path, launch: Launch, tiny_checkpoint: Path, small_corpus: Path, uninterrupted: Path
) -> None:
    """The weights are equal within rounding, and the sequences are the same in the same order."""
    resume_from_step_4(tmp_path, launch, tiny_checkpoint, small_corpus, uninterrupted, ranks=1)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["zero3", "zero2", "zero1"])
def test_resumed_bf16_run_is_bitwise_equal(
    tmp_path: Path, launch: Launch, tiny_checkpoint: Path, small_corpus: Path, config: str
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    given = [*options(tiny_checkpoint, small_corpus, whole, *SAVING, "--bf16", "True")]
    launch.to_the_end(*given, config=config)
    resumed.mkdir()
    shutil.copytree(whole / "checkpoint-4", resumed / "checkpoint-4")
    given[given.index(whole)] = resumed
    launch.to_the_end(*given, *RESUME, config=config)
    assert_same_run(whole, resumed)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [3, 4])
def test_four_ranks_resume_a_run_of_two_ranks_and_three_are_refused(
    tmp_path: Path, launch: Launch, tiny_checkpoint: Path, small_corpus: Path, uninterrupted: Path, ranks: int
) -> None:
    if ranks == 4:
        resume_from_step_4(tmp_path, launch, tiny_checkpoint, small_corpus, uninterrupted, ranks=4)
    else:
        with pytest.raises(AssertionError, match=r"global batch \(.*\) was 8 and is 6"):
            resume_from_step_4(tmp_path, launch, tiny_checkpoint, small_corpus, uninterrupted, ranks=3)


def resume_from_step_4(
    tmp_path: Path, launch: Launch, base: Path, corpus: Path, uninterrupted: Path, ranks: int
) -> None:
    output = tmp_path / "trained"
    output.mkdir()
    shutil.copytree(uninterrupted / "checkpoint-4", output / "checkpoint-4")
    before = sorted(path.name for path in (output / "checkpoint-4").rglob("*"))
    given = options(base, corpus, output, "--save_strategy", "no", *RESUME)
    given[given.index("--per_device_train_batch_size") + 1] = 8 // ranks
    launch.to_the_end(*given, ranks=ranks)
    one, other = load_file(uninterrupted / "model.safetensors"), load_file(output / "model.safetensors")
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-5
    for mine, theirs in zip(exact_entries(output), exact_entries(uninterrupted), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    assert (
        sorted(path.name for path in (output / "checkpoint-4").rglob("*")) == before
    )  # the converted checkpoint is removed


def test_resuming_a_deepspeed_checkpoint_without_deepspeed_is_refused(
    tmp_path: Path, tiny_checkpoint: Path, small_corpus: Path, uninterrupted: Path
) -> None:
    more = ("--use_cpu", "True", "--resume_from_checkpoint", uninterrupted / "checkpoint-4")
    given = options(tiny_checkpoint, small_corpus, tmp_path / "trained", *more)
    given[given.index("--per_device_train_batch_size") + 1] = 8
    with pytest.raises(ValueError, match="was written with --deepspeed"):
        train.make_trainer(*parse(list(map(str, given)), ""))


@pytest.mark.integration
def test_sigterm_saves_a_checkpoint_from_which_the_run_resumes_to_the_same_weights(
    tmp_path: Path, tiny_checkpoint: Path, small_corpus: Path
) -> None:
    """The signal also reaches the workers of the data loader. A run stopped before the first step saves nothing."""
    more, whole, stopped = ("--save_strategy", "no", "--max_steps", 30), tmp_path / "whole", tmp_path / "stopped"
    train_here(*options(tiny_checkpoint, small_corpus, whole, *more))
    given = options(tiny_checkpoint, small_corpus, stopped, *more)
    status, errors = stop_by_signal("pretrain/train.py", *given, after=str(small_corpus), number=signal.SIGHUP)
    assert status == 129 and "stopped by SIGHUP before the first step, without a" in errors
    status, errors = stop_by_signal("pretrain/train.py", *given, "--dataloader_num_workers", 2, group=True)
    assert status == 143 and "Traceback" not in errors, errors
    assert re.search(r"^stopped by SIGTERM after step \d+, with a checkpoint; the same command with", errors, re.M)
    checkpoint = only_checkpoint(stopped)
    assert checkpoints.is_complete(checkpoint) and 0 < checkpoints.step_of(checkpoint) < 30
    train_here(*given, *RESUME)
    assert_same_run(whole, stopped)


@pytest.mark.integration
def test_sequences_follow_the_source_weights_and_held_out_loss_is_by_source(
    tmp_path: Path, tiny_checkpoint: Path, two_sources: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights by name, by type and in the published form; batch size and --eval_only do not change held-out losses."""
    held_out = []
    for name, more, names, shares in (
        ("names", ["--source_weights", "zh=0.75,en=0.25", "--eval_fraction", 0.2], ["en", "zh"], [6, 18]),
        ("types", ["--global_batch_distributed", "[1,2]", "--per_device_eval_batch_size", 1], ["0", "1"], [8, 16]),
    ):
        train_here(*options(tiny_checkpoint, two_sources, tmp_path / name, "--save_strategy", "no", *more))
        last = [entry for entry in read_log(tmp_path / name) if "loss" in entry][-1]
        assert [last[f"sequences_{each}"] for each in names] == shares
    assert "used as proportions" in capsys.readouterr().err
    for size, mode in ((1, ("--learning_rate", "0", "--max_steps", "1")), (3, ("--eval_only", "True"))):
        held = ("--eval_fraction", 0.2, "--per_device_eval_batch_size", size, *mode)
        train_here(*options(tiny_checkpoint, two_sources, tmp_path / f"{size}", *held))
        held_out.append([entry for entry in read_log(tmp_path / f"{size}") if "eval_loss" in entry][-1])
    assert [(tmp_path / f"{size}/config.json").exists() for size in (1, 3)] == [True, False]
    keys = ("eval_loss", "eval_loss_en", "eval_perplexity_zh")
    assert [held_out[0][key] for key in keys] == pytest.approx([held_out[1][key] for key in keys], rel=1e-6)
