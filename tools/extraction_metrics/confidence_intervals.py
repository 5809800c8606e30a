"""Confidence intervals of F1: percentile bootstrap over examples.

Efron (1979), "Bootstrap Methods: Another Look at the Jackknife". Koehn (2004), "Statistical Significance Tests for
Machine Translation Evaluation", applies it to scores of a whole corpus, such as F1 of summed counts.
"""

from collections.abc import Sequence
from typing import Any

RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)
SEED = 0
MAX_DRAWN = 1_000_000  # maximum elements of an array of drawn counts, (resamples, distinct)


def f1_interval(counts: Sequence[Sequence[int]]) -> list[float]:
    """Return the bounds of the 95 % confidence interval of F1.

    counts: correct, predicted and gold items of each unit of resampling, such as an example, (units, 3). The seed
    is fixed, so equal counts give equal intervals.
    """
    return percentile_bounds(f1_of_totals(resampled_totals(counts)))


def resampled_totals(counts: Sequence[Sequence[int]]) -> Any:
    """Return the sums of the counts in RESAMPLES samples of the units with replacement, (RESAMPLES, columns) int64.

    counts: (units, columns).
    """
    import numpy as np

    distinct, repeats = np.unique(np.asarray(counts), axis=0, return_counts=True)  # (distinct, columns), (distinct,)
    draw, shares = np.random.default_rng(SEED), repeats / len(counts)
    rows = max(1, MAX_DRAWN // len(distinct))
    sizes = [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
    # How often each of the distinct counts is in a sample of all units with replacement: (resamples, distinct).
    return np.concatenate([draw.multinomial(len(counts), shares, size) @ distinct for size in sizes])


def f1_of_totals(totals: Any) -> Any:
    """Return F1 of each row of (rows, 3) counts: correct, predicted and gold items; 0 if there are no items."""
    import numpy as np

    correct, predicted, gold = totals.T
    return np.divide(2 * correct, predicted + gold, out=np.zeros(len(totals)), where=predicted + gold > 0)


def percentile_bounds(values: Any) -> list[float]:
    """Return the bounds of the central 95 % of values."""
    import numpy as np

    return [float(bound) for bound in np.percentile(values, PERCENTILES)]
