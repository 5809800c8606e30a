"""Check the path of a new folder or file, before a command computes anything."""

import os
from collections.abc import Iterable
from pathlib import Path

SEAL = "checkpoint.json"  # lists the files of a sealed folder (tools/CHECKPOINT.md)


def folder_path(target: str | Path, inputs: Iterable[Path] = ()) -> Path:
    """Return the path of a new folder: the result of `follow_last_link(target)`, which may be an empty folder.

    inputs: folders that must not change. Raises ValueError if the path is a file, a folder with files, the current
    folder or a mount point, is inside an input or a sealed folder, or cannot be written.
    """
    path = follow_last_link(target)
    check_place(path, target, inputs)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{target} exists already and is not an empty folder; name a new folder or remove it")
    if path.exists() and path.resolve() == Path.cwd():
        raise ValueError(f"{target} is the current folder, which cannot be replaced; name a new folder")
    if path.is_mount():
        raise ValueError(f"{target} is a mount point, which cannot be replaced; name a folder inside it")
    return path


def file_path(target: str | Path, replace: bool = False) -> Path:
    """Return the path of a new file: the result of `follow_last_link(target)`.

    replace: the file may exist already. Raises ValueError if the path is a folder, a device or a pipe, exists without
    `replace`, is inside a sealed folder, or cannot be written.
    """
    path = follow_last_link(target)
    check_place(path, target)
    if path.exists() and not path.is_file():
        raise ValueError(f"{target} is a {'folder' if path.is_dir() else 'device or pipe'}; name a file")
    if path.exists() and not replace:
        raise ValueError(f"{target} exists already; name a new file or remove it")
    return path


def check_output(output: str | Path, inputs: Iterable[str], option: str = "output") -> None:
    """Check the file of --output or another option, which may exist already, before a command reads its input files.

    Raises FileNotFoundError if its folder does not exist, ValueError if it is an input file or if `file_path`
    refuses it.
    """
    path = file_path(output, replace=True)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} does not exist; create the folder of --{option} {output} first")
    if any(path.resolve() == Path(name).resolve() for name in inputs if name):
        raise ValueError(f"{output} is an input file; give --{option} another name")


def follow_last_link(target: str | Path) -> Path:
    """Return `target`, or the real path that it leads to if its last part is a link, "." or "..".

    Raises ValueError for a link to itself.
    """
    path, given = Path(os.path.realpath(target)), Path(target)
    if path.is_symlink():
        raise ValueError(f"{target} is a link that leads to itself; remove it or name another target")
    return path if given.is_symlink() or given.name != path.name else given


def check_place(path: Path, target: str | Path, inputs: Iterable[Path] = (), may_exist: bool = False) -> None:
    """Raise ValueError if a new file or folder is inside an input or a sealed folder, or cannot be created.

    path: the result of `follow_last_link(target)`, or a path inside it. may_exist: `path` may be a folder with files;
    then also raise if it is itself an input or a sealed folder.
    """
    above = [*([path.resolve()] if may_exist else []), *path.resolve().parents]
    for folder in inputs:
        if folder.resolve() in above:
            place = "is" if folder.resolve() == path.resolve() else "is inside"
            raise ValueError(f"{target} {place} the input folder {folder}, which must not change; write elsewhere")
    for folder in above:
        if (folder / SEAL).is_file() and b'"blake3"' in (folder / SEAL).read_bytes():
            place = "is a sealed folder" if folder == path.resolve() else f"is inside the sealed folder {folder}"
            raise ValueError(f"{target} {place}, which must not change; write elsewhere")
    existing = next((folder for folder in above if folder.exists()), path)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "is not writable" if existing.is_dir() else "is not a folder"
        raise ValueError(f"{target} cannot be written ({existing} {reason}); write elsewhere")
