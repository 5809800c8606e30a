"""Additive diffs, the published kind: a checkpoint folder that holds tuned - base, in float32 or float16.

Floating point rounds, so base + (tuned - base) is not always tuned. Diffs made here therefore record in additive.json
the fingerprint of their base and of what recovery gives, and how many weights come back changed. The published ones
record nothing; for those whose sum of all weights was published with them, published_diffs.json holds that sum.

weight_diff.py imports it. Layout: tools/CHECKPOINT.md.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from checkpoint_io.bit_patterns import FLOATS, from_float32, to_float32
from checkpoint_io.checkpoint_folders import read_json, set_dtype, write_json
from checkpoint_io.ordered_parallel import in_order
from checkpoint_io.tensor_files import verify_written, write_shards
from checkpoint_io.tensors import CHUNK, TORCH_NAME, Spec, Tensor, check_finite, cuts, digests, fingerprint, progress

from weight_diffs.exact_diff import from_base

RECORD = "additive.json"
PUBLISHED = Path(__file__).parent.parent / "published_diffs.json"
NOTE = ".download/note.json"  # where tools/download.py says from which repository a folder came
SUM_FILE = "checksum_psum.txt"  # some published diffs carry their sum in a file of this name
FREQUENCIES = "rotary_emb.inv_freq"  # which checkpoints up to 2023 hold though they follow from the configuration
TOLERANCE = 0.5  # the published sums were added up in float32


def pair(tensors: Mapping[str, Tensor], raw: Mapping[str, Tensor], path_raw: Path) -> dict[str, Tensor]:
    """Those tensors that can be added to or subtracted from one of raw; ValueError names the first that cannot."""
    pairs = {}
    for name, tensor in tensors.items():
        if name not in raw and name.endswith(FREQUENCIES):
            continue
        if name not in raw:
            raise ValueError(f"{path_raw} has no tensor {name}; it is not the base of this model")
        from_base(tensor, raw[name])  # the shapes belong together
        if tensor.elements < raw[name].elements or {tensor.dtype, raw[name].dtype} - set(FLOATS):
            raise ValueError(
                f"tensor {name} is {raw[name].dtype} {list(raw[name].shape)} in {path_raw} and {tensor.dtype} "
                f"{list(tensor.shape)} in {tensor.file}; these cannot be added: make an exact diff"
            )
        pairs[name] = tensor
    return pairs


def rounded(bits: np.ndarray, source: str, dtype: str) -> np.ndarray:
    """float32 values of a bit pattern, rounded to `dtype` (F16 or F32) before anything is computed with them."""
    values = to_float32(bits, source)
    return values if dtype in (source, "F32") else to_float32(from_float32(values, dtype), dtype)


def read_rounded(tensor: Tensor, cut: tuple[int, int], dtype: str) -> np.ndarray:
    """float32 values of the elements in `cut`, rounded to `dtype`; 0 for those beyond the tensor's end."""
    values = np.zeros(cut[1] - cut[0], np.float32)
    end = min(cut[1], tensor.elements)
    if end > cut[0]:
        values[: end - cut[0]] = rounded(tensor.read_once(cut[0], end), tensor.dtype, dtype)
    return values


def write(folder: Path, tuned: Mapping[str, Tensor], raw: Mapping[str, Tensor], dtype: str, limit: int) -> float:
    """Write tuned - raw in `dtype` and additive.json into folder; returns the share of weights that will come back
    changed. ValueError names file and tensor where tuned holds NaN or infinity."""
    specs = [Spec(tensor.name, dtype, tensor.shape) for tensor in tuned.values()]
    recovered: dict[str, str] = {}
    changed = 0

    def difference(name: str, cut: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, int]:
        bits, kind = tuned[name].read(*cut), tuned[name].dtype
        check_finite(bits, tuned[name])
        below = read_rounded(raw[name], cut, dtype)
        change = from_float32(rounded(bits, kind, dtype) - below, dtype)
        again = from_float32(below + to_float32(change, dtype), dtype)
        return change, again, int(np.count_nonzero(to_float32(again, dtype) != to_float32(bits, kind)))

    def produce(spec: Spec) -> Iterator[np.ndarray]:
        nonlocal changed
        state = blake3()
        for change, again, count in in_order(lambda cut: difference(spec.name, cut), cuts(spec.elements, CHUNK)):
            state.update(again.view(np.uint8).data)
            changed += count
            yield change
        recovered[spec.name] = state.hexdigest()

    write_shards(folder, specs, produce, limit, {"kind": "additive-diff"})
    base = fingerprint(raw.values(), digests(raw.values(), "hashing the base"))
    write_json(folder / RECORD, {"base": base, "dtype": dtype, "recovered": fingerprint(specs, recovered)})
    return changed / max(1, sum(spec.elements for spec in specs))


