"""Statistics of repeated runs: mean and spread, and paired differences over seeds with interval and tests.

Seeds pair the runs: network, data split and mini-batch order are the same, so the difference per seed is less
uncertain than the figures themselves.  The interval and the t-test take the differences as normally distributed; the
Wilcoxon signed-rank test does not.  Over the comparisons of one table p-values are corrected after Holm (Scand. J.
Statist. 6, 1979).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

LEVEL = 0.95
"""Of the confidence interval."""


@dataclass(frozen=True)
class Spread:
    """Figures of several runs."""

    mean: float
    sd: float | None
    """Sample standard deviation (n - 1); None for one run."""
    n: int


@dataclass(frozen=True)
class Paired:
    """Differences of pairs, second minus first."""

    mean: float
    sd: float | None
    """Sample standard deviation of the differences; None for one pair."""
    n: int
    low: float | None
    """Of the 95 % interval of the mean (Student's t); None where there is no spread to judge by."""
    high: float | None
    p: float | None
    """Of the two-sided paired t-test; None for one pair, and where all differences are equal."""
    wilcoxon: float | None
    """p of the two-sided Wilcoxon signed-rank test; None where all differences are zero or there is one pair."""
    p_holm: float | None = None
    """``p``, corrected for the number of comparisons of the table."""
    note: str = ""
    """Why there is no p."""


def spread(values: Sequence[float]) -> Spread:
    """Summarise figures of several runs."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def paired(before: Sequence[float], after: Sequence[float]) -> Paired:
    """Compare paired figures."""
    if not before or len(before) != len(after):
        raise ValueError(f"paired figures need the same seeds, at least one; got {len(before)} and {len(after)}")
    differences = [b - a for a, b in zip(before, after, strict=True)]
    mean, n = statistics.fmean(differences), len(differences)
    if n == 1:
        return Paired(mean, None, n, None, None, None, None, note="one seed: no test")
    sd = statistics.stdev(differences)
    # Shares of the same data set that are equal as fractions may differ by rounding.
    scale = max(map(abs, [*before, *after]))
    if max(differences) - min(differences) <= 4 * math.ulp(scale):
        note = "no difference in any seed" if abs(mean) <= 4 * math.ulp(scale) else "the same difference in every seed"
        return Paired(mean, sd, n, None, None, None, None, note=note)
    from scipy import stats

    test = stats.ttest_rel(after, before)
    low, high = map(float, test.confidence_interval(LEVEL))
    # Equal changes of the number of errors are ties, whatever the last bits of their shares say.
    rounded = [round(difference / scale, 12) for difference in differences]
    return Paired(mean, sd, n, low, high, float(test.pvalue), float(stats.wilcoxon(rounded).pvalue))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for their number, after Holm: p_(k) becomes max over j <= k of min(1, (m - j + 1) p_(j))."""
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None and not math.isnan(p))
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[index] = largest
    return corrected


def corrected(comparisons: Sequence[Paired]) -> list[Paired]:
    """Fill in the corrected p-values of a family of comparisons."""
    values = holm([comparison.p for comparison in comparisons])
    return [replace(comparison, p_holm=value) for comparison, value in zip(comparisons, values, strict=True)]
