"""Confidence intervals of F1: percentile bootstrap over examples.

Efron (1979), "Bootstrap Methods: Another Look at the Jackknife". Koehn (2004), "Statistical Significance Tests for
Machine Translation Evaluation", applies it to scores of a whole corpus, such as F1 of summed counts.
"""

from collections.abc import Sequence

RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)
SEED = 0
MAX_DRAWN = 1_000_000  # maximum elements of an array of drawn counts, (resamples, distinct)


def f1_interval(counts: Sequence[Sequence[int]]) -> list[float]:
    """Return the bounds of the 95 % confidence interval of F1.

    counts: correct, predicted and gold items of each unit of resampling, such as an example, (units, 3). The seed
    is fixed, so equal counts give equal intervals.
    """
    import numpy as np

    distinct, repeats = np.unique(np.asarray(counts), axis=0, return_counts=True)  # (distinct, 3), (distinct,)
    draw, shares = np.random.default_rng(SEED), repeats / len(counts)
    rows = max(1, MAX_DRAWN // len(distinct))
    sizes = [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
    # How often each of the distinct counts is in a sample of all units with replacement: (resamples, distinct).
    totals = np.concatenate([draw.multinomial(len(counts), shares, size) @ distinct for size in sizes])
    correct, predicted, gold = totals.T
    f1 = np.divide(2 * correct, predicted + gold, out=np.zeros(RESAMPLES), where=predicted + gold > 0)
    return [float(bound) for bound in np.percentile(f1, PERCENTILES)]
