"""What an interrupted run had finished, so that the same command goes on there.

`.journal.jsonl` lies in the partial folder: a line that identifies the run, then one line for each finished part with
its facts. It is locked while a run writes the folder and removed before the folder gets its name.

the tools of this stage import it.
"""

import fcntl
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAME = ".journal.jsonl"


@contextmanager
def opened(partial: Path, run: str) -> Iterator[None]:
    """Make the partial folder, or take it over as it is where the same run left it; empty it where another did.

    run: what `identity` gave, or "" to begin anew. BlockingIOError where another process is writing the folder.
    """
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / NAME).open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.seek(0)
        if not run or file.readline() != f"{run}\n":
            for path in partial.iterdir():
                if path.name != NAME:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            file.truncate(0)
            file.write(f"{run}\n")
            file.flush()
        yield


def remove(partial: Path) -> None:
    (partial / NAME).unlink()


def record(folder: Path, part: str, facts: Mapping[str, Any]) -> None:
    """Note that a part is finished; nothing is noted in a folder that has no journal."""
    if (folder / NAME).is_file():
        with (folder / NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps([part, facts]) + "\n")


def finished(folder: Path) -> dict[str, dict[str, Any]]:
    """{part: its facts} as recorded, in order; a line that is cut off ends them."""
    lines = (folder / NAME).read_text(encoding="utf-8").splitlines()[1:] if (folder / NAME).is_file() else []
    parts = {}
    for line in lines:
        try:
            name, facts = json.loads(line)
        except ValueError:
            break
        parts[name] = facts
    return parts


def identity(script: str, options: Mapping[str, object], folders: Iterable[Path]) -> str:
    """One line that is the same for the same command on the same input: options, every file's size and time."""
    inputs = [
        [file.name, file.stat().st_size, file.stat().st_mtime_ns]
        for folder in folders for file in sorted(folder.iterdir()) if file.is_file()
    ]  # fmt: skip
    return json.dumps([script, {name: str(value) for name, value in options.items()}, inputs])
