"""Seal a checkpoint folder, verify its seal or a published list of hashes, show what it holds, compare two.

    python tools/checkpoint.py seal checkpoints/tuned --parents checkpoints/base,checkpoints/adapter
    python tools/checkpoint.py verify checkpoints/tuned      # exit 2 names the first file that is not as sealed
    python tools/checkpoint.py verify checkpoints/tuned --sums md5sums.txt   # a list as md5sum or sha256sum writes it
    python tools/checkpoint.py show checkpoints/tuned
    python tools/checkpoint.py compare checkpoints/tuned checkpoints/recovered      # exit 0 equal to the bit, 1 not

The seal is checkpoint.json (tools/CHECKPOINT.md): size, BLAKE3 and sha256 of every file, BLAKE3 of every tensor, the
parents, and one fingerprint of the weights that stays the same however they are sharded. With --sign_key it is signed,
with --public_key the signature is verified (signatures.py).
"""

from command_line.fire_commands import run

import hashlib
import math
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3
from checkpoint_io import signatures
from checkpoint_io.bit_patterns import FLOATS, to_float32
from checkpoint_io.checkpoint_folders import existing, read_json, write_json
from checkpoint_io.ordered_parallel import in_order
from checkpoint_io.published_hashes import verify_list
from checkpoint_io.seal_check import SEAL, files_of, hash_file, verify_seal
from checkpoint_io.tensors import (
    ADAPTER_FILES,
    MODEL_FILES,
    Tensor,
    digests,
    fingerprint,
    progress,
    read_safetensors,
    read_weights,
)  # fmt: skip
from weight_diffs.exact_diff import DIFF_FILES, is_exact

ALL_FILES = (*MODEL_FILES, *ADAPTER_FILES, *DIFF_FILES)
NOTES = 5  # lines that `compare` prints about tensors that cannot be compared bit by bit


def kind_of(folder: Path) -> str:
    """full, adapter, diff or quantised, from the files that are there."""
    if is_exact(folder):
        return "diff"
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    for file in sorted(folder.glob("model*.safetensors"))[:1]:
        if read_safetensors(file)[1].get("kind") == "additive-diff":
            return "diff"
    config = folder / "config.json"
    return "quantised" if config.is_file() and read_json(config).get("quantization_config") else "full"


def weights_of(folder: Path) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """A folder's tensors, their hashes and their fingerprint, read from the bytes themselves."""
    tensors = read_weights(folder, ALL_FILES)
    hashes = digests(tensors.values(), f"hashing {folder.name}")
    return tensors, hashes, fingerprint(tensors.values(), hashes)


def parent_of(folder: Path) -> dict[str, str]:
    """A parent's name and the fingerprint of its weights: from its seal where it has one, else computed."""
    seal = folder / SEAL
    weights = read_json(seal).get("weights") if seal.is_file() else weights_of(folder)[2]
    return {"name": folder.resolve().name, "weights": str(weights)}


def seal(folder: str, parents: tuple[str, ...] = (), sign_key: str = "") -> None:
    """Write checkpoint.json into a finished folder (again, if it has one).

    Args:
        folder: the checkpoint folder.
        parents: folders that it was made from, separated by commas.
        sign_key: a private key (PEM, elliptic curve) to sign the folder with.
    """
    path = existing(folder, "seal")
    if sign_key:
        signatures.package()  # said before anything is hashed or written
    ancestors = [existing(name, "--parents") for name in parents]
    signatures.remove(path)  # of an earlier seal
    _, tensors, weights = weights_of(path)
    files = files_of(path)
    table = {}
    with progress(sum(file.stat().st_size for file in files.values()), "hashing files") as bar:
        hashes = in_order(lambda file: hash_file(file, blake3(), hashlib.sha256()), files.values())
        for (name, file), (ours, published) in zip(files.items(), hashes, strict=True):
            table[name] = {"size": file.stat().st_size, "blake3": ours, "sha256": published}
            bar.update(file.stat().st_size)
    content = {
        "format": 2, "kind": kind_of(path), "weights": weights,
        "parents": [parent_of(ancestor) for ancestor in ancestors], "files": table, "tensors": tensors,
    }  # fmt: skip
    write_json(path / f".{SEAL}.partial", content)
    (path / f".{SEAL}.partial").replace(path / SEAL)
    signed = f", signed in {signatures.sign(path, sign_key)}" if sign_key else ""
    print(f"{path / SEAL}: {content['kind']}, {len(table)} files, weights {weights[:16]}{signed}")


