"""An interrupted tool goes on where it was: killed at any moment, the end is the same, to the byte."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from checkpoint_io import resume_journal
from checkpoint_io.checkpoint_folders import new_folder
from conftest import REPOSITORY
from in_process import RunTool
from safetensors.torch import load_file, save_file

SCRIPT = "tools/weight_diff.py"


def model(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text('{"vocab_size": 7}')
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, tuned and a LoRA adapter: 60 matrices, enough work for a kill to come in between."""
    top = tmp_path_factory.mktemp("kill")
    torch.manual_seed(0)
    base = {f"layers.{i}.q_proj.weight": torch.randn(400, 500).half() for i in range(60)}
    model(top / "base", base)
    model(
        top / "tuned",
        {name: (value.float() * (1 + 1e-3 * torch.randn_like(value.float()))).half() for name, value in base.items()},
    )
    adapter: dict[str, torch.Tensor] = {}
    for name in base:
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        adapter |= {f"{stem}.lora_A.weight": torch.randn(4, 500) * 0.01, f"{stem}.lora_B.weight": torch.randn(400, 4)}
    (top / "adapter").mkdir()
    save_file(adapter, top / "adapter/adapter_model.safetensors")
    (top / "adapter/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    return top


def commands(top: Path, out: Path) -> dict[str, list[object]]:
    """Each tool's command line, writing below `out` in shards."""
    base, few = ("--path_raw", top / "base"), ("--max_shard_size", "5MB")
    return {
        "make_diff": ["make_diff", *base, "--path_tuned", top / "tuned", "--path_diff", out / "diff", *few],
        "recover": ["recover", *base, "--path_diff", top / "diff", "--path_tuned", out / "back", *few],
        "merge": [
            "merge", "--path_zhixi", top / "base", "--path_lora", top / "adapter", "--path_sfted", out / "merged", *few,
        ],
    }  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "run.json"}


def start(arguments: list[object]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / SCRIPT), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def killed_in_between(arguments: list[object], partial: Path, lines: int) -> int:
    """Start the command, kill it when its journal has that many lines; returns how many it then has (0: it ended)."""
    process = start(arguments)
    while process.poll() is None:
        if (partial / resume_journal.JOURNAL).is_file() and len(
            (partial / resume_journal.JOURNAL).read_bytes().splitlines()
        ) > lines:
            process.kill()
            process.wait()
            return len(resume_journal.finished_parts(partial))
        time.sleep(0.002)
    assert process.returncode == 0, process.communicate()
    return 0


def chain(top: Path, out: Path, name: str, moments: list[int], run_tool: RunTool) -> None:
    """Kill the command at each of the moments, let it end, and compare with a run that was left alone."""
    arguments = commands(top, out)[name]
    target = Path(str(arguments[6]))
    done = []
    for moment in moments:
        if not (killed := killed_in_between(arguments, target.with_name(f"{target.name}.partial"), moment)):
            break
        done.append(killed)
    assert len(done) >= len(moments) // 2, done
    assert done == sorted(done)  # nothing that was finished is lost
    if not target.exists():
        run_tool(SCRIPT, *arguments)
    straight = Path(str(commands(top, out / "straight")[name][6]))
    run_tool(SCRIPT, *commands(top, out / "straight")[name])
    assert contents(target) == contents(straight)
    assert not list(out.glob("*.partial"))


@pytest.fixture(scope="module")
def made_diff(folders: Path, run_tool: RunTool) -> Path:
    run_tool(
        SCRIPT,
        "make_diff",
        "--path_raw",
        folders / "base",
        "--path_tuned",
        folders / "tuned",
        "--path_diff",
        folders / "diff",
    )
    return folders / "diff"


@pytest.mark.parametrize("name", ["make_diff", "recover", "merge"])
def test_killed_twice_the_end_is_the_same(
    folders: Path, made_diff: Path, tmp_path: Path, run_tool: RunTool, name: str
) -> None:
    chain(folders, tmp_path, name, [8, 30], run_tool)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["make_diff", "recover", "merge"])
def test_killed_twenty_times_the_end_is_the_same(
    folders: Path, made_diff: Path, tmp_path: Path, run_tool: RunTool, name: str
) -> None:
    draw = random.Random(name)
    chain(folders, tmp_path, name, sorted(draw.sample(range(1, 58), 20)), run_tool)


def test_finished_tensors_are_not_made_again(folders: Path, made_diff: Path, tmp_path: Path, run_tool: RunTool) -> None:
    """What was written stays as it is on the disk: the same file, grown."""
    arguments = commands(folders, tmp_path)["recover"]
    killed_in_between(arguments, tmp_path / "back.partial", 20)
    first = tmp_path / "back.partial/model-00001-of-00005.safetensors"
    before = first.stat()
    run_tool(SCRIPT, *arguments)
    after = (tmp_path / "back" / first.name).stat()
    assert (after.st_ino, after.st_ctime_ns > 0, after.st_size) == (before.st_ino, True, before.st_size)


def test_what_was_damaged_in_between_is_made_again(
    folders: Path, made_diff: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    arguments = commands(folders, tmp_path)["recover"]
    killed_in_between(arguments, tmp_path / "back.partial", 25)
    first = tmp_path / "back.partial/model-00001-of-00005.safetensors"
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    first.write_bytes(content)
    run_tool(SCRIPT, *arguments)
    back = {
        name: value for file in (tmp_path / "back").glob("*.safetensors") for name, value in load_file(file).items()
    }
    assert all(torch.equal(back[n], value) for n, value in load_file(folders / "tuned/model.safetensors").items())


def test_other_input_begins_anew(folders: Path, made_diff: Path, tmp_path: Path, run_tool: RunTool) -> None:
    """A partial folder of a run with other files or options is not gone on with."""
    base = shutil.copytree(folders / "base", tmp_path / "base")
    arguments: list[object] = ["merge", "--path_zhixi", base, "--path_lora", folders / "adapter"]
    arguments += ["--path_sfted", tmp_path / "merged"]
    partial = tmp_path / "merged.partial"
    assert killed_in_between(arguments, partial, 30) >= 30
    state = load_file(base / "model.safetensors")
    save_file({name: -value for name, value in state.items()}, base / "model.safetensors", {"format": "pt"})
    run_tool(SCRIPT, *arguments)
    run_tool(SCRIPT, *arguments[:-1], tmp_path / "straight")
    assert contents(tmp_path / "merged") == contents(tmp_path / "straight")


def test_control_c_keeps_what_is_done_and_says_so(folders: Path, tmp_path: Path) -> None:
    arguments = commands(folders, tmp_path)["make_diff"]
    process = start(arguments)
    while not (tmp_path / "diff.partial" / resume_journal.JOURNAL).is_file():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.strip() == "interrupted; the same command goes on where it was"
    assert (tmp_path / "diff.partial").is_dir()
    assert not (tmp_path / "diff").exists()


def test_two_runs_do_not_write_one_folder(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out", 0, "a run") as folder:
        (folder / "kept").write_text("x")
        with (
            pytest.raises(ValueError, match=r"out\.partial is being written by another process"),
            new_folder(tmp_path / "out", 0, "a run"),
        ):
            pass
        assert (folder / "kept").is_file()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["kept"]
