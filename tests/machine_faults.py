"""Run commands on a machine that fails: a full disk, an I/O error, or a kill at the n-th call that changes a folder.

fault_injection.c counts and fails the calls. Trials without `environment` are forked from one process that has loaded
this library and imported torch and transformers; see forked_scripts.py.
"""

import multiprocessing
import multiprocessing.context
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import forkserver
from pathlib import Path

from conftest import REPOSITORY
from forked_scripts import LIBRARIES, become

LONGEST_RUN = 300  # seconds
LEFT_OVER = r"\.(partial|shards)(/|$)|(^|/)\.journal\.jsonl$"
KINDS = ("ENOSPC", "EIO", "KILL")
Files = dict[str, bytes]


def compiled(place: Path) -> Path:
    """Return the library, compiled in the folder `place`."""
    library = place / "fault_injection.so"
    source = REPOSITORY / "tests/fault_injection.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Werror", "-o", library, source, "-ldl"], check=True)
    return library


@dataclass(frozen=True)
class Outcome:
    """Exit status, output, and number of counted calls of a run."""

    status: int
    output: str
    calls: int

    @property
    def errors(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("error: ")]


@dataclass(frozen=True)
class Trial:
    """A command that writes below a folder.

    arguments: returns the arguments of a run in this folder. prepare: creates the run's inputs in this folder. resumed:
    returns further arguments of the second run, given the folder that the first run left. ignored: names of files whose
    bytes differ from run to run.
    """

    arguments: Callable[[Path], list[object]]
    target: str  # path below the folder; it exists once the result is complete
    prepare: Callable[[Path], object] = lambda _: None
    resumed: Callable[[Path], list[object]] = lambda _: []
    ignored: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None  # if given, the command runs in a new process with these variables

    def contents(self, folder: Path) -> Files:
        """Return the bytes of every file below the folder; b"" for files whose bytes differ from run to run."""
        found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        return {name: b"" if path.name in self.ignored else path.read_bytes() for name, path in found.items()}


class FaultyMachine:
    """Runs commands with injected faults. place: an empty folder for the library, the output and the trials' folder."""

    def __init__(self, place: Path) -> None:
        self.place, self.folder = place, place / "written"
        self.count, self.printed, self.log = (place / name for name in ("count", "printed", "log"))
        self.preloaded = str(compiled(place))

    @cached_property
    def forks(self) -> multiprocessing.context.ForkServerContext:
        """A forkserver context whose server process has loaded the library."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(LIBRARIES)
        os.environ["LD_PRELOAD"] = self.preloaded
        vars(forkserver)["_forkserver"]._stop()  # a server that other tests started without the library
        try:
            forkserver.ensure_running()
        finally:
            del os.environ["LD_PRELOAD"]
        return context

    def run(self, trial: Trial, more: list[object], kind: str = "none", at: int = 0) -> Outcome:
        """Run the command of a trial, with a fault of this kind at call `at` (0: none)."""
        script, *rest = [*trial.arguments(self.folder), *more]
        command = [str(REPOSITORY / str(script)), *map(str, rest)]
        environment = {
            "FAULT_FOLDER": str(self.folder), "FAULT_COUNT": str(self.count), "FAULT_LOG": str(self.log),
            "FAULT_KIND": kind, "FAULT_AT": str(at),
        }  # fmt: skip
        self.count.write_bytes(bytes(8))
        self.log.write_bytes(b"")
        if trial.environment is None:
            process = self.forks.Process(target=run_faulty, args=(command, self.printed, environment))
            process.start()
            process.join(LONGEST_RUN)
            process.kill()  # if it is still running
            process.join()
            status = process.exitcode
            assert status is not None
        else:
            environment |= {**os.environ, **trial.environment, "LD_PRELOAD": self.preloaded}
            with self.printed.open("w") as out:
                status = subprocess.run(
                    [sys.executable, *command], env=environment, stdout=out, stderr=out, timeout=LONGEST_RUN
                ).returncode
        return Outcome(status, self.printed.read_text(), int.from_bytes(self.count.read_bytes(), "little"))

    def clear(self, trial: Trial) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        trial.prepare(self.folder)

    def undisturbed(self, trial: Trial) -> tuple[Files, int]:
        """Return the files of an undisturbed run and its number of counted calls."""
        self.clear(trial)
        outcome = self.run(trial, [])
        assert outcome.status == 0, outcome.output
        return trial.contents(self.folder), outcome.calls

    def unflushed(self) -> list[str]:
        """Return the files of the last run that were changed after they were last flushed to the disk."""
        changed, flushed = dict[str, int](), dict[str, int]()  # inode -> number of the last call
        for line in self.log.read_text().splitlines():
            number, call, inode, _ = line.split(" ", 3)
            if "write" in call or "send" in call or "copy" in call:
                changed[inode] = int(number)
            elif call == "fsync":
                flushed[inode] = int(number)
        late = {inode for inode, number in changed.items() if number > flushed.get(inode, 0)}
        return [path.name for path in sorted(self.folder.rglob("*")) if str(path.stat().st_ino) in late]

    def fault(self, trial: Trial, expected: Files, kind: str, at: int) -> str:
        """Run a trial with a fault and, unless it left a target, again without; return a report of faults, or "".

        A failed run must print one error line and exit with status 2, unless it was killed, and leave no incomplete
        target. In the end there must be the files of an undisturbed run.
        """
        self.clear(trial)
        first = self.run(trial, [], kind, at)
        call = next((line for line in self.log.read_text().splitlines() if line.startswith(f"{at} ")), "?")
        where = f"{kind} at {call}: status {first.status}\n{first.output}\n"
        if first.status == 0:
            found = trial.contents(self.folder)
            differing = differences(expected, without_leftovers(found))
            return f"{where}finished with other files: {differing}" if differing else ""
        is_one_line = first.status == 2 and len(first.errors) == 1 and "Traceback" not in first.output
        # KILL also ends with one line and status 2 if it hit a worker process.
        if not is_one_line and (kind, first.status) != ("KILL", -signal.SIGKILL):
            return f"{where}not one error line with status 2"
        if (self.folder / trial.target).exists():
            differing = differences(expected, without_leftovers(trial.contents(self.folder)))
            return f"{where}target exists, but {differing}" if differing else ""
        second = self.run(trial, trial.resumed(self.folder))
        if second.status:
            return f"{where}second run: status {second.status}\n{second.output}"
        differing = differences(expected, trial.contents(self.folder))
        return f"{where}second run gives other files: {differing}\n{second.output}" if differing else ""


def run_faulty(command: list[str], printed: Path, environment: dict[str, str]) -> None:
    """Run a script as the main module of this process."""
    os.environ.update(environment)
    become(command, printed)


def without_leftovers(files: Files) -> Files:
    """Return the files without temporary ones, which stay beside a complete result if their removal failed."""
    return {name: content for name, content in files.items() if not re.search(LEFT_OVER, name)}


def differences(expected: Files, found: Files) -> str:
    """Return the names of the files that are missing, surplus or different; "" if there are none."""
    names = {
        "missing": expected.keys() - found.keys(),
        "surplus": found.keys() - expected.keys(),
        "different": {name for name in expected.keys() & found.keys() if expected[name] != found[name]},
    }
    return "; ".join(f"{kind}: {', '.join(sorted(which))}" for kind, which in names.items() if which)


def points(calls: int, most: int) -> list[int]:
    """Return at most `most` of the call numbers 1 to `calls`, including the first and the last."""
    if calls <= most:
        return list(range(1, calls + 1))
    return sorted({1, calls, *random.Random(calls).sample(range(2, calls), most - 2)})
