"""finetune/finetune.py: the result folder, resuming, Ctrl-C, and refusals."""

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_prompts.template_files import folder_template
from conftest import RunScript
from instruction_data.named_templates import load_template
from instruction_tuning.result_folder import sha256
from resumable_checkpoints.complete_checkpoints import is_complete, step_of
from safetensors.torch import load_file, save_file
from stopped_runs import only_checkpoint, stop_by_signal
from transformers import AutoModelForCausalLM, AutoTokenizer
from tuning_runs import SMALL, command

import finetune

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def tuned(
    tmp_path_factory: pytest.TempPathFactory, run_script: RunScript, tiny_checkpoint: Path, rows_file: Path
) -> Any:
    """The output of a user's run, and the adapter folder that it wrote."""
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "extraction.json").write_text('{"tasks": {"ner": {"en": {"instruction": "Extract the entities."}}}}')
    done = run_script(
        "finetune/finetune.py", "--base_model", tiny_checkpoint, "--data_path", rows_file, "--output_dir", folder / "a",
        "--batch_size", 8, "--micro_batch_size", 4, "--max_steps", 4, "--val_set_size", 6, "--evaluation_strategy",
        "steps", "--eval_steps", 4, "--extraction_path", folder / "extraction.json", "--cache_dir", folder / "cache",
        *SMALL,
    )  # fmt: skip
    return done, folder / "a"


def test_result_folder_holds_adapter_tokenizer_template_and_records(
    tuned: Any, tiny_checkpoint: Path, rows_file: Path
) -> None:
    _, folder = tuned
    assert {file.name for file in folder.iterdir() if file.is_file()} == {
        "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "extraction.json", "run.json",
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "train_log.jsonl", "training_curves.png",
    }  # fmt: skip
    assert (folder / "tokenizer.model").read_bytes() == (tiny_checkpoint / "tokenizer.model").read_bytes()
    assert (folder / "extraction.json").read_bytes() == (folder.parent / "extraction.json").read_bytes()
    assert AutoTokenizer.from_pretrained(folder).chat_template == load_template("alpaca")
    run = json.loads((folder / "run.json").read_text())
    assert run["seed"] == 1
    assert run["arguments"]["lora_r"] == 4
    assert run["data"] == {str(rows_file): sha256(str(rows_file))}
    assert run["examples"]["rows"]["kept"] == 60
    assert run["held_out"] == 6
    assert run["packed"] is True
    log = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4]
    assert log[3]["loss"] < log[0]["loss"]
    assert any("eval_loss" in entry for entry in log)


def test_run_prints_its_data_progress_and_next_commands(tuned: Any) -> None:
    done, folder = tuned
    assert "examples: 60 kept, 0 of them truncated, 0 dropped" in done.stdout
    assert re.search(
        r"tokens: \d+, \d\d\.\d% of them supervised; per example: median \d+, 90 % up to \d+, longest \d+; held out: 6",
        done.stdout,
    )
    assert "4 steps of 8 examples, packed into sequences of at most 2048 tokens, on 1 rank\n" in done.stdout
    assert done.stdout.count("⟦") == 3
    assert re.search(r"step 4/4 \| loss \d\.\d+ \| grad [\d.]+ \| lr \S+ \| [\d,]+ supervised tokens/s", done.stdout)
    assert re.search(r"step 4/4 \| held out: loss \d\.\d+", done.stdout)
    assert f"--path_lora {folder} --path_sfted {folder}-merged" in done.stdout.splitlines()[-1]
    assert "notice: --evaluation_strategy is now --eval_strategy steps" in done.stderr


