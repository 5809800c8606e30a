"""tools/download.py where the line, the process or the bytes fail: cut connections, killed processes, damage."""

import gzip
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY
from filelock import FileLock
from hub_download import hub_files
from hub_server import COMMIT, DIFF, Fault, Hub, downloaded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Get = Callable[..., tuple[str, str]]
LARGE = "model.safetensors"
BYTES = DIFF[LARGE]


# --- broken connections and killed processes --------------------------------------------------------------------------


def test_cut_connection_resumes_at_received_byte(hub: Hub, get: Get, tmp_path: Path) -> None:
    hub.faults[LARGE] = [Fault(cut=300_001), Fault(cut=0), Fault(cut=70_000)]
    _, err = get(tmp_path / "thing", pattern=LARGE)
    ranges = ["", "bytes=300001-", "bytes=300001-", "bytes=370001-"]
    assert hub.asked == [(LARGE, asked) for asked in ranges]
    assert hub.sent[LARGE] == len(BYTES)
    assert err.count(f"notice: {LARGE}: connection broken") == 3
    assert downloaded(tmp_path / "thing") == {LARGE: BYTES}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 400_000), max_size=5))
def test_connection_cut_anywhere_sends_every_byte_once(hub: Hub, get: Get, tmp_path: Path, cuts: list[int]) -> None:
    hub.faults[LARGE] = [Fault(cut=cut) for cut in cuts]
    hub.sent.clear()
    target = tmp_path / f"thing{len(list(tmp_path.iterdir()))}"
    get(target, pattern=LARGE)
    assert hub.sent[LARGE] == len(BYTES)
    assert downloaded(target) == {LARGE: BYTES}


def part_of(folder: Path) -> Path:
    [part] = folder.with_name(f"{folder.name}.partial").glob(".download/*.part")
    return part


def start_and_hang(hub: Hub, folder: Path) -> "subprocess.Popen[str]":
    """The script at work on a file of which 500,001 bytes came, the others finished."""
    hub.faults[LARGE] = [Fault(cut=500_001, hang=True)]
    command = ["tools/download.py", "--download_path", str(folder), "--specify", "--repo_name", "some/thing"]
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "HF_TOKEN": ""}
    environment["HF_HOME"] = str(folder.with_name("home"))
    running = subprocess.Popen(
        [sys.executable, *command],
        cwd=REPOSITORY, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    partial = folder.with_name(f"{folder.name}.partial")
    for _ in range(600):
        sizes = [part.stat().st_size for part in partial.glob(".download/*.part")]
        if sizes == [500_001] and all((partial / name).is_file() for name in DIFF if name != LARGE):
            return running
        time.sleep(0.02)
    raise AssertionError(f"{partial} does not fill: {running.communicate()}")


def test_killed_process_resumes_at_received_byte(hub: Hub, get: Get, tmp_path: Path) -> None:
    target = tmp_path / "thing"
    running = start_and_hang(hub, target)
    running.kill()
    running.communicate()
    assert not target.exists()
    (target.with_name("thing.partial") / "left_over.txt").write_text("of another download")
    out, _ = get(target)
    assert "1 file, 0.55 MB to download" in out
    assert [asked for asked in hub.asked if asked[0] == LARGE] == [(LARGE, ""), (LARGE, "bytes=500001-")]
    assert hub.sent == {name: len(content) for name, content in DIFF.items()}
    assert downloaded(target) == DIFF
    assert not hub.strange


def test_interrupted_process_reports_received_bytes(hub: Hub, tmp_path: Path) -> None:
    running = start_and_hang(hub, tmp_path / "thing")
    running.send_signal(signal.SIGINT)
    time.sleep(1)  # the signal is heard at once, the silent connection until the client's timeout, or until it ends
    hub.let_go.set()
    _, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert err == "interrupted: 2 of 3 files, 0.50 MB of 1.05 MB have arrived; the same command resumes\n"


def test_part_damaged_on_disk_is_downloaded_again(hub: Hub, get: Get, tmp_path: Path) -> None:
    target = tmp_path / "thing"
    hub.faults[LARGE] = [Fault(cut=500_000), Fault(status=403)]
    with pytest.raises(
        ValueError, match=r"refuses some/thing \(HTTP 403\).*0 of 1 files, 0.50 MB of 1.05 MB have arri"
    ):
        get(target, pattern=LARGE)
    with part_of(target).open("r+b") as part:
        part.write(b"x")
    _, err = get(target, pattern=LARGE)
    assert "model.safetensors arrived damaged: its hash is" in err
    assert downloaded(target) == {LARGE: BYTES}


@pytest.mark.parametrize("junk", [len(BYTES), len(BYTES) + 1])
def test_part_as_long_as_file_or_longer_is_verified(hub: Hub, get: Get, tmp_path: Path, junk: int) -> None:
    target = tmp_path / "thing"
    hub.faults[LARGE] = [Fault(cut=500_000), Fault(status=403)]
    with pytest.raises(ValueError, match="HTTP 403"):
        get(target, pattern=LARGE)
    part_of(target).write_bytes((BYTES + b"x")[:junk])
    hub.asked.clear()
    get(target, pattern=LARGE)
    assert hub.asked == ([] if junk == len(BYTES) else [(LARGE, "")])
    assert downloaded(target) == {LARGE: BYTES}


def test_second_process_on_same_folder_is_refused(hub: Hub, get: Get, tmp_path: Path) -> None:
    notes = tmp_path / "thing.partial/.download"
    notes.mkdir(parents=True)
    with FileLock(notes / "lock"), pytest.raises(ValueError, match="is being written by another process; wait for it"):
        get(tmp_path / "thing")
    get(tmp_path / "thing")


def test_unfinished_download_of_other_repository_is_kept(hub: Hub, get: Get, tmp_path: Path) -> None:
    hub.faults[LARGE] = [Fault(cut=1000), Fault(status=404)]
    with pytest.raises(ValueError, match=rf"has no some/thing/resolve/{COMMIT}/{LARGE} \(HTTP 404\)"):
        get(tmp_path / "thing")
    with pytest.raises(ValueError, match=r"thing.partial is an unfinished download of some/thing; finish it, or rem"):
        get(tmp_path / "thing", repo_name="zjunlp/zhixi-13b-lora")


# --- wrong bytes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [LARGE, "config.json"])  # checked by sha256, and by git's id
def test_damaged_response_is_downloaded_again(hub: Hub, get: Get, tmp_path: Path, name: str) -> None:
    hub.faults[name] = [Fault(wrong=True), Fault(wrong=True)]
    _, err = get(tmp_path / "thing")
    assert [asked for asked in hub.asked if asked[0] == name] == [(name, "")] * 3
    assert err.count(f"notice: {name} arrived damaged: its hash is ") == 2
    assert downloaded(tmp_path / "thing") == DIFF


def test_file_damaged_every_time_is_missing_and_others_arrive(hub: Hub, get: Get, tmp_path: Path) -> None:
    hub.faults["config.json"] = [Fault(wrong=True)] * 3
    with pytest.raises(ValueError, match=r"1 file of some/thing arrived damaged \(config.json\); 2 of 3 files"):
        get(tmp_path / "thing")
    assert not (tmp_path / "thing").exists()
    assert not (tmp_path / "thing.partial/config.json").exists()
    hub.asked.clear()
    get(tmp_path / "thing")
    assert hub.asked == [("config.json", "")]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(body=b"<html>log in</html>"), "the hub sends 19 bytes, published are 1,048,576"),
        (Fault(body=BYTES + b"more"), "the hub sends 1,048,580 bytes, published are 1,048,576"),
        (Fault(status=416), r"byte 0 was requested and not sent \(HTTP 416\)"),
        (Fault(status=204), r"byte 0 was requested and not sent \(HTTP 204\)"),
    ],
)
def test_response_that_is_not_the_file_is_not_kept(hub: Hub, get: Get, tmp_path: Path, fault: Fault, said: str) -> None:
    hub.faults[LARGE] = [fault]
    _, err = get(tmp_path / "thing", pattern=LARGE)
    assert said.replace("\\", "") in err
    assert downloaded(tmp_path / "thing") == {LARGE: BYTES}


