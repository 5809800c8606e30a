"""tools/download.py after faults: cut connections, killed processes and damaged bytes."""

import gzip
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
from conftest import REPOSITORY
from hub_download.hub_files import with_retries
from hub_server import CHUNK, COMMIT, DIFF, Fault, Hub, downloaded
from huggingface_hub.constants import DOWNLOAD_CHUNK_SIZE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from partial_folders import resume_journal

Get = Callable[..., tuple[str, str]]
LARGE = "model.safetensors"
BYTES = DIFF[LARGE]


def test_cut_connection_resumes_after_last_received_chunk(
    hub: Hub, get: Get, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.faults[LARGE] = [Fault(cut=300_001), Fault(cut=0), Fault(cut=70_000)]
    get(tmp_path / "thing", pattern=LARGE)
    ranges = ["", f"bytes={4 * CHUNK}-", f"bytes={4 * CHUNK}-", f"bytes={5 * CHUNK}-"]
    assert hub.requests == [(LARGE, range_header) for range_header in ranges]
    assert caplog.text.count("Trying to resume download...") == 3
    assert downloaded(tmp_path / "thing") == {LARGE: BYTES}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 400_000), max_size=5))
def test_connection_cut_anywhere_sends_less_than_a_chunk_again(
    hub: Hub, get: Get, tmp_path: Path, cuts: list[int]
) -> None:
    hub.faults[LARGE] = [Fault(cut=cut) for cut in cuts]
    hub.sent.clear()
    target = tmp_path / f"thing{len(list(tmp_path.iterdir()))}"
    get(target, pattern=LARGE)
    assert len(BYTES) <= hub.sent[LARGE] < len(BYTES) + (len(cuts) + 1) * CHUNK
    assert downloaded(target) == {LARGE: BYTES}


def start_and_hang(hub: Hub, folder: Path) -> "subprocess.Popen[str]":
    """Start the script and wait until two of three chunks of a 25 MB file and all other files have arrived."""
    hub.repositories["some/thing"] = DIFF | {LARGE: BYTES * 24}
    hub.faults[LARGE] = [Fault(cut=2 * DOWNLOAD_CHUNK_SIZE + 1, hang=True)]
    command = ["tools/download.py", "--download_path", str(folder), "--specify", "--repo_name", "some/thing"]
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "HF_TOKEN": ""}
    environment["HF_HOME"] = str(folder.with_name("home"))
    running = subprocess.Popen(
        [sys.executable, *command],
        cwd=REPOSITORY, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wanted = {name: len(content) for name, content in DIFF.items()} | {LARGE: 2 * DOWNLOAD_CHUNK_SIZE}
    for _ in range(600):
        files = [folder.with_name(f"{folder.name}.partial") / name for name in wanted]
        if all(file.is_file() for file in files) and [file.stat().st_size for file in files] == [*wanted.values()]:
            return running
        time.sleep(0.02)
    raise AssertionError(f"{files} did not arrive: {running.communicate()}")


def test_killed_process_resumes_within_file(hub: Hub, get: Get, tmp_path: Path) -> None:
    target = tmp_path / "thing"
    running = start_and_hang(hub, target)
    running.kill()
    running.communicate()
    assert not target.exists()
    hub.requests.clear()
    out, _ = get(target)
    assert "1 file, 4.19 MB to download" in out
    assert hub.requests == [(LARGE, f"bytes={2 * DOWNLOAD_CHUNK_SIZE}-")]
    assert downloaded(target) == hub.repositories["some/thing"]
    assert not hub.unexpected_paths


def test_failed_request_is_not_repeated_after_the_download_was_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    stopped, attempts = Event(), []

    def fail() -> None:
        attempts.append(1)
        stopped.set()
        raise OSError("Bad file descriptor")

    with pytest.raises(OSError, match="Bad file descriptor"):
        with_retries(fail, "model.safetensors", OSError, stopped)
    assert (len(attempts), capsys.readouterr().err) == (1, "")


def test_interrupted_process_ends_at_once_and_reports_received_bytes(hub: Hub, tmp_path: Path) -> None:
    running = start_and_hang(hub, tmp_path / "thing")
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=30)  # although the connection is silent
    assert running.returncode == 130
    assert err == "interrupted: 2 of 3 files, 20.97 MB of 25.17 MB have arrived; the same command resumes\n"


def interrupt_after(hub: Hub, get: Get, folder: Path, size: int) -> Path:
    """Let the download fail when `size` bytes of the large file have arrived; return the partial file."""
    hub.faults[LARGE] = [Fault(cut=size), Fault(status=403)]
    with pytest.raises(
        ValueError, match=r"refuses some/thing \(HTTP 403\).*0 of 1 files, 0.46 MB of 1.05 MB have arri"
    ):
        get(folder, pattern=LARGE)
    hub.requests.clear()
    return folder.with_name(f"{folder.name}.partial") / LARGE


def test_partial_file_damaged_on_disk_is_downloaded_again(hub: Hub, get: Get, tmp_path: Path) -> None:
    partial_file = interrupt_after(hub, get, tmp_path / "thing", 500_000)
    with partial_file.open("r+b") as file:
        file.write(b"x")
    _, err = get(tmp_path / "thing", pattern=LARGE)
    assert "model.safetensors arrived damaged: its size or hash is not as published" in err
    assert downloaded(tmp_path / "thing") == {LARGE: BYTES}


