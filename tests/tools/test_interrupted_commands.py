"""A tool that was killed or interrupted resumes or starts over, as its message says, with the same result."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, RunScript
from in_process import RunTool
from llama_cpp_server import write_model
from original_llama import TINY, random_state, write_original
from partial_folders import resume_journal
from partial_folders.atomic_outputs import new_folder
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

pytestmark = pytest.mark.integration

Command = tuple[list[object], Path]  # script and arguments, and the folder or file that it writes
RESUMING = ["make_diff", "make_diff_additive", "recover", "merge", "export", "convert", "gguf"]


def model(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text('{"vocab_size": 7}')
    Tokenizer(models.BPE()).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with base, tuned and a LoRA adapter of 60 matrices, enough work to be killed in between."""
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


def command(name: str, top: Path, out: Path) -> Command:
    """Return the command of a tool that can resume; it reads folders below `top` and writes below `out`."""
    script, few = "tools/weight_diff.py", ("--max_shard_size", "5MB")
    adapter, base = top / "adapter", ("--path_raw", top / "base")
    pair = (*base, "--path_tuned", top / "tuned")
    lines: dict[str, Command] = {
        "make_diff": ([script, "make_diff", *pair, "--path_diff", out / "diff", *few], out / "diff"),
        "make_diff_additive": (
            [script, "make_diff", *pair, "--path_diff", out / "sum", *few, "--exact=False"],
            out / "sum",
        ),
        "recover": (
            [script, "recover", *base, "--path_diff", top / "diff", "--path_tuned", out / "back", *few], out / "back",
        ),
        "merge": (
            [script, "merge", "--path_zhixi", top / "base", "--path_lora", adapter, "--path_sfted", out / "merged",
             *few],
            out / "merged",
        ),
        "export": (
            ["tools/export_hf_checkpoint.py", "--base_model", top / "base", "--lora_model", adapter,
             "--output_dir", out / "export", *few],
            out / "export",
        ),
        "convert": (
            ["tools/convert_llama.py", "--input_dir", top / "original", "--model_size", "auto",
             "--output_dir", out / "converted", "--check_path", top / "text.txt"],
            out / "converted",
        ),
        "gguf": (
            ["tools/export_gguf.py", "--model_path", top / "llama", "--output_file", out / "model.gguf"],
            out / "model.gguf",
        ),
    }  # fmt: skip
    return lines[name]


def contents(path: Path) -> dict[str, bytes]:
    """Return the bytes of a file, or of every file of a folder except run.json, which contains names of folders."""
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.name != "run.json"]
    return {file.name: file.read_bytes() for file in files}


def start(arguments: list[object]) -> "subprocess.Popen[str]":
    script, *rest = map(str, arguments)
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / script), *rest], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def partial_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial")


def killed_in_between(command: Command, lines: int) -> int:
    """Kill the command once its journal has more than `lines` lines; return the finished parts, or 0 if it ended."""
    process, journal = start(command[0]), partial_of(command[1]) / resume_journal.JOURNAL
    while process.poll() is None:
        if journal.is_file() and len(journal.read_bytes().splitlines()) > lines:
            process.kill()
            process.wait()
            return len(resume_journal.finished_parts(journal.parent))
        time.sleep(0.002)
    assert process.returncode == 0, process.communicate()
    return 0


def interrupted(arguments: list[object], ready: Callable[[int], bool]) -> str:
    """Start a command, send SIGINT once ready(process id) is true, and return its message; its exit status is 130."""
    process = start(arguments)
    while not ready(process.pid):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=120)
    assert process.returncode == 130, message
    return message.strip()


def kill_and_finish(top: Path, out: Path, name: str, moments: list[int], run_tool: RunTool) -> None:
    """Kill the command at each moment (a number of journal lines), let it finish, compare with an undisturbed run."""
    running = command(name, top, out)
    done = []
    for moment in moments:
        if not (finished := killed_in_between(running, moment)):
            break
        done.append(finished)
    assert len(done) >= len(moments) // 2, done
    assert done == sorted(done)  # no finished part is lost
    if not running[1].exists():
        run_tool(*running[0])
    straight = command(name, top, out / "straight")
    straight[1].parent.mkdir(exist_ok=True)
    run_tool(*straight[0])
    assert contents(running[1]) == contents(straight[1])
    assert not list(out.glob("*.partial"))