def verify(folder: str, sums: str = "", public_key: str = "") -> None:
    """Compare every file with the seal or with a published list; exit status 2 names the first that differs.

    Args:
        folder: a checkpoint folder, sealed unless a list is given.
        sums: a list of md5 or sha256 sums and file names, as md5sum and sha256sum write it; instead of the seal.
        public_key: verify the seal's signature, too, with this key (PEM).
    """
    path = existing(folder, "verify")
    if sums:
        kind, count = verify_list(path, Path(sums))
        print(f"{path}: all {count} files as listed in {sums} ({kind})")
    if sums and not public_key:
        return
    if not (path / SEAL).is_file():
        raise FileNotFoundError(
            f"{path} has no {SEAL}; seal it where it was made: python tools/checkpoint.py seal {path}"
        )
    if public_key:
        signatures.verify(path, public_key)
    print(f"{path}: all {verify_seal(path)} files as sealed{', the signature holds' if public_key else ''}")


def show(folder: str) -> None:
    """Say what a folder holds: kind, tensors, parameters, types, the fingerprint of its weights (computed), parents.

    Args:
        folder: a checkpoint folder, sealed or not.
    """
    path = existing(folder, "show")
    tensors, _, weights = weights_of(path)
    types = Counter[str]()
    for tensor in tensors.values():
        types[tensor.dtype] += tensor.elements
    print(f"folder      {path}")
    print(f"kind        {kind_of(path)}")
    print(f"tensors     {len(tensors)} in {len({tensor.file for tensor in tensors.values()})} file(s)")
    print(f"parameters  {sum(types.values()):,} ({', '.join(f'{dtype} {count:,}' for dtype, count in types.items())})")
    print(f"bytes       {sum(tensor.nbytes for tensor in tensors.values()):,}")
    print(f"weights     {weights}")
    if not (path / SEAL).is_file():
        print("seal        none")
        return
    sealed = read_json(path / SEAL)
    print(f"seal        {'the same weights' if sealed.get('weights') == weights else 'OTHER WEIGHTS: run verify'}")
    for parent in sealed.get("parents", []):
        print(f"parent      {parent['name']} {parent['weights']}")


@dataclass
class Distance:
    """How far two sets of weights lie apart, summed tensor by tensor."""

    elements: int = 0
    different: int = 0  # elements whose bits differ (whose values differ, where the types do)
    tensors: int = 0  # tensors with such elements
    largest: float = 0.0  # |a - b|; infinite where one is NaN or infinite and the other is not
    at: str = ""  # the tensor of the largest
    squares: float = 0.0  # sum of (a - b)^2
    size: float = 0.0  # sum of a^2

    def add(self, first: Tensor, second: Tensor) -> None:
        """Take in two tensors of one shape."""
        before = self.different
        for ours, theirs in zip(first.chunks(), second.chunks(), strict=True):
            numbers = first.dtype in FLOATS and second.dtype in FLOATS
            a, b = (to_float32(ours, first.dtype), to_float32(theirs, second.dtype)) if numbers else (ours, theirs)
            unequal = ours != theirs if first.dtype == second.dtype else a != b
            self.different += int(np.count_nonzero(unequal))
            if numbers:
                with np.errstate(invalid="ignore"):
                    gap = np.where(unequal, a.astype(np.float64) - b, 0.0)
                gap[np.isnan(gap)] = np.inf
                largest = float(np.abs(gap).max(initial=0.0))
                if largest > self.largest:
                    self.largest, self.at = largest, first.name
                self.squares += float(gap @ gap)
                self.size += float(np.square(a, dtype=np.float64).sum())
        self.elements += first.elements
        self.tensors += self.different > before


def compare(first: str, second: str) -> None:
    """Say whether two folders hold the same weights to the bit (exit status 0), or how far apart they are (1).

    Args:
        first: a checkpoint folder.
        second: another.
    """
    a, b = (read_weights(existing(name, "compare"), ALL_FILES) for name in (first, second))
    notes = [f"{name} is only in {first}" for name in a if name not in b]
    notes += [f"{name} is only in {second}" for name in b if name not in a]
    total = Distance()
    with progress(sum(tensor.nbytes for tensor in a.values()), "comparing") as bar:
        for name in (name for name in a if name in b):
            ours, theirs = a[name], b[name]
            if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
                kinds = (f"{tensor.dtype} {list(tensor.shape)}" for tensor in (ours, theirs))
                notes.append(f"{name} is {' and '.join(kinds)}")
            if ours.shape == theirs.shape:
                total.add(ours, theirs)
            bar.update(ours.nbytes)
    if not total.different and not notes:
        print(f"equal: {len(a)} tensors, {total.elements:,} parameters, every bit")
        return
    relative = math.sqrt(total.squares / total.size) if total.size else 0.0
    print(f"different: {total.different:,} of {total.elements:,} parameters, in {total.tensors} of {len(a)} tensors")
    print(f"largest difference {total.largest:.3g} in {total.at or 'no tensor'}, relative distance {relative:.3g}")
    more = [f"and {len(notes) - NOTES} more such lines"] if len(notes) > NOTES else []
    print(*notes[:NOTES], *more, sep="\n", end="\n" if notes else "")
    sys.exit(1)


if __name__ == "__main__":
    run({"seal": seal, "verify": verify, "show": show, "compare": compare})