def recover(folder: Path, diff: Mapping[str, Tensor], raw: Mapping[str, Tensor], dtype: str, limit: int) -> str:
    """Write raw + diff in `dtype` into folder and verify it; returns the fingerprint of what was written."""
    specs = [Spec(tensor.name, dtype, tensor.shape) for tensor in diff.values()]

    def sums(name: str, cut: tuple[int, int]) -> np.ndarray:
        bits = from_float32(read_rounded(diff[name], cut, dtype) + read_rounded(raw[name], cut, dtype), dtype)
        check_finite(bits, Spec(f"{name} (base + diff in {TORCH_NAME[dtype]})", dtype, ()))
        return bits

    def produce(spec: Spec) -> Iterator[np.ndarray]:
        return in_order(lambda cut: sums(spec.name, cut), cuts(spec.elements, CHUNK))

    set_dtype(folder, TORCH_NAME[dtype])
    hashes = write_shards(folder, specs, produce, limit)
    verify_written(folder, hashes)
    return fingerprint(specs, hashes)


def check_base(
    path_diff: Path, diff: Mapping[str, Tensor], raw: Mapping[str, Tensor], path_raw: Path, name: str
) -> str:
    """Refuse another base before anything is written; returns what the check was made by.

    name: the published diff's repository, or "". ValueError where the recorded fingerprint or the published sum says
    that path_raw is not the base.
    """
    if (path_diff / RECORD).is_file():
        recorded = read_json(path_diff / RECORD).get("base")
        if fingerprint(raw.values(), digests(raw.values(), "checking the base")) != recorded:
            raise ValueError(f"{path_raw} is not the base of {path_diff}, which was made from weights {recorded:.16}")
        return "its fingerprint"
    wanted = published_sum(path_diff, name)
    if wanted is None:
        return ""
    found = total(diff, raw, path_diff)
    if not abs(found - wanted) <= TOLERANCE:
        raise ValueError(
            f"{path_raw} + {path_diff} add up to {found:.4f}, the published model to {wanted:.4f}: "
            "the base is another, or a file is damaged; compare both with their published hashes"
        )
    return f"the published sum {wanted:.4f}"


def published_sum(path_diff: Path, name: str) -> float | None:
    """The sum of all recovered weights as published: in the folder itself, or by repository; None where unknown.

    name: the repository; "" for the one that the folder was downloaded from.
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
    """The sum of all weights that recovery would give, in float64."""

    def add(item: tuple[Tensor, tuple[int, int]]) -> float:
        tensor, cut = item
        return float(to_float32(tensor.read(*cut), tensor.dtype).sum(dtype=np.float64))

    tensors = [tensor for name in diff for tensor in (diff[name], raw.get(name)) if tensor is not None]
    jobs = [(tensor, cut) for tensor in tensors for cut in cuts(tensor.elements, CHUNK)]
    with progress(sum(tensor.nbytes for tensor in tensors), "adding up the weights") as bar:
        parts = []
        for (tensor, cut), part in zip(jobs, in_order(add, jobs), strict=True):
            parts.append(part)
            bar.update((cut[1] - cut[0]) * tensor.itemsize)
    frequencies = sum(name not in raw for name in diff) * rotary_sum(read_json(path_diff / "config.json"))
    return math.fsum(parts) + frequencies


def rotary_sum(config: Mapping[str, Any]) -> float:
    """The sum of one layer's rotary frequencies (J. Su et al., https://arxiv.org/abs/2104.09864)."""
    width = config["hidden_size"] // config["num_attention_heads"]
    return sum(10_000.0 ** (-step / width) for step in range(0, width, 2))


def check_recovered(path_diff: Path, weights: str, dtype: str) -> bool:
    """Whether the recovered weights are those that the diff's maker got; False where nothing is recorded for them."""
    if not (path_diff / RECORD).is_file():
        return False
    record = read_json(path_diff / RECORD)
    if record.get("dtype") != dtype:
        return False
    if record.get("recovered") != weights:
        raise ValueError(f"{path_diff}: the weights came out otherwise than recorded; get the diff again")
    return True