def test_run_of_one_step_trains_without_warm_up_and_counts_bad_rows(
    tmp_path: Path, tiny_checkpoint: Path, rows: list[dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """24 good rows, one with a number as input and one line that is not JSON, in one epoch of one step."""
    data = tmp_path / "data.jsonl"
    bad = [json.dumps({"instruction": "q", "input": 0, "output": "a"}), "no JSON"]
    data.write_text("".join(f"{line}\n" for line in [*map(json.dumps, rows[:24]), *bad]))
    more = ("--num_epochs", 1, "--batch_size", 24, "--on_error", "skip", "--save_strategy", "no")
    finetune.main(command(tiny_checkpoint, data, tmp_path / "out", *more))
    printed = capsys.readouterr().out
    assert (
        "examples: 24 kept, 0 of them truncated, 2 dropped (1: has an input that is not text; "
        "1: is not JSON (Expecting value at 'no JSON'))\n"
    ) in printed
    assert (
        "1 step of 24 examples, packed into sequences of at most 2048 tokens, on 1 rank, without warm-up\n" in printed
    )
    [entry] = [json.loads(line) for line in (tmp_path / "out/train_log.jsonl").read_text().splitlines()][:1]
    assert (entry["step"], entry["learning_rate"]) == (1, 0.01)
    assert all(weight.any() for weight in load_file(tmp_path / "out/adapter_model.safetensors").values())
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert run["examples"]["data"]["dropped"] == {
        "has an input that is not text": 1, "is not JSON (Expecting value at 'no JSON')": 1,
    }  # fmt: skip


def test_adapter_on_lm_head_stores_no_copy_of_lm_head(
    tmp_path: Path, tiny_checkpoint: Path, rows_file: Path, run_script: RunScript
) -> None:
    """PEFT's default stores the matrix of lm_head beside its adapter; the merged checkpoint has all trained changes."""
    more = ("--batch_size", "4", "--max_steps", "2", "--lora_target_modules", "[q_proj,lm_head]")
    finetune.main(command(tiny_checkpoint, rows_file, tmp_path / "adapter", *more))
    adapter, out = tmp_path / "adapter", tmp_path / "merged"
    names = set(load_file(adapter / "adapter_model.safetensors"))
    assert len(names) == 2 * (2 + 1) and all(".lora_" in name for name in names)
    folders = ("--path_zhixi", tiny_checkpoint, "--path_lora", adapter, "--path_sfted", out)
    run_script("tools/weight_diff.py", "merge", *folders)
    base, merged = (load_file(folder / "model.safetensors") for folder in (tiny_checkpoint, out))
    assert {name for name in base if not torch.equal(base[name], merged[name])} == {
        "lm_head.weight", *(f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(2))
    }  # fmt: skip


def test_resumed_run_writes_the_same_adapter_to_the_byte(
    tmp_path: Path, tiny_checkpoint: Path, rows_file: Path
) -> None:
    """With dropout, and an interruption in the middle of an epoch."""
    more = ["--batch_size", "8", "--micro_batch_size", "4", "--max_steps", "10", "--save_steps", "3"]
    more += ["--save_total_limit", "9"]
    finetune.main(command(tiny_checkpoint, rows_file, tmp_path / "whole", *more))
    shutil.copytree(tmp_path / "whole/checkpoint-3", tmp_path / "broken/checkpoint-3")
    again = ["--resume_from_checkpoint", "True"]
    finetune.main(command(tiny_checkpoint, rows_file, tmp_path / "broken", *more, *again))
    adapters = [tmp_path / name / "adapter_model.safetensors" for name in ("whole", "broken")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    with pytest.raises(ValueError, match="nothing was done; to train it further, give --resume_from_checkpoint True"):
        finetune.main(command(tiny_checkpoint, rows_file, tmp_path / "broken", *more))
    assert (
        finetune.main(command(tiny_checkpoint, rows_file, tmp_path / "broken", *more, *again, "--max_steps", 11)) == 0
    )
    with pytest.raises(ValueError, match="is of another run: --seed was 1 and is 2; --lora_r was 4 and is 8; give the"):
        finetune.main(
            command(tiny_checkpoint, rows_file, tmp_path / "whole", *more, *again, "--seed", 2, "--lora_r", 8)
        )
    with pytest.raises(ValueError, match="the checkpoint has 11 steps, but the run has only 2; give a larger"):
        finetune.main(command(tiny_checkpoint, rows_file, tmp_path / "broken", *more, *again, "--max_steps", "2"))
    with pytest.raises(ValueError, match="is not complete"):
        finetune.main(command(tiny_checkpoint, rows_file, tmp_path / "x", "--resume_from_checkpoint", str(tmp_path)))
    with pytest.raises(FileNotFoundError, match="holds no complete checkpoint"):
        finetune.main(command(tiny_checkpoint, rows_file, tmp_path / "x", *again))
    assert not (tmp_path / "x").exists()


def test_run_that_resumes_without_prompt_template_name_keeps_its_template(
    tmp_path: Path, tiny_checkpoint: Path, rows_file: Path
) -> None:
    given = command(tiny_checkpoint, rows_file, tmp_path / "adapter", "--batch_size", 8, "--save_steps", 1)
    finetune.main([*given, "--max_steps", "1", "--prompt_template_name", "alpaca_short"])
    finetune.main([*given, "--max_steps", "2", "--resume_from_checkpoint", "True"])
    assert folder_template(tmp_path / "adapter") == load_template("alpaca_short")


@pytest.mark.integration
def test_ctrl_c_saves_a_checkpoint_from_which_the_run_resumes_to_the_same_weights(
    tmp_path: Path, tiny_checkpoint: Path, rows_file: Path
) -> None:
    more = ("--batch_size", 8, "--max_steps", 40, "--save_strategy", "no", "--lora_dropout", 0.1)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    finetune.main(command(tiny_checkpoint, rows_file, whole, *more))
    given = command(tiny_checkpoint, rows_file, stopped, *more)
    status, errors = stop_by_signal(
        "finetune/finetune.py", *given, "--dataloader_num_workers", 2, group=True, number=signal.SIGINT
    )
    assert status == 143 and "Traceback" not in errors, errors
    assert re.search(r"^stopped by SIGINT after step \d+, with a checkpoint; the same command with", errors, re.M)
    checkpoint = only_checkpoint(stopped)
    assert is_complete(checkpoint)
    assert 0 < step_of(checkpoint) < 40
    assert finetune.main([*given, "--resume_from_checkpoint", "True"]) == 0
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (whole, stopped))
    assert all(torch.equal(one[name], other[name]) for name in one)
    logs = [(folder / "train_log.jsonl").read_text().splitlines() for folder in (whole, stopped)]
    losses = [[entry["loss"] for entry in map(json.loads, log) if "loss" in entry] for log in logs]
    assert losses[0] == losses[1]


def test_base_with_missing_or_unknown_weights_is_refused(
    tmp_path: Path, tiny_checkpoint: Path, rows_file: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    weights = load_file(broken / "model.safetensors")
    lost = "model.layers.0.mlp.up_proj.weight"
    for changed in (
        {name: weight for name, weight in weights.items() if name != lost},
        weights | {"x.weight": weights[lost].clone()},
    ):
        save_file(changed, broken / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"tensors missing, unknown or of another shape: 1 \(.*, for example\)"):
            finetune.main(command(broken, rows_file, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_full_tuning_writes_a_checkpoint(
    tmp_path: Path, tiny_checkpoint: Path, rows_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--method", "full", "--batch_size", "4", "--max_steps", "1", "--prompt_template_name", "alpaca_short")
    finetune.main(command(tiny_checkpoint, rows_file, tmp_path / "full", *more))
    loading: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "full", output_loading_info=True)
    assert not loading[1]["missing_keys"]
    assert AutoTokenizer.from_pretrained(tmp_path / "full").chat_template == load_template("alpaca_short")
    assert (tmp_path / "full/generation_config.json").is_file()
    assert "serve it: python inference/launch_vllm.py" in capsys.readouterr().out


def test_non_finite_loss_ends_the_run_without_an_adapter(
    tmp_path: Path, tiny_checkpoint: Path, rows_file: Path
) -> None:
    more = ("--learning_rate", "1e30", "--batch_size", "4", "--max_steps", "6", "--warmup_steps", "0")
    with pytest.raises(ValueError, match=r"not finite .* step \d; lower --learning_rate"):
        finetune.main(command(tiny_checkpoint, rows_file, tmp_path / "nan", *more))
    assert not list((tmp_path / "nan").glob("adapter*"))


@pytest.mark.integration
def test_missing_base_is_an_error_of_one_line_and_writes_nothing(
    tmp_path: Path, tiny_checkpoint: Path, rows_file: Path, run_script: RunScript
) -> None:
    done = run_script("finetune/finetune.py", *command(tmp_path / "gone", rows_file, tmp_path / "out"), status=2)
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'gone'} does not exist")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_error_for_unusable_input_names_it_and_writes_nothing(
    tmp_path: Path, tiny_checkpoint: Path, rows_file: Path
) -> None:
    no_tokenizer, adapter, empty, full = (tmp_path / name for name in ("no_tokenizer", "adapter", "empty", "full"))
    for folder, file in ((no_tokenizer, "config.json"), (adapter, "adapter_config.json"), (full, "x")):
        folder.mkdir()
        (folder / file).write_text("{}")
    empty.mkdir()
    (tmp_path / "nothing.jsonl").write_text("")
    output, base = tmp_path / "out", tiny_checkpoint
    unsavable = shutil.copytree(base, tmp_path / "unsavable")
    listed = [{"name": name, "template": "{{ messages }}"} for name in ("default", "tool/use")]
    config = json.loads((base / "tokenizer_config.json").read_text())
    (unsavable / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": listed}))
    sampling = shutil.copytree(base, tmp_path / "sampling")
    (sampling / "generation_config.json").write_text('{"temperature": 0.9}')
    for argv, message in (
        (command(empty, rows_file, output), "no config.json, so it is not a checkpoint folder"),
        (command(no_tokenizer, rows_file, output), "has no tokenizer.json and no tokenizer.model"),
        (command(adapter, rows_file, output), "is an adapter; merge it first"),
        (command(unsavable, rows_file, output), "tokenizer_config.json: 'tool/use' cannot be the file name of a chat"),
        (command(sampling, rows_file, output, "--method", "full"), "generation_config.json cannot be saved by transf"),
        (command(base, tmp_path / "nothing.jsonl", output), "holds no rows"),
        (command(base, rows_file, full), "exists and is not empty"),
        (command(base, rows_file, output, "--prompt_template_name", "vicuna"), "take one of alpaca, alpaca_short"),
        (command(base, rows_file, output, "--cutoff_len", "20"), "has no usable row (60 x longer than 20 tokens)"),
        (command(base, rows_file, output, "--cutoff_len", "513"), f"more than the context of {base}, 512 tokens"),
        (command(base, rows_file, output, "--lora_target_modules", "[q_proj,w_proj]"), "model has no module w_proj; "),
        (command(base, rows_file, output, "--lora_target_modules", "layers.2.mlp.up_proj"), "no module layers.2."),
        (command(base, rows_file, output, "--lora_modules_to_save", "head"), "_modules_to_save: the model has n"),
        (command(base, rows_file, output, "--extraction_path", "gone.json"), "gone.json does not exist"),
        (command(base, rows_file, output, "--eval_data_path", "gone.jsonl"), "gone.jsonl does not exist"),
        (command(base, rows_file, output, "--val_set_size", "0.001"), "holds out no example of 60; give a number"),
        (command(base, rows_file, output, "--mix", "zh=1"), "the sources are rows"),
        (command(base, rows_file, output, "--batch_size", "6"), "take --batch_size 4 or 8"),
    ):  # fmt: skip
        with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
            finetune.main(argv)
        assert not output.exists()
    assert [file.name for file in full.iterdir()] == ["x"]
