"""Checklists of original files in the format of md5sum: `<hex>  <name>`, with `*` for binary mode."""

import re
from pathlib import Path

from checkpoint_io.ordered_parallel import in_order
from checkpoint_io.tensors import progress

from checkpoint_seals.seal_check import hash_file

LINE = re.compile(r"\\?([0-9a-fA-F]{32})\s+\*?(\S.*)")


def read_list(path: Path) -> dict[str, str]:
    """Return {file name: hexadecimal md5}; ValueError with the faulty line."""
    table = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = LINE.fullmatch(line.rstrip())
        if not found:
            raise ValueError(f"{path}, line {number} is not an md5 sum and a file name; correct the list")
        name = found[2].removeprefix("./")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{path}, line {number} names {name!r}, which is not in the folder; correct the list")
        table[name] = found[1].lower()
    if not table:
        raise ValueError(f"{path} lists no file; download it again")
    return table


def verify_list(path: Path) -> int:
    """Compare the files that a list names with it, in its folder; return their number.

    Raises FileNotFoundError for a missing file, ValueError for the first one that differs.
    """
    table = read_list(path)
    files = [path.parent / name for name in table]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, which {path} lists; download it again")
    with progress(sum(file.stat().st_size for file in files), f"verifying {path.parent.name}") as bar:
        hashes = in_order(lambda file: hash_file(file, "md5"), files)
        for file, wanted, found in zip(files, table.values(), hashes, strict=True):
            if found != wanted:
                raise ValueError(f"{file} has md5 {found}, {path} says {wanted}; download it again")
            bar.update(file.stat().st_size)
    return len(table)
