"""Both trainers refuse an --output_dir that another run is writing, or in which a run must not write."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import train
from partial_folders.resume_journal import JOURNAL
from pretraining_runs import options
from stopped_runs import start_signalled
from tuning_runs import command

import finetune

Trainer = Callable[[Path, Path], list[str]]  # (base, output) -> the arguments of a run
SCRIPTS = {"pretrain/train.py": train.main, "finetune/finetune.py": finetune.main}


@pytest.fixture(params=SCRIPTS)
def script(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def arguments(script: str, two_sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    rows_file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows_file.write_text("".join(f'{{"instruction": "Say {i}.", "output": "{i}"}}\n' for i in range(8)))

    def of(base: Path, output: Path) -> list[str]:
        if script == "pretrain/train.py":
            return list(map(str, options(base, two_sources, output, "--max_steps", 40, "--use_cpu", "True")))
        return command(base, rows_file, output, "--max_steps", 40, "--val_set_size", 0, "--use_cpu", "True")

    return of


def test_place_where_a_run_must_not_write_is_refused_before_the_model_is_loaded(
    script: str, arguments: Trainer, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    base, sealed = shutil.copytree(tiny_checkpoint, tmp_path / "base"), tmp_path / "sealed"
    (sealed / "out").mkdir(parents=True)
    (sealed / "checkpoint.json").write_text('{"blake3": {}}')
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(sealed / "linked")
    before = sorted(tmp_path.rglob("*"))
    for output, says in (
        (base, f"{base} is the input folder {base}, which must not change; write elsewhere"),
        (base / "new/out", f"{base}/new/out is inside the input folder {base}, which"),
        (sealed, f"{sealed} is a sealed folder, which must not change; write elsewhere"),
        (sealed / "out", f"{sealed}/out is inside the sealed folder {sealed}, which"),
        (tmp_path / "link", f"{tmp_path}/link is inside the sealed folder {sealed}, which"),
        (Path("/proc/out"), "/proc/out"),
        (base / "config.json/out", "is inside the input folder"),
        (tmp_path / "file/out", f"({tmp_path}/file is not a folder)"),
    ):
        with pytest.raises((ValueError, OSError)) as raised:
            SCRIPTS[script](arguments(base, output))
        assert says in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.integration
def test_second_run_is_refused_and_the_first_one_resumes_after_a_kill(
    script: str, arguments: Trainer, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    given = [*arguments(tiny_checkpoint, output), "--save_strategy", "steps", "--save_steps", "2"]
    first = start_signalled(script, *given, after="step 4/", number=signal.SIGSTOP)
    _, status = os.waitpid(first.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    message = f"^{output} is being written by another process; wait for it or write elsewhere$"
    try:
        for more in ([], ["--resume_from_checkpoint", "True"]):
            with pytest.raises(ValueError, match=message):
                SCRIPTS[script]([*given, *more])
    finally:
        first.kill()
        first.communicate()
    assert (output / JOURNAL).is_file()
    assert SCRIPTS[script]([*given, "--resume_from_checkpoint", "True"]) == 0
    assert not (output / JOURNAL).exists() and list(output.glob("*.safetensors"))


def test_failed_run_leaves_no_folder(script: str, arguments: Trainer, tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    (base / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises((ValueError, OSError)):
        SCRIPTS[script](arguments(base, tmp_path / "new/out"))
    assert not (tmp_path / "new").exists()
