"""Confidence intervals of means and other ratios: percentile bootstrap over edits or texts."""

from collections.abc import Callable, Sequence
from typing import Any

from extraction_metrics.confidence_intervals import percentile_bounds, resampled_totals


def identity(values: Any) -> Any:
    return values


def ratio_figure(totals: Sequence[tuple[float, float]], transform: Callable[[Any], Any] = identity) -> dict[str, float]:
    """Return {"value", "low", "high"}: transform(sum / count) of all units with a 95 % interval over units.

    totals: (sum, count) of each unit; at least one. transform: a monotonic numpy function.
    """
    import numpy as np

    table: Any = np.asarray(totals, dtype=float)  # (units, 2)
    drawn = resampled_totals(table)
    low, high = percentile_bounds(transform(drawn[:, 0] / drawn[:, 1]))
    total, count = table.sum(0)
    return {"value": float(transform(total / count)), "low": low, "high": high}
