"""Report the base that a diff needs, its size, and how much each layer changed.

The change is measured in stored bits per weight for an exact diff, and as the root mean square of the differences for
an additive diff.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from checkpoint_io.bit_patterns import to_float32
from checkpoint_io.ordered_parallel import in_order
from checkpoint_io.tensors import DIFF_FILES, Tensor, has_weights, read_weights

from weight_diffs.additive_diff import recorded_base
from weight_diffs.exact_diff import read_diff, stored_bytes
from weight_diffs.full_models import refuse_full_model

LAYER = re.compile(r"(.+?\.\d+)\..+")  # model.layers.7.mlp.up_proj.weight
BAR = 40  # width of the longest bar in characters
Changes = dict[str, tuple[float, int]]  # tensor name -> (change, elements)


def print_report(folder: Path) -> None:
    """Print the report on a diff folder."""
    lines, unit, changes = (exact_report if has_weights(folder, DIFF_FILES) else additive_report)(folder)
    print(*lines, f"change      {unit}", *bar_chart(change_by_layer(changes)), sep="\n")


def exact_report(folder: Path) -> tuple[list[str], str, Changes]:
    """Return the properties of an exact diff, the unit of its changes, and the changes."""
    diff = read_diff(folder)
    specs = {name: entry.spec(name) for name, entry in diff.entries.items()}
    size = stored_bytes(folder)
    tuned = sum(spec.nbytes for spec in specs.values())
    ranks = [entry.rank for entry in diff.entries.values() if entry.rank]
    lines = [
        "kind        exact diff",
        f"needs       the base with weights {diff.base}",
        f"gives       weights {diff.tuned}",
        f"tensors     {len(specs)}, {sum(e.base_name is None for e in diff.entries.values())} stored without the base",
        f"parameters  {sum(spec.elements for spec in specs.values()):,}",
        f"bytes       {size:,}, {size / max(1, tuned):.2%} of the tuned weights' {tuned:,}",
    ]
    if ranks:
        lines.append(
            f"low rank    {len(ranks)} matrices with a change of rank {', '.join(map(str, sorted(set(ranks))))}"
        )
    changes = {
        name: (8 * diff.payloads[name].nbytes / max(1, spec.elements), spec.elements) for name, spec in specs.items()
    }
    return lines, "bits per weight", changes


def additive_report(folder: Path) -> tuple[list[str], str, Changes]:
    """Return the properties of an additive diff, the unit of its changes, and the changes.

    Raises ValueError if the folder is recognised as a full model.
    """
    tensors = read_weights(folder)
    base = recorded_base(folder)
    if not base:
        refuse_full_model(folder, tensors)
    dtypes = ", ".join(sorted({tensor.dtype for tensor in tensors.values()}))
    lines = [
        f"kind        additive diff ({dtypes}); recovery is not bit-exact",
        f"needs       {f'the base with weights {base[0]}' if base else 'a base that is not recorded'}",
        f"tensors     {len(tensors)}",
        f"parameters  {sum(tensor.elements for tensor in tensors.values()):,}",
        f"bytes       {sum(tensor.nbytes for tensor in tensors.values()):,}",
    ]

    def root_mean_square(tensor: Tensor) -> float:
        squares = (float(np.square(to_float32(c, tensor.dtype), dtype=np.float64).sum()) for c in tensor.chunks())
        return math.sqrt(math.fsum(squares) / max(1, tensor.elements))

    results = zip(tensors.values(), in_order(root_mean_square, tensors.values()), strict=True)
    return lines, "root mean square", {tensor.name: (value, tensor.elements) for tensor, value in results}


def change_by_layer(changes: Changes) -> dict[str, float]:
    """Return the mean change per element of each layer, and of each tensor outside the layers."""
    sums, elements = defaultdict[str, float](float), Counter[str]()
    for name, (change, count) in changes.items():
        layer = match[1] if (match := LAYER.fullmatch(name)) else name
        sums[layer] += change * count
        elements[layer] += count
    return {layer: total / max(1, elements[layer]) for layer, total in sums.items()}


def bar_chart(layers: Mapping[str, float]) -> list[str]:
    """Return a line with value and bar for each layer."""
    width, largest = max(map(len, layers), default=0), max(layers.values(), default=0.0) or 1.0
    return [f"  {name:{width}}  {value:9.4g}  {'█' * round(BAR * value / largest)}" for name, value in layers.items()]
