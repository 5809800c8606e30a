"""Additive diffs, the published kind: a checkpoint folder that contains tuned - base in float32 or float16.

Because of rounding, base + (tuned - base) does not always equal tuned. Diffs made here record the fingerprint of the
base in diff.json. Published diffs have no such record; published.json contains the sum of all recovered weights if the
authors published it. Layout: tools/CHECKPOINT.md.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from checkpoint_io import tensors
from checkpoint_io.bit_patterns import FLOATS, cast, from_float32, to_float32
from checkpoint_io.checkpoint_folders import read_json, set_dtype
from checkpoint_io.ordered_parallel import in_order
from checkpoint_io.published_models import published_repository
from checkpoint_io.tensor_files import write_shards
from checkpoint_io.tensors import CHUNK, DIFF_RECORD, TORCH_NAME, Spec, Tensor, check_finite, ranges
from hub_download.model_registry import REGISTRY, registry
from tqdm import tqdm

from weight_diffs.exact_diff import find_base_tensor

FORMAT = "additive-diff"
SUM_FILE = "checksum_psum.txt"  # in some published diffs
FREQUENCIES = "rotary_emb.inv_freq"  # stored in checkpoints until 2023, although computed from the configuration
Weights = Mapping[str, Tensor]  # by name
# Of published sums, by the type of the weights. They were computed in this type; a wrong base is off by thousands.
TOLERANCE = {"float32": 0.5, "float16": 8.0}


def matching_tensors(weights: Weights, raw: Weights, path_raw: Path) -> dict[str, Tensor]:
    """Return the weights, except FREQUENCIES that raw lacks; ValueError for the first that does not fit raw."""
    matching = {}
    for name, tensor in weights.items():
        if name not in raw:
            if name.endswith(FREQUENCIES):
                continue
            raise ValueError(f"{path_raw} has no tensor {name}; use the base of this model")
        base = find_base_tensor(tensor, raw)
        if base is None or tensor.elements < base.elements or tensor.dtype not in FLOATS:
            raise ValueError(
                f"tensor {name} is {raw[name].dtype} {list(raw[name].shape)} in {path_raw} and {tensor.dtype} "
                f"{list(tensor.shape)} in {tensor.file}; an additive diff is not possible: make an exact one"
            )
        matching[name] = tensor
    return matching


def read_rounded(tensor: Tensor, bounds: tuple[int, int], dtype: str) -> np.ndarray:
    """Return a range of elements as float32, rounded to `dtype`; 0 beyond the tensor's end."""
    bits = tensor.read_once(*(min(element, tensor.elements) for element in bounds))
    values = np.zeros(bounds[1] - bounds[0], np.float32)
    values[: bits.size] = to_float32(cast(bits, tensor.dtype, dtype), dtype)
    return values


def write_combined(
    folder: Path, first: Weights, raw: Weights, operation: np.ufunc, dtype: str, shard_limit: int
) -> dict[str, str]:
    """Write operation(first, raw) in `dtype`: np.subtract makes a diff, np.add recovers; return {name: BLAKE3}.

    Sets the type in config.json. Raises ValueError, which names the tensor, if a result is NaN or infinite.
    """

    def combine(name: str, bounds: tuple[int, int]) -> np.ndarray:
        values = operation(read_rounded(first[name], bounds, dtype), read_rounded(raw[name], bounds, dtype))
        bits = from_float32(values, dtype)
        check_finite(bits, Spec(f"{name} ({operation.__name__} in {TORCH_NAME[dtype]})", dtype, ()))
        return bits

    def produce(spec: Spec) -> Iterator[np.ndarray]:
        return in_order(lambda bounds: combine(spec.name, bounds), ranges(spec.elements, CHUNK))

    set_dtype(folder, TORCH_NAME[dtype])
    specs = [Spec(name, dtype, tensor.shape) for name, tensor in first.items()]
    return write_shards(folder, specs, produce, shard_limit)


def check_base(path_diff: Path, diff: Weights, raw: Weights, path_raw: Path, published: str) -> str:
    """Compare the base with the recorded fingerprint or the published sum; return a phrase that names the criterion.

    Returns "" if neither is known. published: the diff's repository, "" for the one that it was downloaded from. Raises
    ValueError if path_raw is not the base.
    """
    if (path_diff / DIFF_RECORD).is_file():
        recorded = str(read_json(path_diff / DIFF_RECORD).get("base"))
        hashes = tensors.tensor_hashes(raw.values(), "checking the base")
        if tensors.fingerprint(raw.values(), hashes) != recorded:
            raise ValueError(f"{path_raw} is not the base of {path_diff}, which was made from weights {recorded:.16}")
        return "its fingerprint"
    found = published_sum(path_diff, published)
    if found is None:
        return ""
    expected, dtype = found
    actual = recovered_sum(diff, raw, path_diff)
    if not abs(actual - expected) <= TOLERANCE[dtype]:  # also true for NaN
        raise ValueError(
            f"{path_raw} + {path_diff} add up to {actual:.4f}, the published model to {expected:.4f}: "
            "the base is wrong or a file is damaged; compare both with their published hashes"
        )
    return f"the published sum {expected:.4f}"


def published_sum(path_diff: Path, repository: str) -> tuple[float, str] | None:
    """Return (the published sum of all recovered weights, their type); None if unknown.

    repository: the diff's repository; "" to recognise the folder.
    """
    if (path_diff / SUM_FILE).is_file():
        return float((path_diff / SUM_FILE).read_text()), "float32"
    sums = {name: facts["sum"] for name, facts in registry()["repositories"].items() if "sum" in facts}
    if repository and repository not in sums:
        raise ValueError(f"{REGISTRY.name} has no sum for {repository}; it has {', '.join(sums)}")
    known = sums.get(repository or published_repository(path_diff, "sum"), {})
    return next(((value, dtype) for dtype, value in known.items()), None)


def recovered_sum(diff: Weights, raw: Weights, path_diff: Path) -> float:
    """Return the sum of all weights that recovery would write, in float64.

    FREQUENCIES that raw lacks are part of the published sums, so they are computed (J. Su et al.,
    https://arxiv.org/abs/2104.09864).
    """

    def chunk_sum(item: tuple[Tensor, tuple[int, int]]) -> float:
        tensor, bounds = item
        return float(to_float32(tensor.read(*bounds), tensor.dtype).sum(dtype=np.float64))

    summands = [*diff.values(), *(raw[name] for name in diff if name in raw)]
    chunks = [(tensor, bounds) for tensor in summands for bounds in ranges(tensor.elements, CHUNK)]
    sums = tqdm(in_order(chunk_sum, chunks), "summing the weights", len(chunks), leave=False, disable=None)
    config = read_json(path_diff / "config.json")
    width = config["hidden_size"] // config["num_attention_heads"]
    frequencies = sum(10_000.0 ** (-step / width) for step in range(0, width, 2))  # of one layer
    return math.fsum(sums) + sum(name not in raw for name in diff) * frequencies
