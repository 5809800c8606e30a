"""Additive diffs, the published kind: a checkpoint folder that contains tuned - base in float32 or float16.

Because of rounding, base + (tuned - base) does not always equal tuned. Diffs made here therefore record the
fingerprints of the base and of the recovered weights in additive.json. Published diffs have no such record;
published_diffs.json contains the sum of all recovered weights if the authors published it. Layout: tools/CHECKPOINT.md.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from checkpoint_io import resume_journal
from checkpoint_io.bit_patterns import FLOATS, from_float32, to_float32
from checkpoint_io.checkpoint_folders import read_json, set_dtype, write_json
from checkpoint_io.ordered_parallel import in_order
from checkpoint_io.tensor_files import verify_written, write_shards
from checkpoint_io.tensors import (
    CHUNK,
    TORCH_NAME,
    Spec,
    Tensor,
    check_finite,
    fingerprint,
    progress,
    ranges,
    tensor_hashes,
)

from weight_diffs.exact_diff import from_base

RECORD = "additive.json"
PUBLISHED = Path(__file__).parent / "published_diffs.json"
NOTE = ".download/note.json"  # written by tools/download.py; contains the folder's repository
SUM_FILE = "checksum_psum.txt"  # in some published diffs
FREQUENCIES = "rotary_emb.inv_freq"  # stored in checkpoints until 2023, although computed from the configuration
TOLERANCE = 0.5  # the published sums were computed in float32


def matching_tensors(tensors: Mapping[str, Tensor], raw: Mapping[str, Tensor], path_raw: Path) -> dict[str, Tensor]:
    """Return the tensors, except FREQUENCIES that raw lacks; ValueError for the first that does not fit raw."""
    pairs = {}
    for name, tensor in tensors.items():
        if name not in raw and name.endswith(FREQUENCIES):
            continue
        if name not in raw:
            raise ValueError(f"{path_raw} has no tensor {name}; use the base of this model")
        from_base(tensor, raw[name])  # checks the shapes
        if tensor.elements < raw[name].elements or {tensor.dtype, raw[name].dtype} - set(FLOATS):
            raise ValueError(
                f"tensor {name} is {raw[name].dtype} {list(raw[name].shape)} in {path_raw} and {tensor.dtype} "
                f"{list(tensor.shape)} in {tensor.file}; an additive diff is not possible: make an exact one"
            )
        pairs[name] = tensor
    return pairs


def rounded(bits: np.ndarray, source: str, dtype: str) -> np.ndarray:
    """Return float32 values of bit patterns of type `source`, rounded to `dtype` (F16 or F32)."""
    values = to_float32(bits, source)
    return values if dtype in (source, "F32") else to_float32(from_float32(values, dtype), dtype)


def read_rounded(tensor: Tensor, cut: tuple[int, int], dtype: str) -> np.ndarray:
    """Return float32 values of elements cut[0] to cut[1], rounded to `dtype`; 0 beyond the tensor's end."""
    values = np.zeros(cut[1] - cut[0], np.float32)
    end = min(cut[1], tensor.elements)
    if end > cut[0]:
        values[: end - cut[0]] = rounded(tensor.read_once(cut[0], end), tensor.dtype, dtype)
    return values


def write(folder: Path, tuned: Mapping[str, Tensor], raw: Mapping[str, Tensor], dtype: str, limit: int) -> float:
    """Write tuned - raw in `dtype` and additive.json; return the share of weights that recovery changes.

    The folder's journal records the recovered hash and the number of changed weights of each tensor, so that an
    interrupted run can resume. Raises ValueError, naming file and tensor, if tuned contains NaN or infinity.
    """
    specs = [Spec(tensor.name, dtype, tensor.shape) for tensor in tuned.values()]
    facts = resume_journal.finished_parts(folder)

    def difference(name: str, cut: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, int]:
        bits, kind = tuned[name].read(*cut), tuned[name].dtype
        check_finite(bits, tuned[name])
        below = read_rounded(raw[name], cut, dtype)
        change = from_float32(rounded(bits, kind, dtype) - below, dtype)
        again = from_float32(below + to_float32(change, dtype), dtype)
        return change, again, int(np.count_nonzero(to_float32(again, dtype) != to_float32(bits, kind)))

    def produce(spec: Spec) -> Iterator[np.ndarray]:
        state, changed = blake3(), 0
        for change, again, count in in_order(lambda cut: difference(spec.name, cut), ranges(spec.elements, CHUNK)):
            state.update(again.view(np.uint8).data)
            changed += count
            yield change
        facts[f"recovered {spec.name}"] = {"blake3": state.hexdigest(), "changed": changed}
        resume_journal.record_part(folder, f"recovered {spec.name}", facts[f"recovered {spec.name}"])

    write_shards(folder, specs, produce, limit, {"kind": "additive-diff"})
    base = fingerprint(raw.values(), tensor_hashes(raw.values(), "hashing the base"))
    recovered = {spec.name: facts[f"recovered {spec.name}"] for spec in specs}
    weights = fingerprint(specs, {name: fact["blake3"] for name, fact in recovered.items()})
    write_json(folder / RECORD, {"base": base, "dtype": dtype, "recovered": weights})
    return sum(fact["changed"] for fact in recovered.values()) / max(1, sum(spec.elements for spec in specs))


