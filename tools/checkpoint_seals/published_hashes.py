"""Verify files by a checklist in the format of md5sum: lines `<hex>  <name>`, in binary mode `<hex> *<name>`."""

import re
from pathlib import Path

from checkpoint_seals.seal_check import hash_files

LINE = re.compile(r"\\?([0-9a-fA-F]{32})\s+\*?(\S.*)")


def read_checklist(path: Path) -> dict[str, str]:
    """Return {file name: hexadecimal md5}; raise ValueError, which names the line, for an invalid checklist."""
    table = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = LINE.fullmatch(line.rstrip())
        if not match:
            raise ValueError(f"{path}, line {number} is not an md5 sum and a file name; correct the list")
        name = match[2].removeprefix("./")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{path}, line {number} names {name!r}, which is not in the folder; correct the list")
        table[name] = match[1].lower()
    if not table:
        raise ValueError(f"{path} lists no file; download it again")
    return table


def verify_checklist(path: Path) -> list[Path]:
    """Compare the files of a folder with its checklist; return the files that the checklist names.

    Raises FileNotFoundError for a missing file, ValueError for the first file that differs.
    """
    table = read_checklist(path)
    files = {name: path.parent / name for name in table}
    for file in files.values():
        if not file.is_file():
            raise FileNotFoundError(f"{file}, which {path} lists, is missing; download it again")
    for name, value in hash_files(files, "md5", f"verifying {path.parent.name}"):
        if value != table[name]:
            raise ValueError(f"{files[name]} has md5 {value}, {path} says {table[name]}; download it again")
    return list(files.values())
