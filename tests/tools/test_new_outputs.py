"""New folders and files of the tools: one writer at a time; bad targets are refused before anything is computed."""

import multiprocessing
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from in_process import RunTool
from partial_folders import atomic_outputs
from partial_folders.atomic_outputs import new_file, new_folder
from tokenizers import Tokenizer, models

WRITERS = 4
BLOCK = 1 << 12  # bytes
Commands = list[list[object]]


def write_at_once(number: int, target: Path, start: Any, results: Any) -> None:
    """Write blocks of one byte value to a new file when all processes are ready; put (number, error) into a queue."""
    start.wait()
    try:
        with new_file(target) as path, path.open("wb", buffering=0) as file:
            for _ in range(40):
                file.write(bytes([number]) * BLOCK)
        results.put((number, ""))
    except ValueError as error:
        results.put((number, str(error)))


def test_one_of_several_processes_writes_the_whole_file_and_the_others_are_refused(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    for turn in range(5):
        target, start, results = tmp_path / f"{turn}.bin", fork.Barrier(WRITERS), fork.SimpleQueue()
        processes = [fork.Process(target=write_at_once, args=(n, target, start, results)) for n in range(WRITERS)]
        for process in processes:
            process.start()
        outcomes = dict(results.get() for _ in processes)
        for process in processes:
            process.join()
        [winner] = [number for number, error in outcomes.items() if not error]
        refused = (
            "is being written by another process; wait for it or write elsewhere",
            "name a new file or remove it",
        )
        assert all(error.endswith(refused) for number, error in outcomes.items() if number != winner), outcomes
        assert target.read_bytes() == bytes([winner]) * BLOCK * 40
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".bin"] * 5