def test_server_without_ranges_restarts_file(hub: Hub, get: Get, tmp_path: Path) -> None:
    hub.ranges = False
    hub.faults[LARGE] = [Fault(cut=300_000)]
    get(tmp_path / "thing", pattern=LARGE)
    assert hub.asked == [(LARGE, ""), (LARGE, "bytes=300000-")]
    assert downloaded(tmp_path / "thing") == {LARGE: BYTES}


def test_compressed_response_is_decompressed(hub: Hub, get: Get, tmp_path: Path) -> None:
    packed = gzip.compress(BYTES, 0)
    hub.faults[LARGE] = [Fault(body=packed, headers={"Content-Encoding": "gzip"}, cut=cut) for cut in (400_000, None)]
    _, err = get(tmp_path / "thing", pattern=LARGE)
    assert "was requested and not sent (HTTP 206)" in err  # bytes of the packed file do not continue the unpacked one
    assert hub.asked[-1] == (LARGE, "")
    hub.faults["config.json"] = [Fault(body=gzip.compress(DIFF["config.json"]), headers={"Content-Encoding": "gzip"})]
    hub.asked.clear()
    get(tmp_path / "thing")
    assert downloaded(tmp_path / "thing") == DIFF
    assert sorted(hub.asked) == [("config.json", ""), ("sub/notes.txt", "")]


def test_response_with_other_range_is_not_appended(hub: Hub, get: Get, tmp_path: Path) -> None:
    shifted = {"Content-Range": f"bytes 299999-{len(BYTES) - 1}/{len(BYTES)}"}
    hub.faults[LARGE] = [Fault(cut=300_000), Fault(headers=shifted)]
    _, err = get(tmp_path / "thing", pattern=LARGE)
    assert "byte 300,000 was requested and not sent (HTTP 206)" in err
    assert hub.asked[-1] == (LARGE, "")
    assert downloaded(tmp_path / "thing") == {LARGE: BYTES}


# --- several files at once --------------------------------------------------------------------------------------------


def test_several_files_are_downloaded_at_once(hub: Hub, get: Get, tmp_path: Path) -> None:
    files = {f"{n % 7}/{n}.bin": bytes([n]) * (n * 1000) for n in range(60)}  # the first is empty
    hub.repositories["some/thing"] = files
    hub.faults["3/10.bin"] = [Fault(cut=5)]
    get(tmp_path / "thing")
    assert downloaded(tmp_path / "thing") == files
    assert hub.sent == {name: len(content) for name, content in files.items() if content}


def test_first_error_stops_other_threads() -> None:
    stop = threading.Event()

    def work(number: int) -> None:
        if number == 2:
            raise ValueError("two")
        stop.wait(30)

    start = time.monotonic()
    with pytest.raises(ValueError, match="two"):
        hub_files.run_in_threads(work, range(20), stop)
    assert time.monotonic() - start < 5
