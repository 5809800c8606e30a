"""Mark, find and limit complete checkpoints; remove incomplete ones.

A checkpoint-N is complete if its files match its `complete.json`, which lists the size of every file. complete.json is
written last, after all ranks have flushed their files to the disk. If it is missing or does not match, the run was
killed while saving.
"""

import json
import shutil
from contextlib import suppress
from pathlib import Path

from partial_folders.atomic_outputs import fsync_path

# complete.json has sizes but no hashes. All files are flushed before it is written, so an interrupted save can only
# omit files or shorten them, and sizes show both. Hashes would additionally detect only later changes of values.
MARKER = "complete.json"


def step_of(checkpoint: Path) -> int:
    """Return the step in the name of a checkpoint folder; -1 if the name has none."""
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else -1


def list_checkpoints(output: Path) -> list[Path]:
    """Return all folders checkpoint-N of a run, ordered by step."""
    return sorted((path for path in output.glob("checkpoint-*") if step_of(path) >= 0), key=step_of)


def list_complete(output: Path) -> list[Path]:
    """Return the complete checkpoints of a run, ordered by step."""
    return [checkpoint for checkpoint in list_checkpoints(output) if is_complete(checkpoint)]


def is_complete(checkpoint: Path) -> bool:
    """Return whether every file listed in `complete.json` exists with its size; other files are ignored."""
    try:
        expected = json.loads((checkpoint / MARKER).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return False
    return expected.items() <= _sizes(checkpoint).items()


def _sizes(checkpoint: Path) -> dict[str, int]:
    """Return the sizes of the files of a checkpoint in bytes, by relative path, without complete.json."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MARKER)
    return {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}


def flush(checkpoint: Path) -> None:
    """Flush the files of a checkpoint to the disk; one rank of each machine calls it."""
    for path in [*checkpoint.rglob("*"), checkpoint]:
        fsync_path(path)


def mark_complete(checkpoint: Path) -> None:
    """Write complete.json into a checkpoint; its files must already be flushed."""
    partial = checkpoint / f"{MARKER}.partial"
    partial.write_text(json.dumps({"step": step_of(checkpoint), "files": _sizes(checkpoint)}, indent=2) + "\n")
    fsync_path(partial)
    partial.replace(checkpoint / MARKER)
    fsync_path(checkpoint)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint, complete.json first.

    The folder is renamed to checkpoint-N.partial, so that no program takes the rest of it for a checkpoint if its
    removal fails or is interrupted.
    """
    (checkpoint / MARKER).unlink(missing_ok=True)
    with suppress(OSError):
        checkpoint = checkpoint.replace(checkpoint.with_name(f"{checkpoint.name}.partial"))
    shutil.rmtree(checkpoint, ignore_errors=True)


def keep_newest(output: Path, limit: int | None, best: str | None = None) -> None:
    """Remove all but the newest `limit` complete checkpoints (None or 0: keep all); `best` is always kept."""
    complete = list_complete(output)
    for checkpoint in complete[: -limit or None] if limit else ():
        if not best or checkpoint.resolve() != Path(best).resolve():
            remove(checkpoint)


def remove_incomplete(output: Path) -> list[str]:
    """Remove incomplete and partly deleted checkpoints; return a notice for each incomplete one."""
    for removed in output.glob("checkpoint-*.partial"):
        shutil.rmtree(removed, ignore_errors=True)
    notices = []
    for checkpoint in list_checkpoints(output):
        if not is_complete(checkpoint):
            remove(checkpoint)
            notices.append(f"{checkpoint} was incomplete, since the run was killed while saving it; it was removed")
    return notices


def is_new_run(given: str | None) -> bool:
    """Return whether a value of --resume_from_checkpoint starts a new run."""
    return not given or given.lower() in ("false", "none", "no")


def resume_point(given: str | None, output: Path) -> Path | None:
    """Return the checkpoint to resume from; None for a new run.

    given: the value of --resume_from_checkpoint: a path, "True" (also "yes" or "last") for the newest complete
    checkpoint in `output`, or a value that `is_new_run` accepts. Raises FileNotFoundError or ValueError if the
    checkpoint does not exist or is incomplete, and ValueError for a new run if `output` holds complete checkpoints.
    """
    complete = list_complete(output)
    if given is None or is_new_run(given):
        if complete:
            raise ValueError(
                f"{output} holds checkpoints of an earlier run; resume it with --resume_from_checkpoint True, "
                "or name a new folder"
            )
        return None
    if given.lower() in ("true", "yes", "last"):
        if not complete:
            raise FileNotFoundError(f"{output} holds no complete checkpoint; start without --resume_from_checkpoint")
        return complete[-1]
    if not Path(given).is_dir():
        raise FileNotFoundError(f"{given} does not exist; --resume_from_checkpoint takes a checkpoint-N, or True")
    if not is_complete(Path(given)):
        raise ValueError(f"{given} is not complete: its files do not match {MARKER}; name another checkpoint, or True")
    return Path(given)
