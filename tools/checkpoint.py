"""Seal a checkpoint folder, verify its seal, show its content, compare two folders, estimate a model's GPU memory.

    python tools/checkpoint.py seal checkpoints/tuned --parents checkpoints/base,checkpoints/adapter
    python tools/checkpoint.py verify checkpoints/tuned      # status 2 and an error line if a file differs
    python tools/checkpoint.py verify checkpoints/zhixi      # made from a published diff: also compares its MD5
    python tools/checkpoint.py show checkpoints/tuned
    python tools/checkpoint.py compare checkpoints/tuned checkpoints/recovered      # exit status 0 if equal, else 1
    python tools/checkpoint.py memory checkpoints/base --gpu_memory 24      # needs config.json only

The seal is checkpoint.json (tools/CHECKPOINT.md): size and BLAKE3 of every file, BLAKE3 of every tensor, the parents,
and one fingerprint of the weights that does not depend on how they are sharded.
"""

from command_line.fire_commands import run

import sys
from collections import Counter
from pathlib import Path

from checkpoint_io.checkpoint_folders import existing_folder
from checkpoint_io.tensors import read_weights
from checkpoint_seals.published_recovery import verify_published
from checkpoint_seals.seal_check import SEAL, read_seal, verify_seal
from checkpoint_seals.seal_writer import ALL_FILES, hashed_weights, kind_of, write_seal
from checkpoint_seals.weight_comparison import compare_weights
from memory_advice.memory_table import memory_table


def seal(folder: str, parents: tuple[str, ...] = ()) -> None:
    """Write checkpoint.json into a finished folder, replacing an older one.

    Args:
        folder: the checkpoint folder; the name of a repository is not accepted, unlike in verify, show and compare.
        parents: folders that the checkpoint was made from, separated by commas.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; seal takes a local checkpoint folder")
    print(write_seal(path, [existing_folder(name, "--parents") for name in parents]))


def verify(folder: str, published: str = "") -> None:
    """Compare every file with the seal, and a published model with its MD5 list; exit status 2 if a file differs.

    Args:
        folder: a sealed checkpoint folder, a published one, or the model recovered from a published diff.
        published: the repository of the published model or diff; needed if the folder does not identify it.
    """
    path = existing_folder(folder, "verify")
    sealed = verify_seal(path)
    if sealed:
        print(f"{path}: all {sealed} files as sealed")
    report = verify_published(path, published, identify=not sealed)
    if not sealed and not report:
        raise FileNotFoundError(
            f"{path} has no {SEAL} to verify; if the folder is intact, seal it: python tools/checkpoint.py seal {path}"
        )
    if report:
        print(report)


def show(folder: str) -> None:
    """Print a folder's kind, tensors, parameters, types, bytes, the fingerprint of its weights (computed) and seal.

    Args:
        folder: a checkpoint folder, sealed or not.
    """
    path = existing_folder(folder, "show")
    tensors, _, weights = hashed_weights(path)
    types = Counter[str]()
    for tensor in tensors.values():
        types[tensor.dtype] += tensor.elements
    print(f"folder      {path}")
    print(f"kind        {kind_of(path)}")
    files = len({tensor.file for tensor in tensors.values()})
    print(f"tensors     {len(tensors)} in {files} file{'s' * (files != 1)}")
    print(f"parameters  {sum(types.values()):,} ({', '.join(f'{dtype} {count:,}' for dtype, count in types.items())})")
    print(f"bytes       {sum(tensor.nbytes for tensor in tensors.values()):,}")
    print(f"weights     {weights}")
    if not (path / SEAL).is_file():
        print("seal        none")
        return
    sealed = read_seal(path)
    print(f"seal        {'matches these weights' if sealed.get('weights') == weights else 'OTHER WEIGHTS: run verify'}")
    for parent in sealed["parents"]:
        print(f"parent      {parent['name']} {parent.get('weights') or parent.get('blake3')}")


def compare(first: str, second: str) -> None:
    """Print whether two folders hold bit-identical weights (exit status 0), or how far apart they are (exit status 1).

    Args:
        first: a checkpoint folder.
        second: another checkpoint folder.
    """
    a, b = (read_weights(existing_folder(name, "compare"), ALL_FILES) for name in (first, second))
    equal, lines = compare_weights(a, b, first, second)
    print(*lines, sep="\n")
    if not equal:
        sys.exit(1)


def memory(folder: str, gpu_memory: float | None = None) -> None:
    """Print estimates of the GPU memory that demos, server and tuning need for a model in 16, 8 and 4 bits.

    Args:
        folder: a checkpoint folder, a config.json, or a size: 1B, 7B, 13B, 70B (LLaMA).
        gpu_memory: memory of the card in GiB; adds a column that says which uses fit.
    """
    if gpu_memory is not None and gpu_memory <= 0:
        raise ValueError(f"--gpu_memory {gpu_memory:g} is not above 0; give the card's memory in GiB, such as 24")
    print(memory_table(folder, gpu_memory or 0.0))


if __name__ == "__main__":
    run({"seal": seal, "verify": verify, "show": show, "compare": compare, "memory": memory})