@pytest.mark.parametrize("size", [len(BYTES), len(BYTES) + 1])
def test_partial_file_as_long_as_published_or_longer_is_verified(hub: Hub, get: Get, tmp_path: Path, size: int) -> None:
    interrupt_after(hub, get, tmp_path / "thing", 500_000).write_bytes((BYTES + b"x")[:size])
    get(tmp_path / "thing", pattern=LARGE)
    assert hub.requests == ([] if size == len(BYTES) else [(LARGE, "")])
    assert downloaded(tmp_path / "thing") == {LARGE: BYTES}


def test_download_with_other_patterns_starts_over(hub: Hub, get: Get, tmp_path: Path) -> None:
    interrupt_after(hub, get, tmp_path / "thing", 500_000)
    get(tmp_path / "thing", pattern="*.json")
    assert downloaded(tmp_path / "thing") == {"config.json": DIFF["config.json"]}


def test_second_process_on_same_folder_is_refused(hub: Hub, get: Get, tmp_path: Path) -> None:
    with (
        resume_journal.locked_folder(tmp_path / "thing.partial", ""),
        pytest.raises(ValueError, match="is being written by another process; wait for it"),
    ):
        get(tmp_path / "thing")
    get(tmp_path / "thing")


def test_file_that_hub_does_not_have_is_reported_in_one_line(hub: Hub, get: Get, tmp_path: Path) -> None:
    hub.faults[LARGE] = [Fault(cut=1000), Fault(status=404)]
    with pytest.raises(ValueError, match=rf"has no some/thing/resolve/{COMMIT}/{LARGE} \(HTTP 404\)"):
        get(tmp_path / "thing")


@pytest.mark.parametrize("name", [LARGE, "config.json"])  # verified by sha256, and by git id
def test_damaged_response_is_downloaded_again(hub: Hub, get: Get, tmp_path: Path, name: str) -> None:
    hub.faults[name] = [Fault(wrong=True), Fault(wrong=True)]
    _, err = get(tmp_path / "thing")
    assert [request for request in hub.requests if request[0] == name] == [(name, "")] * 3
    assert err.count(f"notice: {name} arrived damaged: its size or hash is not as published") == 2
    assert downloaded(tmp_path / "thing") == DIFF


def test_file_damaged_every_time_is_missing_and_others_arrive(hub: Hub, get: Get, tmp_path: Path) -> None:
    hub.faults["config.json"] = [Fault(wrong=True)] * 3
    with pytest.raises(ValueError, match=r"1 file of some/thing arrived damaged \(config.json\); 2 of 3 files"):
        get(tmp_path / "thing")
    assert not (tmp_path / "thing").exists()
    assert not (tmp_path / "thing.partial/config.json").exists()
    hub.requests.clear()
    get(tmp_path / "thing")
    assert hub.requests == [("config.json", "")]


@pytest.mark.parametrize("fault", [Fault(body=b"<html>log in</html>"), Fault(body=BYTES + b"more")])
def test_response_that_is_not_the_file_is_not_kept(hub: Hub, get: Get, tmp_path: Path, fault: Fault) -> None:
    hub.faults[LARGE] = [fault]
    _, err = get(tmp_path / "thing", pattern=LARGE)
    assert f"{LARGE} arrived damaged: its size or hash is not as published; downloading it again" in err
    assert downloaded(tmp_path / "thing") == {LARGE: BYTES}


def test_server_without_ranges_restarts_file(hub: Hub, get: Get, tmp_path: Path) -> None:
    hub.ranges = False
    hub.faults[LARGE] = [Fault(cut=300_000)]
    get(tmp_path / "thing", pattern=LARGE)
    assert hub.requests == [(LARGE, ""), (LARGE, f"bytes={4 * CHUNK}-")]
    assert downloaded(tmp_path / "thing") == {LARGE: BYTES}


def test_compressed_response_is_decompressed(hub: Hub, get: Get, tmp_path: Path) -> None:
    compressed = gzip.compress(BYTES, 0)
    headers = {"Content-Encoding": "gzip"}
    hub.faults[LARGE] = [Fault(body=compressed, headers=headers, cut=400_000)]
    get(tmp_path / "thing", pattern=LARGE)
    assert downloaded(tmp_path / "thing") == {LARGE: BYTES}
    hub.faults["config.json"] = [Fault(body=gzip.compress(DIFF["config.json"]), headers=headers)]
    get(tmp_path / "thing")
    assert downloaded(tmp_path / "thing") == DIFF


def test_response_with_other_range_is_never_kept(hub: Hub, get: Get, tmp_path: Path) -> None:
    shifted = {"Content-Range": f"bytes 0-{len(BYTES) - 1}/{len(BYTES)}"}
    hub.faults[LARGE] = [Fault(cut=300_000), Fault(headers=shifted, body=BYTES[::-1])]
    get(tmp_path / "thing", pattern=LARGE)
    assert downloaded(tmp_path / "thing") == {LARGE: BYTES}


def test_several_files_are_downloaded_at_once(hub: Hub, get: Get, tmp_path: Path) -> None:
    files = {f"{n % 7}/{n}.bin": bytes([n]) * (n * 1000) for n in range(60)}  # the first is empty
    hub.repositories["some/thing"] = files
    hub.faults["3/10.bin"] = [Fault(cut=5)]
    get(tmp_path / "thing")
    assert downloaded(tmp_path / "thing") == files
    assert hub.sent == {name: len(content) for name, content in files.items() if content} | {"3/10.bin": 10_005}
