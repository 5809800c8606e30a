"""The seal of a checkpoint folder, read: are all its files as they were when it was sealed?

the tools of this stage import it. `tools/checkpoint.py` writes seals; tools/CHECKPOINT.md has the format.
"""

from pathlib import Path
from typing import Any

from blake3 import blake3

from checkpoint_io.checkpoint_folders import read_json
from checkpoint_io.ordered_parallel import in_order
from checkpoint_io.tensors import BLOCK, digest, progress, read_safetensors

SEAL = "checkpoint.json"
SIGNATURE = "model.sig"  # of everything else in the folder, the seal included
WEIGHTS = (".safetensors", ".bin")


def files_of(folder: Path) -> dict[str, Path]:
    """Every file below the folder by its relative name, without seal, signature and what is hidden (.git, .cache)."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if (
            path.is_file()
            and name.as_posix() not in (SEAL, SIGNATURE)
            and not any(part.startswith(".") for part in name.parts)
        ):
            found[name.as_posix()] = path
    return found


def hash_file(path: Path, *states: Any) -> list[str]:
    """The file's hashes in hexadecimal, one for each of the fresh hash states; the file is read once."""
    block = bytearray(BLOCK)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            for state in states:
                state.update(memoryview(block)[:size])
    return [state.hexdigest() for state in states]


def verify_seal(folder: Path, weights: bool = True) -> int:
    """How many files the seal covers, all as sealed; 0 where there is no seal.

    weights: False where the caller compares the tensors' hashes itself: of files of weights only the size is looked at.
    Raises FileNotFoundError or ValueError with the first file (and tensor) that is missing, changed or not listed.
    """
    if not (folder / SEAL).is_file():
        return 0
    sealed = read_json(folder / SEAL)
    table = sealed.get("files")
    if not isinstance(table, dict) or not all("blake3" in entry for entry in table.values()):
        raise ValueError(f"{folder / SEAL} lists no files with their hashes; seal the folder again where it was made")
    files = files_of(folder)
    for name, entry in table.items():  # sizes first: most damage shows without reading
        if name not in files:
            raise FileNotFoundError(f"{folder / name} is missing, which the seal lists; get it again")
        size = files[name].stat().st_size
        if size != entry["size"]:
            raise ValueError(f"{folder / name} has {size:,} bytes, the seal says {entry['size']:,}; get it again")
    for name in files:
        if name not in table:
            raise ValueError(f"{folder / name} is not in the seal; remove it, or seal the folder again")
    looked_at = [name for name in table if weights or Path(name).suffix not in WEIGHTS]
    with progress(sum(table[name]["size"] for name in looked_at), f"verifying {folder.name}") as bar:
        hashes = in_order(lambda name: hash_file(files[name], blake3())[0], looked_at)
        for name, found in zip(looked_at, hashes, strict=True):
            if found != table[name]["blake3"]:
                place = changed_tensor(files[name], sealed.get("tensors", {}))
                raise ValueError(f"{folder / name} is not as it was sealed ({place or 'other bytes'}); get it again")
            bar.update(table[name]["size"])
    return len(table)


def changed_tensor(path: Path, hashes: dict[str, str]) -> str:
    """Which tensor of a damaged file differs from its sealed hash; "" where none does or the file cannot be read so."""
    if path.suffix != ".safetensors":
        return ""
    try:
        tensors = read_safetensors(path)[0]
    except ValueError as error:
        return str(error)
    return next(
        (f"tensor {name}" for name, tensor in tensors.items() if digest(tensor) != hashes.get(name)), "its header"
    )
