"""Published lists of hashes in the format of md5sum and sha256sum: `<hex>  <name>`, with `*` for binary mode."""

import hashlib
import re
from pathlib import Path

from checkpoint_io.ordered_parallel import in_order
from checkpoint_io.tensors import progress

from checkpoint_seals.seal_check import hash_file

KINDS = {32: "md5", 64: "sha256"}
LINE = re.compile(r"\\?([0-9a-fA-F]+)\s+\*?(\S.*)")


def read_list(path: Path) -> dict[str, str]:
    """Return {file name: hexadecimal hash}; raises FileNotFoundError, or ValueError with the faulty line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; give a list as md5sum or sha256sum writes it")
    table = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = LINE.fullmatch(line.rstrip())
        if not found or len(found[1]) not in KINDS:
            raise ValueError(f"{path}, line {number} is not an md5 or sha256 sum and a file name; correct the list")
        name = found[2].removeprefix("./")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{path}, line {number} names {name!r}, which is not in the folder; correct the list")
        table[name] = found[1].lower()
    if not table:
        raise ValueError(f"{path} lists no file; download it again")
    return table


def verify_list(folder: Path, path: Path) -> tuple[str, int]:
    """Compare a folder's files with a list; return the hash algorithms and the number of files.

    Raises FileNotFoundError for a missing file, ValueError for the first one that differs.
    """
    table = read_list(path)
    for name in table:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing, which {path} lists; download it again")
    with progress(sum((folder / name).stat().st_size for name in table), f"verifying {folder.name}") as bar:
        kinds = {name: KINDS[len(value)] for name, value in table.items()}
        found = in_order(lambda name: hash_file(folder / name, hashlib.new(kinds[name]))[0], table)
        for name, value in zip(table, found, strict=True):
            if value != table[name]:
                raise ValueError(
                    f"{folder / name} has {kinds[name]} {value}, {path} says {table[name]}; download it again"
                )
            bar.update((folder / name).stat().st_size)
    return " and ".join(sorted(set(kinds.values()))), len(table)
