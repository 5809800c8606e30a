"""rank_group/: a user error of one or of all ranks ends the run with one error line."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import REPOSITORY, free_port
from launches import Launch
from rank_group import extension_locks
from rank_group.extension_locks import OwnedBaton
from rank_group.rank_errors import BuildError, user_errors_in_turn
from torch.utils.cpp_extension import load


def test_error_of_all_ranks_gives_one_error_line_and_status_2(tmp_path: Path, extensions: Path) -> None:
    output = Launch(extensions).to_the_end("--output_dir", tmp_path, "--seeed", 1, status=2)
    assert output.count("error: unknown option --seeed") == 1


@pytest.mark.integration
def test_error_of_one_rank_ends_the_rank_that_waits_for_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()),
         str(REPOSITORY / "tests/one_rank_fails.py")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("error: rank 1 has no data") == 1
    assert "exitcode  : 2" in done.stderr


HOLD_LOCK = """
import signal, subprocess, sys
sys.path.insert(0, "pretrain")
from rank_group.extension_locks import OwnedBaton
from rank_group.rank_errors import stop_before_first_step
signal.signal(signal.SIGTERM, stop_before_first_step)
baton = OwnedBaton(sys.argv[1])
assert baton.try_acquire()
build = subprocess.Popen(["ninja", "100"], executable="sleep", cwd=baton.path.parent)
print("locked", flush=True)
build.wait()
try:
    raise RuntimeError("Error building extension 'cpu_adam': ninja: build stopped: interrupted by user.")
finally:
    baton.release()
"""


def lock_in_another_process(lock: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(lock)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=REPOSITORY,
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "locked\n"
    return process


@pytest.mark.integration
def test_lock_of_a_killed_build_is_taken_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running owner keeps its lock; SIGTERM to it ends owner and build and removes the lock; unowned locks expire."""
    lock = tmp_path / "cpu_adam/lock"
    owner = lock_in_another_process(lock)
    assert not OwnedBaton(str(lock)).try_acquire()
    [build] = psutil.Process(owner.pid).children()
    owner.kill()
    owner.wait()
    assert build.is_running()
    with pytest.raises(ValueError, match=rf"the build of cpu_adam ended without a result .*remove {lock}"):
        OwnedBaton(str(lock)).wait()
    assert "waiting for the build of cpu_adam by process" in capsys.readouterr().err
    baton = OwnedBaton(str(lock))
    assert baton.try_acquire() and f"notice: {lock} is from a build that ended" in capsys.readouterr().err
    build.wait(60)
    baton.release()
    assert not lock.exists()
    owner = lock_in_another_process(lock)
    [build] = psutil.Process(owner.pid).children()
    owner.terminate()
    assert owner.wait() == 143 and not lock.exists()
    build.wait(60)
    lock.touch()
    assert not OwnedBaton(str(lock)).try_acquire()
    monkeypatch.setattr(extension_locks, "LONGEST_BUILD", 0.2)
    with pytest.raises(ValueError, match=r"exceeds 0 s; remove .*/cpu_adam/lock and start again"):
        OwnedBaton(str(lock)).wait()
    os.utime(lock, (time.time() - 9, time.time() - 9))
    assert OwnedBaton(str(lock)).try_acquire()


@pytest.mark.integration
def test_build_ended_by_a_signal_to_the_group_before_its_owner_is_no_error(tmp_path: Path) -> None:
    owner = lock_in_another_process(tmp_path / "cpu_adam/lock")
    psutil.Process(owner.pid).children()[0].terminate()
    while (tmp_path / "cpu_adam/lock").exists():
        time.sleep(0.01)
    owner.terminate()
    _, errors = owner.communicate(timeout=60)
    assert owner.returncode == 143 and errors.startswith("stopped by SIGTERM before the first step")
    assert errors.count("\n") == 1


def test_build_error_that_deepspeed_wraps_is_raised_unwrapped() -> None:
    with pytest.raises(BuildError, match="the build of cpu_adam ended"), user_errors_in_turn():
        try:
            raise BuildError("the build of cpu_adam ended")
        except BuildError as error:
            raise RuntimeError("DeepSpeedCPUAdam requires the cpu_adam op") from error
    with pytest.raises(RuntimeError, match="a fault of ours"), user_errors_in_turn():
        raise RuntimeError("a fault of ours")


def test_pytorch_takes_its_lock_from_the_installed_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.utils.cpp_extension.load, which DeepSpeed calls, finds a lock without owner and raises an error."""
    from torch.utils import cpp_extension, file_baton

    monkeypatch.setattr(cpp_extension, "FileBaton", file_baton.FileBaton)
    monkeypatch.setattr(extension_locks, "LONGEST_BUILD", 0.2)
    extension_locks.install()
    (tmp_path / "source.cpp").write_text("int one() { return 1; }")
    (tmp_path / "lock").touch()
    os.utime(tmp_path / "lock", (time.time() + 60, time.time() + 60))
    with pytest.raises(ValueError, match=r"remove .*/lock and start again"):
        load("nothing", [str(tmp_path / "source.cpp")], build_directory=str(tmp_path))
