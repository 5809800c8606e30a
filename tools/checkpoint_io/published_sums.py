"""Sum the weights of a recovered model, and compare the sum with the published one (tools/published.json)."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from hub_download.model_registry import registry
from tqdm import tqdm

from checkpoint_io.bit_patterns import to_float32
from checkpoint_io.ordered_parallel import in_order
from checkpoint_io.published_models import has_config
from checkpoint_io.tensors import CHUNK, Tensor, ranges

# Allowed difference between the float64 sum and the published sum, by type of the published weights. With a wrong base,
# the sum differs by thousands. The published float16 sum of the 13B model differs from its float32 sum by 6.1.
TOLERANCE = {"float32": 0.5, "float16": 8.0}
FREQUENCIES = "rotary_emb.inv_freq"  # stored in checkpoints until 2023, although computed from config.json


def is_published_sum(total: float, expected: float, dtype: str) -> bool:
    """Return whether a sum of weights is the published one; dtype: the type of the published weights."""
    return abs(total - expected) <= TOLERANCE[dtype]  # False for NaN


def find_by_sum(total: float, config: Mapping[str, Any]) -> str:
    """Return the published diff whose recovered weights have this sum and whose entry fits `config`, or ""."""
    for name, entry in registry()["repositories"].items():
        sums = entry.get("sum", {}) if has_config(entry, config) else {}
        if any(is_published_sum(total, expected, dtype) for dtype, expected in sums.items()):
            return str(name)
    return ""


def sum_phrase(total: float, config: Mapping[str, Any]) -> str:
    """Return a sum as text, followed by the published sums of models with the same config: "3.1 (NAME: 3.2)"."""
    known = registry()["repositories"].items()
    similar = [(name, entry["sum"]) for name, entry in known if "sum" in entry and has_config(entry, config)]
    others = ", ".join(f"{name}: {next(iter(sums.values())):.4f}" for name, sums in similar)
    return f"{total:.4f}" + (f" ({others})" if others else "")


def sum_weights(tensors: Iterable[Tensor], config: Mapping[str, Any], layers: int) -> float:
    """Return the sum of all elements in float64.

    layers: number of layers whose FREQUENCIES are not among the tensors. Published sums include the frequencies, so
    these are computed (J. Su et al., https://arxiv.org/abs/2104.09864).
    """

    def chunk_sum(item: tuple[Tensor, tuple[int, int]]) -> float:
        tensor, bounds = item
        return float(to_float32(tensor.read(*bounds), tensor.dtype).sum(dtype=np.float64))

    chunks = [(tensor, bounds) for tensor in tensors for bounds in ranges(tensor.elements, CHUNK)]
    sums = tqdm(in_order(chunk_sum, chunks), "summing the weights", len(chunks), leave=False, disable=None)
    width = config["hidden_size"] // config["num_attention_heads"] if layers else 0
    frequencies = sum(10_000.0 ** (-step / width) for step in range(0, width, 2))  # of one layer
    return math.fsum(sums) + layers * frequencies