@pytest.fixture(scope="module")
def inputs(folders: Path, tiny_tokenizer: Path, run_tool: RunTool) -> Path:
    """Return `folders`, extended by a diff, an original LLaMA and a LLaMA checkpoint of many layers."""
    arguments, made = command("make_diff", folders, folders)
    run_tool(*arguments)
    assert made.is_dir()
    params = TINY | {"n_layers": 40}
    state = random_state(params, 800, torch.float16)
    write_original(folders / "original", params, state, tiny_tokenizer / "tokenizer.model", 2)
    (folders / "text.txt").write_text("a line")
    write_model(folders / "llama", tiny_tokenizer, num_hidden_layers=40)
    return folders


@pytest.mark.parametrize("name", RESUMING)
def test_command_killed_twice_resumes_to_same_result(
    inputs: Path, tmp_path: Path, run_tool: RunTool, name: str
) -> None:
    if name == "gguf":
        pytest.importorskip("gguf")
    kill_and_finish(inputs, tmp_path, name, [8, 30], run_tool)


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMING)
def test_command_killed_twenty_times_resumes_to_same_result(
    inputs: Path, tmp_path: Path, run_tool: RunTool, name: str
) -> None:
    if name == "gguf":
        pytest.importorskip("gguf")
    draw = random.Random(name)
    kill_and_finish(inputs, tmp_path, name, sorted(draw.sample(range(1, 58), 20)), run_tool)


@pytest.mark.parametrize("name", RESUMING)
def test_ctrl_c_in_resumable_command_keeps_partial_folder_and_says_so(inputs: Path, tmp_path: Path, name: str) -> None:
    if name == "gguf":
        pytest.importorskip("gguf")
    arguments, target = command(name, inputs, tmp_path)
    partial = partial_of(target)
    message = interrupted(arguments, lambda _: (partial / resume_journal.JOURNAL).is_file())
    assert message == f"interrupted; the same command resumes from {partial}"
    assert partial.is_dir()
    assert not target.exists()


def test_ctrl_c_in_set_template_removes_partial_folder_and_says_so(
    tiny_checkpoint: Path, tmp_path: Path, run_script: RunScript
) -> None:
    template = REPOSITORY / "finetune/templates/alpaca.jinja"
    arguments: list[object] = ["--model_path", tiny_checkpoint, "--template_path", template]
    arguments = ["tools/set_template.py", *arguments, "--output_dir", tmp_path / "new"]
    message = interrupted(arguments, lambda _: (tmp_path / "new.partial/chat_template.jinja").is_file())
    assert message == "interrupted; nothing was kept, the same command starts over"
    assert not list(tmp_path.iterdir())


def is_reading(file: Path) -> Callable[[int], bool]:
    """Return a function that says whether the process with the given id has `file` open."""

    def check(pid: int) -> bool:
        try:
            return any(entry.readlink() == file for entry in Path(f"/proc/{pid}/fd").iterdir())
        except OSError:  # a descriptor was closed meanwhile
            return False

    return check


def test_ctrl_c_in_build_tokenizer_leaves_old_files(tiny_tokenizer: Path, tmp_path: Path) -> None:
    folder, texts = shutil.copytree(tiny_tokenizer, tmp_path / "words"), tmp_path / "texts.txt"
    before = contents(folder)
    texts.write_text("some plain text\n" * 1_000_000)  # seconds of work
    arguments: list[object] = ["tools/build_tokenizer.py", "--tokenizer_model", folder / "tokenizer.model"]
    arguments += ["--output_dir", folder, "--check_path", texts]
    assert interrupted(arguments, is_reading(texts)) == "interrupted"
    assert contents(folder) == before


