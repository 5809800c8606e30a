"""partial_folders/cache_entries.py: processes write an entry at once; leftovers of killed processes are removed."""

import multiprocessing
import os
import signal
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from partial_folders import cache_entries
from partial_folders.cache_entries import ensure_cache_entry

FORK = multiprocessing.get_context("fork")
WRITERS = 6


def write_folder(folder: Path) -> None:
    folder.mkdir()
    (folder / "inner").mkdir()
    (folder / "inner/text").write_text("whole")


def write_and_kill_self(path: Path) -> None:
    write_folder(path)
    os.kill(os.getpid(), signal.SIGKILL)


def write_at_once(entry: Path, start: Barrier) -> None:
    def write(path: Path) -> None:
        write_folder(path)
        start.wait()

    ensure_cache_entry(entry, write)


def kill_a_writer(entry: Path) -> None:
    process = FORK.Process(target=ensure_cache_entry, args=(entry, write_and_kill_self))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("is_folder", [False, True])
def test_entry_is_written_once_and_replaced_if_it_is_not_valid(tmp_path: Path, is_folder: bool) -> None:
    entry = tmp_path / "cache/entry"

    def write(text: str) -> None:
        def write_text(path: Path) -> None:
            if is_folder:
                path.mkdir()
            (path / "text" if is_folder else path).write_text(text)

        ensure_cache_entry(entry, write_text, lambda path: path.exists() and read(path) != "old")

    def read(path: Path) -> str:
        return (path / "text" if is_folder else path).read_text()

    for text, expected in (("old", "old"), ("new", "new"), ("other", "new")):
        write(text)
        assert read(entry) == expected
    assert [path.name for path in entry.parent.iterdir()] == ["entry"]


def test_processes_that_write_one_entry_at_once_leave_only_that_entry(tmp_path: Path) -> None:
    start = FORK.Barrier(WRITERS)
    processes = [FORK.Process(target=write_at_once, args=(tmp_path / "entry", start)) for _ in range(WRITERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * WRITERS
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]
    assert (tmp_path / "entry/inner/text").read_text() == "whole"


def test_entry_of_a_faster_process_is_kept(tmp_path: Path) -> None:
    """The faster process may be reading its entry."""
    entry = tmp_path / "entry"

    def write_slowly(path: Path) -> None:
        write_folder(path)
        ensure_cache_entry(entry, write_folder)
        (path / "inner/text").write_text("slower")

    ensure_cache_entry(entry, write_slowly)
    assert (entry / "inner/text").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_folder_of_a_killed_process_is_removed_and_folder_of_a_live_process_is_kept(tmp_path: Path) -> None:
    kill_a_writer(tmp_path / "killed")
    [left_over] = tmp_path.iterdir()
    (tmp_path / "model.partial").mkdir()  # the folder of another command, which may resume
    started, end = FORK.Barrier(2), FORK.Event()

    def write(path: Path) -> None:
        write_folder(path)
        started.wait()
        end.wait()

    process = FORK.Process(target=ensure_cache_entry, args=(tmp_path / "live", write))
    process.start()
    started.wait()
    ensure_cache_entry(tmp_path / "other", write_folder)
    assert not left_over.exists()
    names = sorted(path.name.partition(".")[0] for path in tmp_path.iterdir())
    assert names == ["live", "model", "other"]
    end.set()
    process.join()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["live", "model.partial", "other"]


def test_leftover_is_removed_if_the_entry_is_complete(tmp_path: Path) -> None:
    """A process can be killed after it moved its entry and before it removed its folder."""
    ensure_cache_entry(tmp_path / "entry", write_folder)
    kill_a_writer(tmp_path / "second")
    ensure_cache_entry(tmp_path / "entry", write_and_kill_self)  # the entry is valid, so the writer is not called
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_writer_takes_another_folder_if_its_folder_is_being_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process can lock the new folder first, since it has no lock yet."""
    names = iter(("00000000", "11111111"))
    monkeypatch.setattr(cache_entries.secrets, "token_hex", lambda _: next(names))
    with cache_entries.resume_journal.locked_folder(tmp_path / "entry.cache-00000000.partial", ""):
        ensure_cache_entry(tmp_path / "entry", write_folder)
    assert (tmp_path / "entry/inner/text").exists() and not list(tmp_path.glob("*11111111*"))


def test_error_of_the_writer_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        write_folder(path)
        raise ValueError("row 3 is damaged")

    with pytest.raises(ValueError, match="row 3 is damaged"):
        ensure_cache_entry(tmp_path / "entry", fail)
    assert not list(tmp_path.iterdir())