@pytest.mark.parametrize("write", [new_folder, new_file])
def test_second_process_is_refused_until_the_first_output_has_its_name(
    write: Callable[..., AbstractContextManager[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, flush, refused = tmp_path / "out", atomic_outputs.fsync_path, []

    def flush_while_another_process_starts(path: Path) -> None:
        with pytest.raises(ValueError, match=r"out\.partial is being written by another process"), write(target, 0):
            pass
        refused.append(path)
        flush(path)

    monkeypatch.setattr(atomic_outputs, "fsync_path", flush_while_another_process_starts)
    with write(target, 0) as path:
        (path / "part" if path.is_dir() else path).write_text("whole")
    assert refused and [path.name for path in tmp_path.iterdir()] == ["out"]
    files = [target] if target.is_file() else list(target.iterdir())
    assert [file.read_text() for file in files] == ["whole"]


def test_output_through_a_link_is_written_beside_the_linked_folder(
    tiny_checkpoint: Path, tuned: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    (tmp_path / "elsewhere/empty").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    (tmp_path / "here/link").symlink_to("../elsewhere/empty")
    with pytest.raises(KeyError), new_folder(tmp_path / "here/link", 0) as partial:
        assert partial == tmp_path / "elsewhere/empty.partial"
        raise KeyError
    command = ["tools/weight_diff.py", "make_diff", "--path_raw", tiny_checkpoint, "--path_tuned", tuned]
    run_tool(*command, "--path_diff", tmp_path / "here/link")
    assert (tmp_path / "here/link").is_symlink()
    assert (tmp_path / "elsewhere/empty/diff.safetensors").is_file()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["empty"]
    (tmp_path / "new").symlink_to(tmp_path / "not/there")
    with new_file(tmp_path / "new") as file:
        file.write_text("x")
    assert (tmp_path / "not/there").read_text() == "x"


def broken(folder: Path, target: Path) -> None:
    """Copy a model and truncate its shard, so that the copy cannot be read."""
    shutil.copytree(folder, target)
    shard = target / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])


@pytest.fixture
def commands(tiny_checkpoint: Path, adapter: Path, tmp_path: Path) -> Commands:
    """Return commands that write a folder or a file, without their target; their model is damaged."""
    model = tmp_path / "damaged"
    broken(tiny_checkpoint, model)
    pair = ("--path_raw", model)
    template = REPOSITORY / "finetune/templates/alpaca.jinja"
    return [
        ["tools/weight_diff.py", "make_diff", *pair, "--path_tuned", model, "--path_diff"],
        ["tools/weight_diff.py", "recover", *pair, "--path_diff", model, "--path_tuned"],
        ["tools/weight_diff.py", "merge", "--path_zhixi", model, "--path_lora", adapter, "--path_sfted"],
        ["tools/export_hf_checkpoint.py", "--base_model", model, "--lora_model", adapter, "--output_dir"],
        ["tools/quantize.py", "--model_path", model, "--method", "fp8", "--output_dir"],
        ["tools/set_template.py", "--model_path", model, "--template_path", template, "--output_dir"],
        ["tools/build_tokenizer.py", "--tokenizer_model", model / "tokenizer.model", "--output_dir"],
        ["tools/export_gguf.py", "--model_path", model, "--output_file"],
        ["tools/download.py", "--specify", "True", "--repo_name", "some/thing", "--download_path"],
    ]


def test_target_inside_a_sealed_folder_is_refused_before_the_model_is_read(
    commands: Commands, tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    sealed = shutil.copytree(tiny_checkpoint, tmp_path / "sealed")
    run_tool("tools/checkpoint.py", "seal", sealed)
    before = sorted(sealed.rglob("*"))
    for command in commands:
        done = run_tool(*command, sealed / "more/out.gguf", status=2)
        message = f"{sealed}/more/out.gguf is inside the sealed folder {sealed}, which must not change; write elsewhere"
        assert done.stderr == f"error: {message}\n", command
    assert sorted(sealed.rglob("*")) == before
    run_tool("tools/checkpoint.py", "verify", sealed)


def test_impossible_target_is_refused_in_one_line_before_the_model_is_read(
    commands: Commands, tmp_path: Path, run_tool: RunTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file.gguf").write_text("here before")
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    monkeypatch.chdir(tmp_path / "empty")
    for command in commands:
        for target, reason in (
            (tmp_path / "file.gguf/out.gguf", "file.gguf is not a folder"),
            (tmp_path / "loop.gguf", "is a link that leads to itself"),
        ):
            done = run_tool(*command, target, status=2)
            assert reason in done.stderr and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, command
        if command[0] in ("tools/build_tokenizer.py", "tools/export_gguf.py"):
            continue  # the first writes into an existing folder, the second writes a file
        for current in (".", str(tmp_path / "empty")):
            message = f"error: {current} is the current folder, which cannot be replaced; name a new folder\n"
            assert run_tool(*command, current, status=2).stderr.endswith(message), command
    assert (tmp_path / "file.gguf").read_text() == "here before"
    assert {path.name for path in tmp_path.iterdir()} == {"file.gguf", "empty", "loop.gguf", "damaged"}


@pytest.mark.parametrize("kind", ["-t tmpfs none", "--bind source"])
def test_mount_point_is_refused_before_anything_is_computed(
    tiny_checkpoint: Path, tuned: Path, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "out").mkdir()
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount anything")
    command = f"{sys.executable} {REPOSITORY}/tools/weight_diff.py make_diff --path_diff out"
    command += f" --path_raw {tiny_checkpoint} --path_tuned {tuned}"
    script = ["unshare", "-rm", "sh", "-c", f"mount {kind} out && {command}; echo $?; ls -A . out"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["2", ".:", "out", "source", "out:"]
    assert done.stderr.startswith("error: out ") and done.stderr.endswith("; name a folder inside it\n")
    assert done.stderr.count("\n") == 1


def test_probe_folder_left_by_a_killed_run_does_not_stop_the_next_run(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out.partial/.empty").mkdir(parents=True)
    with new_folder(tmp_path / "out", 0) as partial:
        (partial / "file").write_text("new")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]


def test_unwritable_target_is_named_and_missing_input_is_not_taken_for_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="/dev/null is a device or pipe; name a file"):
        new_file("/dev/null", replace=True).__enter__()
    (tmp_path / "a.partial").write_text("not a folder")
    with pytest.raises(ValueError, match=r"a\.partial is a file, not the folder of an unfinished result; remove it"):
        new_file(tmp_path / "a").__enter__()
    with pytest.raises(FileNotFoundError, match="model-raw"), new_folder(tmp_path / "model", 0):
        (tmp_path / "model-raw/config.json").read_text()  # an input whose name begins with the output's name


def test_failing_disk_in_a_rust_library_raises_os_error(tmp_path: Path) -> None:
    """On Linux, writing to address 0 of this process's memory is an I/O error."""
    words = Tokenizer(models.WordLevel({"a": 0}, "a"))
    with pytest.raises(OSError, match="Input/output error"), new_folder(tmp_path / "model", 0):
        words.save("/proc/self/mem")
    assert not list(tmp_path.iterdir())
