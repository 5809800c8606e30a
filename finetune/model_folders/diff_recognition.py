"""Refuse a weight diff that is given as a model; libraries load an additive diff (tuned - base) like a model.

A diff of tools/weight_diff.py has the record diff.json. A published diff has none and is recognised by norm weights.
Norm weights of the model types below start at 1; in a diff, they are the change by tuning, near 0. (Gemma stores norm
weights minus 1, so its models cannot be told from diffs.) The norms of early layers may also be small in a model (0.05
in LLaMA-7B), but the mean of all norms (0.29 in SmolLM2-135M-Instruct) and the final norm (above 1 in LLaMA-7B) are
larger. A folder without the record is a diff if the mean magnitudes of all norms and of the final norm are both below
NORM_MEAN.
"""

import json
from pathlib import Path
from zipfile import is_zipfile

from exact_tokenizers.tokenizer_folders import read_object

from model_folders.weight_files import weight_files

DIFF_RECORD = "diff.json"  # in exact and additive diffs
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
NORM_MEAN = 0.1
FINAL_NORMS = ("model.norm.weight", "norm.weight")


def refuse_diff(folder: Path) -> None:
    """Raise ValueError if DIFF_RECORD or the norm weights show that a folder is a diff."""
    if is_diff(folder):
        seen = "" if (folder / DIFF_RECORD).is_file() else " (its norm weights are near 0)"
        raise ValueError(
            f"{folder} is a diff, not a model{seen}; recover the model: python tools/weight_diff.py recover --path_raw "
            f"BASE --path_diff {folder} --path_tuned NEW"
        )


def is_diff(folder: Path) -> bool:
    """Return whether a folder has DIFF_RECORD, or norm weights near 0."""
    if (folder / DIFF_RECORD).is_file():
        return True
    if read_object(folder / "config.json").get("model_type") not in MODEL_TYPES:
        return False
    sums = norm_sums(folder)
    final = {name: sums[name] for name in FINAL_NORMS if name in sums}
    return bool(sums) and max(mean(sums), mean(final or sums)) < NORM_MEAN


def mean(sums: dict[str, tuple[float, int]]) -> float:
    """Return the mean magnitude of the elements of all tensors in `sums`, see `norm_sums`."""
    return sum(total for total, _ in sums.values()) / max(1, sum(count for _, count in sums.values()))


def norm_sums(folder: Path) -> dict[str, tuple[float, int]]:
    """Return name -> (sum of magnitudes, number) of the elements of each norm weight; no other weight is read.

    Files that are damaged, or in PyTorch's format from before 1.6, which cannot be read in part, are skipped.
    """
    sums: dict[str, tuple[float, int]] = {}
    for file in weight_files(folder):
        try:
            sums |= safetensors_sums(file) if file.suffix == ".safetensors" else torch_sums(file)
        except (ValueError, KeyError, TypeError, AttributeError):  # damaged: reading the weights reports it
            continue
    return sums


def is_norm(name: str, dimensions: int) -> bool:
    return name.endswith("norm.weight") and dimensions == 1


def safetensors_sums(file: Path) -> dict[str, tuple[float, int]]:
    """Return the `norm_sums` of a safetensors file (8 bytes with the header's length, JSON header, data)."""
    import numpy as np

    types, sums = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}, {}
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > file.stat().st_size:
            raise ValueError(f"{file} is cut off")
        header = json.loads(stream.read(size))
        for name, entry in header.items():
            if name != "__metadata__" and is_norm(name, len(entry["shape"])) and entry["dtype"] in types:
                start, stop = entry["data_offsets"]
                stream.seek(8 + size + start)
                values = np.frombuffer(stream.read(stop - start), types[entry["dtype"]])
                if entry["dtype"] == "BF16":  # the upper half of float32
                    values = (values.astype("<u4") << 16).view("<f4")
                sums[name] = float(np.abs(values).sum(dtype=np.float64)), values.size
    return sums


def torch_sums(file: Path) -> dict[str, tuple[float, int]]:
    """Return the `norm_sums` of a .bin file, which is mapped into memory."""
    if not is_zipfile(file):
        return {}
    import pickle

    import torch

    try:
        state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(str(error)) from None
    norms = {name: value for name, value in state.items() if is_norm(name, value.dim())}
    return {name: (float(value.double().abs().sum()), value.numel()) for name, value in norms.items()}
