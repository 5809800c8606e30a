"""Report the base that a diff needs, its size, and how much each layer changed, as text and as a picture.

The change of an exact diff is measured in stored bits per weight (from its header), that of an additive diff as the
root mean square of the differences.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from checkpoint_io.bit_patterns import to_float32
from checkpoint_io.checkpoint_folders import read_json
from checkpoint_io.ordered_parallel import in_order
from checkpoint_io.tensors import DIFF_FILES, Spec, Tensor, has_weights, read_weights

from weight_diffs.additive_diff import RECORD
from weight_diffs.exact_diff import ExactDiff, read_diff

LAYER = re.compile(r"(.+?)\.(\d+)\.(.+)")  # model.layers.7.mlp.up_proj.weight
BAR = 40  # width of the longest bar in characters
Changes = dict[str, tuple[float, int]]  # tensor name -> (change, elements)


def print_report(folder: Path, picture: str) -> None:
    """Print the report on a diff folder; picture: a .png file to draw a heat map into, or ""."""
    if has_weights(folder, DIFF_FILES):
        diff = read_diff(folder)
        unit, changes = "bits per weight", exact_changes(diff)
        print(*exact_lines(diff), sep="\n")
    else:
        tensors = read_weights(folder)
        unit, changes = "root mean square", additive_changes(tensors)
        print(*additive_lines(folder, tensors), sep="\n")
    print(f"change      {unit}")
    print(*bars(by_layer(changes)), sep="\n")
    if picture:
        draw(changes, unit, folder.resolve().name, Path(picture))
        print(f"picture     {picture}")


def exact_lines(diff: ExactDiff) -> list[str]:
    size = sum(payload.nbytes for payload in diff.payloads.values())
    whole = sum(math.prod(entry.shape) - entry.from_base for entry in diff.entries.values())
    alone = sum(not entry.from_base for entry in diff.entries.values())
    parameters = sum(math.prod(entry.shape) for entry in diff.entries.values())
    ranks = sorted({entry.rank for entry in diff.entries.values() if entry.rank})
    tuned = sum(Spec(name, entry.dtype, entry.shape).nbytes for name, entry in diff.entries.items())
    lines = [
        "kind        exact diff",
        f"needs       the base with weights {diff.base}",
        f"gives       weights {diff.tuned}",
        f"tensors     {len(diff.entries)}, {alone} of them stored without the base",
        f"parameters  {parameters:,}, {whole:,} of them stored without the base",
        f"bytes       {size:,}, {size / max(1, tuned):.2%} of the tuned weights' {tuned:,}",
    ]
    if ranks:
        count = sum(entry.rank > 0 for entry in diff.entries.values())
        lines.append(f"low rank    {count} matrices changed by one of rank {', '.join(map(str, ranks))}")
    return lines


def additive_lines(folder: Path, tensors: Mapping[str, Tensor]) -> list[str]:
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    kinds = sorted({tensor.dtype for tensor in tensors.values()})
    return [
        f"kind        additive diff ({', '.join(kinds)}); recovery rounds",
        f"needs       {'the base with weights ' + record['base'] if record else 'a base that is not recorded'}",
        f"gives       {'weights ' + record['recovered'] if record else 'weights that are not recorded'}",
        f"tensors     {len(tensors)}",
        f"parameters  {sum(tensor.elements for tensor in tensors.values()):,}",
        f"bytes       {sum(tensor.nbytes for tensor in tensors.values()):,}",
    ]


def exact_changes(diff: ExactDiff) -> Changes:
    return {
        name: (8 * diff.payloads[name].nbytes / max(1, math.prod(entry.shape)), math.prod(entry.shape))
        for name, entry in diff.entries.items()
    }


def additive_changes(tensors: Mapping[str, Tensor]) -> Changes:
    def spread(tensor: Tensor) -> float:
        squares = (float(np.square(to_float32(c, tensor.dtype), dtype=np.float64).sum()) for c in tensor.chunks())
        return math.sqrt(math.fsum(squares) / max(1, tensor.elements))

    found = in_order(spread, tensors.values())
    return {name: (value, tensors[name].elements) for name, value in zip(tensors, found, strict=True)}


def by_layer(changes: Changes) -> dict[str, float]:
    """Return the mean change per element of each layer, and of each tensor outside the layers."""
    groups: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for name, change in changes.items():
        found = LAYER.fullmatch(name)
        groups[f"{found[1]}.{found[2]}" if found else name].append(change)
    return {
        group: sum(value * count for value, count in parts) / max(1, sum(count for _, count in parts))
        for group, parts in groups.items()
    }


def bars(layers: Mapping[str, float]) -> list[str]:
    width, largest = max(map(len, layers), default=0), max(layers.values(), default=0.0) or 1.0
    return [f"  {name:{width}}  {value:9.4g}  {'█' * round(BAR * value / largest)}" for name, value in layers.items()]


def draw(changes: Changes, unit: str, title: str, path: Path) -> None:
    """Draw a heat map with a column per layer and a row per tensor kind."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = {name: LAYER.fullmatch(name) for name in changes}
    layers = sorted({int(match[2]) for match in found.values() if match})
    kinds = list(dict.fromkeys(match[3] if match else name for name, match in found.items()))
    grid = np.full((len(kinds), max(1, len(layers))), np.nan)
    for name, match in found.items():
        row = kinds.index(match[3] if match else name)
        grid[row, layers.index(int(match[2])) if match else slice(None)] = changes[name][0]
    figure, axes = pyplot.subplots(figsize=(3 + 0.25 * grid.shape[1], 1.2 + 0.3 * len(kinds)), layout="constrained")
    image = axes.imshow(grid, aspect="auto", cmap="viridis")
    axes.set(title=f"{title}: change", xlabel="layer", xticks=range(len(layers)), yticks=range(len(kinds)))
    axes.set_xticklabels([str(layer) if layer % max(1, len(layers) // 20) == 0 else "" for layer in layers])
    axes.set_yticklabels(kinds)
    figure.colorbar(image, label=unit)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be drawn ({error}); --picture takes a .png file") from None
    finally:
        pyplot.close(figure)