def test_build_tokenizer_removes_leftovers_of_a_killed_run(
    tiny_tokenizer: Path, tmp_path: Path, run_script: RunScript
) -> None:
    (tmp_path / ".tokenizer.partial").mkdir()
    (tmp_path / ".tokenizer.partial/tokenizer.json").write_text("{")
    run_script(
        "tools/build_tokenizer.py", "--tokenizer_model", tiny_tokenizer / "tokenizer.model", "--output_dir", tmp_path
    )
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer_config.json", "tokenizer.model"}


def test_ctrl_c_in_seal_leaves_old_seal_and_signature(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    size = 4 << 30  # bytes, a hole in the file: hashing it takes seconds
    head = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with file.open("wb") as out:
        out.write(len(head).to_bytes(8, "little") + head)
        out.truncate(8 + len(head) + size)
    (tmp_path / "checkpoint.json").write_text("{}")
    (tmp_path / "model.sig").write_text("a signature")

    assert interrupted(["tools/checkpoint.py", "seal", tmp_path], is_reading(file)) == "interrupted"
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "checkpoint.json", "model.sig"}


def test_resumed_command_keeps_finished_file(inputs: Path, tmp_path: Path, run_tool: RunTool) -> None:
    running = command("recover", inputs, tmp_path)
    killed_in_between(running, 20)
    first = tmp_path / "back.partial/model-00001-of-00005.safetensors"
    before = first.stat()
    run_tool(*running[0])
    after = (tmp_path / "back" / first.name).stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)


def test_resumed_command_writes_damaged_tensors_again(inputs: Path, tmp_path: Path, run_tool: RunTool) -> None:
    running = command("recover", inputs, tmp_path)
    killed_in_between(running, 25)
    first = tmp_path / "back.partial/model-00001-of-00005.safetensors"
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    first.write_bytes(content)
    run_tool(*running[0])
    back = {
        name: value for file in (tmp_path / "back").glob("*.safetensors") for name, value in load_file(file).items()
    }
    assert all(torch.equal(back[n], value) for n, value in load_file(inputs / "tuned/model.safetensors").items())


def test_full_disk_in_a_rust_library_is_reported_in_one_line(tmp_path: Path) -> None:
    """tokenizers and safetensors raise their own exceptions instead of OSError."""
    line = r"new cannot be written \(No space left on device: .*\); make room"
    with pytest.raises(ValueError, match=line), new_folder(tmp_path / "new", 0):
        Tokenizer(models.BPE()).save("/dev/full")
    assert not list(tmp_path.iterdir())


def test_command_with_other_input_does_not_resume(inputs: Path, tmp_path: Path, run_tool: RunTool) -> None:
    base = shutil.copytree(inputs / "base", tmp_path / "base")
    arguments: list[object] = ["tools/weight_diff.py", "merge", "--path_zhixi", base, "--path_lora", inputs / "adapter"]
    arguments += ["--path_sfted", tmp_path / "merged"]
    assert killed_in_between((arguments, tmp_path / "merged"), 30) >= 30
    state = load_file(base / "model.safetensors")
    save_file({name: -value for name, value in state.items()}, base / "model.safetensors", {"format": "pt"})
    run_tool(*arguments)
    run_tool(*arguments[:-1], tmp_path / "straight")
    assert contents(tmp_path / "merged") == contents(tmp_path / "straight")


def test_second_process_is_refused_and_first_one_finishes(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out", 0, "a run") as folder:
        (folder / "kept").write_text("x")
        with (
            pytest.raises(ValueError, match=r"out\.partial is being written by another process"),
            new_folder(tmp_path / "out", 0, "a run"),
        ):
            pass
        assert (folder / "kept").is_file()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["kept"]


def test_partial_folder_with_links_of_another_run_is_emptied_without_following_them(tmp_path: Path) -> None:
    elsewhere, partial = tmp_path / "elsewhere", tmp_path / "out.partial"
    for folder in (elsewhere, partial / "sub"):
        folder.mkdir(parents=True)
        (folder / "kept").write_text("x")
    (partial / "folder").symlink_to(elsewhere)
    (partial / "file").symlink_to(elsewhere / "kept")
    with new_folder(tmp_path / "out", 0) as folder:
        assert [path.name for path in folder.iterdir()] == [resume_journal.JOURNAL]
    assert (elsewhere / "kept").read_text() == "x"