def recover(folder: Path, diff: Mapping[str, Tensor], raw: Mapping[str, Tensor], dtype: str, limit: int) -> str:
    """Write raw + diff in `dtype` into folder and verify the files; return the weight fingerprint."""
    specs = [Spec(tensor.name, dtype, tensor.shape) for tensor in diff.values()]

    def sums(name: str, cut: tuple[int, int]) -> np.ndarray:
        bits = from_float32(read_rounded(diff[name], cut, dtype) + read_rounded(raw[name], cut, dtype), dtype)
        check_finite(bits, Spec(f"{name} (base + diff in {TORCH_NAME[dtype]})", dtype, ()))
        return bits

    def produce(spec: Spec) -> Iterator[np.ndarray]:
        return in_order(lambda cut: sums(spec.name, cut), ranges(spec.elements, CHUNK))

    set_dtype(folder, TORCH_NAME[dtype])
    hashes = write_shards(folder, specs, produce, limit)
    verify_written(folder, hashes)
    return fingerprint(specs, hashes)


def check_base(
    path_diff: Path, diff: Mapping[str, Tensor], raw: Mapping[str, Tensor], path_raw: Path, name: str
) -> str:
    """Compare the base with the recorded fingerprint or the published sum; return a phrase that names the criterion.

    Returns "" if neither is known. name: the published diff's repository, or "". Raises ValueError if path_raw is not
    the base.
    """
    if (path_diff / RECORD).is_file():
        recorded = read_json(path_diff / RECORD).get("base")
        if fingerprint(raw.values(), tensor_hashes(raw.values(), "checking the base")) != recorded:
            raise ValueError(f"{path_raw} is not the base of {path_diff}, which was made from weights {recorded:.16}")
        return "its fingerprint"
    wanted = published_sum(path_diff, name)
    if wanted is None:
        return ""
    found = total(diff, raw, path_diff)
    if not abs(found - wanted) <= TOLERANCE:
        raise ValueError(
            f"{path_raw} + {path_diff} add up to {found:.4f}, the published model to {wanted:.4f}: "
            "the base is wrong or a file is damaged; compare both with their published hashes"
        )
    return f"the published sum {wanted:.4f}"


def published_sum(path_diff: Path, name: str) -> float | None:
    """Return the published sum of all recovered weights, from the folder or by repository; None if unknown.

    name: the repository; "" for the repository that the folder was downloaded from.
    """
    if (path_diff / SUM_FILE).is_file():
        return float((path_diff / SUM_FILE).read_text())
    table = read_json(PUBLISHED)["sums"]
    if not name and (path_diff / NOTE).is_file():
        name = str(read_json(path_diff / NOTE).get("repository"))
        name = name if name in table else ""
    if name and name not in table:
        raise ValueError(f"{PUBLISHED.name} has no sum for {name}; it has {', '.join(table)}")
    return float(table[name]["float32"]) if name else None


def total(diff: Mapping[str, Tensor], raw: Mapping[str, Tensor], path_diff: Path) -> float:
    """Return the sum of all weights that recovery would write, in float64."""

    def add(item: tuple[Tensor, tuple[int, int]]) -> float:
        tensor, cut = item
        return float(to_float32(tensor.read(*cut), tensor.dtype).sum(dtype=np.float64))

    tensors = [tensor for name in diff for tensor in (diff[name], raw.get(name)) if tensor is not None]
    jobs = [(tensor, cut) for tensor in tensors for cut in ranges(tensor.elements, CHUNK)]
    with progress(sum(tensor.nbytes for tensor in tensors), "summing the weights") as bar:
        parts = []
        for (tensor, cut), part in zip(jobs, in_order(add, jobs), strict=True):
            parts.append(part)
            bar.update((cut[1] - cut[0]) * tensor.itemsize)
    frequencies = sum(name not in raw for name in diff) * rotary_sum(read_json(path_diff / "config.json"))
    return math.fsum(parts) + frequencies


def rotary_sum(config: Mapping[str, Any]) -> float:
    """Return the sum of one layer's rotary frequencies (J. Su et al., https://arxiv.org/abs/2104.09864)."""
    width = config["hidden_size"] // config["num_attention_heads"]
    return sum(10_000.0 ** (-step / width) for step in range(0, width, 2))


def check_recovered(path_diff: Path, weights: str, dtype: str) -> bool:
    """Return whether the diff has a fingerprint of the recovered weights in `dtype`.

    weights: their fingerprint. Raises ValueError if it differs from the recorded one.
    """
    if not (path_diff / RECORD).is_file():
        return False
    record = read_json(path_diff / RECORD)
    if record.get("dtype") != dtype:
        return False
    if record.get("recovered") != weights:
        raise ValueError(f"{path_diff}: the recovered weights differ from its record; download the diff again")
    return True
