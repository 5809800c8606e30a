"""Interpolate between a base and a tuned model: (1 - weight) * base + weight * tuned, for every tensor.

Source: Wortsman et al. 2022, Robust fine-tuning of zero-shot models (WiSE-FT), https://arxiv.org/abs/2109.01903.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from checkpoint_io.bit_patterns import FLOATS, from_float32, to_float32
from checkpoint_io.ordered_parallel import in_order
from checkpoint_io.tensor_files import write_shards
from checkpoint_io.tensors import CHUNK, Spec, Tensor, check_finite, is_buffer, ranges

from weight_diffs.exact_diff import TIED, find_base_tensor, read_base


def is_tied(tensor: Tensor, weights: Mapping[str, Tensor]) -> bool:
    """Return whether a tensor is an output matrix that equals the embedding."""
    embedding = weights.get(TIED.get(tensor.name, ""))
    if embedding is None or (tensor.shape, tensor.dtype) != (embedding.shape, embedding.dtype):
        return False
    return all(
        np.array_equal(tensor.read_once(*bounds), embedding.read_once(*bounds))
        for bounds in ranges(tensor.elements, CHUNK)
    )


def write_interpolated(
    folder: Path, tuned: Mapping[str, Tensor], base: Mapping[str, Tensor], weight: float, shard_limit: int
) -> dict[str, str]:
    """Write the interpolated weights in the types of the tuned model; return {name: BLAKE3}.

    The sum is computed in float32. Buffers, tensors that are not floats, and rows that the base lacks (an extended
    vocabulary) are copied from the tuned model. Raises ValueError, which names the tensor, if one of the models has no
    such tensor (but a tied output matrix may be absent), or if a result is NaN or infinite.
    """
    for name, tensor in base.items():
        if name not in tuned and not is_buffer(tensor) and not is_tied(tensor, base):
            raise ValueError(f"the tuned model has no tensor {name}; use the base of the tuned model")
    partners: dict[str, Tensor | None] = {}
    for name, tensor in tuned.items():
        copied = is_buffer(tensor) or tensor.dtype not in FLOATS
        partners[name] = None if copied else find_base_tensor(tensor, base)
        if not copied and partners[name] is None:
            raise ValueError(f"the base has no floating-point tensor {name}; use the base of {tensor.file.parent}")

    def mix(tensor: Tensor, partner: Tensor, bounds: tuple[int, int]) -> np.ndarray:
        bits = tensor.read_once(*bounds)
        values = to_float32(bits, tensor.dtype)
        start = to_float32(read_base(partner, *bounds), partner.dtype)
        common = values[: start.size]
        mixed = np.concatenate([np.float32(1 - weight) * start + np.float32(weight) * common, values[start.size :]])
        bits = from_float32(mixed, tensor.dtype)
        check_finite(bits, tensor, "use intact copies of both inputs, or a weight between 0 and 1")
        return bits

    def produce(spec: Spec) -> Iterator[np.ndarray]:
        tensor, partner = tuned[spec.name], partners[spec.name]
        if partner is None:
            return tensor.chunks()
        return in_order(lambda bounds: mix(tensor, partner, bounds), ranges(tensor.elements, CHUNK))

    specs = [Spec(name, tensor.dtype, tensor.shape) for name, tensor in tuned.items()]
    return write_shards(folder, specs, produce, shard_limit)
