"""Checkpoints that are complete or ignored, and what a run must have in common with the one that it goes on from.

A checkpoint-N is complete when `complete.json` in it names every file with its size. It is written last, after all
ranks have flushed their files to the disk; a folder without it, or with other files than it names, is what a killed
run left. `run_state.json` says where in the data the run was.

`pretrain/train.py` is the command line.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MARKER, STATE = "complete.json", "run_state.json"


# --- complete or ignored ----------------------------------------------------------------------------------------------


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name; -1 where the name has none."""
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else -1


def checkpoints(output: Path) -> list[Path]:
    """The folders checkpoint-N of a run, complete or not, by step."""
    return sorted((path for path in output.glob("checkpoint-*") if step_of(path) >= 0), key=step_of)


def _files(checkpoint: Path) -> dict[str, int]:
    """Sizes of a folder's files by relative path, the marker left out."""
    names = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MARKER)
    return {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in names}


def flush(checkpoint: Path) -> None:
    """Have the disk hold what this machine has written to the folder's files."""
    for path in [*checkpoint.rglob("*"), checkpoint]:
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def mark_complete(checkpoint: Path) -> None:
    """Say of a flushed checkpoint that it is complete."""
    partial = checkpoint / f"{MARKER}.partial"
    files = _files(checkpoint)
    partial.write_text(json.dumps({"step": step_of(checkpoint), "files": files}, indent=2) + "\n")
    _sync(partial)
    partial.replace(checkpoint / MARKER)
    _sync(checkpoint)


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end, and nothing of it is gone or cut short since."""
    try:
        said = json.loads((checkpoint / MARKER).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return False
    return said.items() <= _files(checkpoint).items()


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint, its marker first."""
    (checkpoint / MARKER).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def keep_newest(output: Path, limit: int | None) -> None:
    """Remove all complete checkpoints but the newest so many; None or 0: keep all."""
    complete = [checkpoint for checkpoint in checkpoints(output) if is_complete(checkpoint)]
    for checkpoint in complete[: -limit or None] if limit else ():
        remove(checkpoint)


def remove_broken(output: Path) -> list[str]:
    """Remove what killed runs left half-written; returns a notice for each."""
    broken = [checkpoint for checkpoint in checkpoints(output) if not is_complete(checkpoint)]
    for checkpoint in broken:
        remove(checkpoint)
    return [f"{checkpoint} was not written to its end; removed" for checkpoint in broken]


def resume_point(given: str, output: Path) -> Path | None:
    """The checkpoint to go on from: a path as it is, True as the newest complete one of `output`, False as none.

    Raises FileNotFoundError or ValueError where there is none, or it is not complete.
    """
    if given.lower() in ("", "false", "none", "no"):
        return None
    if given.lower() in ("true", "yes", "last"):
        complete = [checkpoint for checkpoint in checkpoints(output) if is_complete(checkpoint)]
        if not complete:
            raise FileNotFoundError(f"{output} holds no complete checkpoint; start without --resume_from_checkpoint")
        return complete[-1]
    if not Path(given).is_dir():
        raise FileNotFoundError(f"{given} does not exist; --resume_from_checkpoint takes a checkpoint-N, or True")
    if not is_complete(Path(given)):
        raise ValueError(f"{given} is not complete ({MARKER} in it says what should be there); name another, or True")
    return Path(given)


def wait_for_ranks() -> None:
    """Go on when all ranks are here."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()


# --- the same run -----------------------------------------------------------------------------------------------------


@dataclass
class RunState:
    """Where a run is in the data, and by what.

    corpus: sha256 of its files. packing: how rows were made. schedule: the sampler's state. next_row: the global row
    index at which it goes on. tokens: with loss, seen so far. world_size: ranks that wrote the checkpoint.
    """

    corpus: dict[str, str]
    packing: dict[str, Any]
    global_batch: int
    seed: int
    schedule: dict[str, Any]
    next_row: int
    tokens: int
    world_size: int

    def write(self, checkpoint: Path) -> None:
        (checkpoint / STATE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, checkpoint: Path) -> "RunState":
        """Raises ValueError where the checkpoint is not one of train.py's."""
        try:
            return cls(**json.loads((checkpoint / STATE).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{checkpoint} has no readable {STATE} ({error}); resume from another") from None


def differences(saved: RunState, now: RunState) -> list[str]:
    """In what a run is not the continuation of the saved one, each with what to give for it to be."""
    found = []
    if saved.corpus != now.corpus:
        found.append("the corpus is another one (--data_path)")
    packing = {key: (saved.packing.get(key), value) for key, value in now.packing.items()}
    found += [f"{key} was {old} and is {new}" for key, (old, new) in packing.items() if old != new]
    if saved.global_batch != now.global_batch:
        found.append(
            f"a step had {saved.global_batch} rows and would have {now.global_batch} "
            "(--per_device_train_batch_size x --gradient_accumulation_steps x ranks)"
        )
    if saved.seed != now.seed:
        found.append(f"--seed was {saved.seed} and is {now.seed}")
    if saved.schedule["names"] != now.schedule["names"]:
        found.append(
            f"rows came from {', '.join(saved.schedule['names'])} and would come from "
            f"{', '.join(now.schedule['names'])} (--source_weights)"
        )
    elif saved.schedule["segments"][-1]["counts"] != now.schedule["segments"][-1]["counts"]:
        found.append("--source_weights gives other shares")
    return found
