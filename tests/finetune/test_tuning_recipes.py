"""finetune/scripts/: each recipe tunes, stops on signals, resumes, and names a bad setting."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from conftest import QUANTISED, REPOSITORY, free_port
from resumable_checkpoints.complete_checkpoints import list_complete, step_of
from safetensors.torch import load_file
from tuning_runs import command

import finetune

RECIPES = REPOSITORY / "finetune" / "scripts"
Environment = dict[str, str]


@pytest.fixture
def settings(tmp_path: Path, tiny_checkpoint: Path, rows_file: Path, extensions: Path) -> Environment:
    return os.environ | {
        "BASE_MODEL": str(tiny_checkpoint), "DATA_PATH": str(rows_file), "OUTPUT_DIR": str(tmp_path / "out"),
        "VENV": str(Path(sys.executable).parent.parent), "TORCH_EXTENSIONS_DIR": str(extensions),
        "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": str(QUANTISED),
    }  # fmt: skip


OPTIONS = (
    "--report_to",
    "none",
    "--batch_size",
    "8",
    "--num_epochs",
    "1",
    "--save_steps",
    "4",
    "--learning_rate",
    "1e-3",
)


def start(recipe: str, env: Environment, *more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        ["bash", str(RECIPES / recipe), *OPTIONS, *more],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: "subprocess.Popen[str]") -> str:
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, output + errors
    return output


def test_lora_recipe_resumes_an_interrupted_run(
    tmp_path: Path, settings: Environment, tiny_checkpoint: Path, rows_file: Path
) -> None:
    more = ("--lora_r", 16, "--batch_size", 8, "--max_steps", 4, "--save_steps", 4, "--seed", 42, "--lora_alpha", 32)
    finetune.main(command(tiny_checkpoint, rows_file, tmp_path / "out", *more))
    (tmp_path / "out/adapter_model.safetensors").unlink()
    output = ended(start("lora.sh", settings, "--logging_steps", "1"))
    assert "step 8/8 | loss" in output
    assert "step 1/8" not in output
    assert (tmp_path / "out/adapter_model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["qlora.sh", "full.sh"])
def test_qlora_and_full_recipes_write_a_result(tmp_path: Path, settings: Environment, recipe: str) -> None:
    assert "8 steps of 8 examples" in ended(start(recipe, settings))
    name = "model" if recipe == "full.sh" else "adapter_model"
    assert load_file(tmp_path / f"out/{name}.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "ranks", "sent", "received"),
    [
        ("lora.sh", "2", signal.SIGTERM, signal.SIGTERM),
        ("lora.sh", "2", signal.SIGINT, signal.SIGTERM),
        ("lora.sh", "1", signal.SIGTERM, signal.SIGTERM),
        ("lora.sh", "1", signal.SIGINT, signal.SIGINT),
        ("lora.sh", "1", signal.SIGHUP, signal.SIGHUP),
        ("full.sh", "2", signal.SIGTERM, signal.SIGTERM),
        ("full.sh", "1", signal.SIGINT, signal.SIGTERM),
    ],
)
def test_signal_to_the_group_of_a_recipe_saves_a_checkpoint_and_leaves_no_process(
    tmp_path: Path, settings: Environment, recipe: str, ranks: str, sent: signal.Signals, received: signal.Signals
) -> None:
    process = start(
        recipe, settings | {"GPUS": ranks}, "--num_epochs", "999", "--logging_steps", "1", "--save_steps", "9999"
    )
    assert process.stdout
    for line in process.stdout:
        if line.startswith("step 2/"):
            os.killpg(process.pid, sent)
            break
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 143, errors
    assert errors.count(f"stopped by {received.name} after step") == 1 and "Traceback" not in errors, errors
    (checkpoint,) = list_complete(tmp_path / "out")
    assert step_of(checkpoint) >= 2
    for other in psutil.process_iter():
        with suppress(psutil.Error):
            assert str(tmp_path / "out") not in other.cmdline()


@pytest.mark.slow
def test_user_error_on_two_ranks_is_one_line(settings: Environment) -> None:
    process = start("lora.sh", settings | {"GPUS": "2", "DATA_PATH": "gone.json", "PYTHONPATH": ""})
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 2
    assert errors.startswith("error: gone.json does not exist") and errors.count("\n") == 1


@pytest.mark.slow
def test_multinode_recipe_tunes_on_two_nodes(tmp_path: Path, settings: Environment) -> None:
    meeting = {"NODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    nodes = [start("lora_multinode.sh", settings | meeting | {"NODE_RANK": str(rank)}) for rank in range(2)]
    outputs = [ended(node) for node in nodes]
    assert "8 steps of 8 examples, packed into sequences of at most 2048 tokens, on 2 ranks" in outputs[0]
    assert "examples:" not in outputs[1]


@pytest.mark.parametrize(
    ("recipe", "setting", "message"),
    [
        ("lora.sh", {"PRECISION": "half"}, "PRECISION=half is not bf16, fp16 or fp32"),
        ("lora.sh", {"BASE_MODEL": "gone"}, "BASE_MODEL=gone is not a checkpoint folder"),
        ("full.sh", {"CONFIG": "gone.json"}, "CONFIG=gone.json does not exist"),
        ("lora_multinode.sh", {"NODES": "2"}, "set NODES to the number of machines"),
        (
            "lora_multinode.sh",
            {"NODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "x"},
            "NODE_RANK=2 is out of range",
        ),
    ],
)
def test_bad_setting_is_an_error_of_one_line(
    settings: Environment, recipe: str, setting: Environment, message: str
) -> None:
    process = start(recipe, settings | setting)
    _, errors = process.communicate()
    assert process.returncode == 2
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert message in errors
