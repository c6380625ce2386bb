"""Statistics of experiments: hand-computed cases, SciPy's own tests, and the cases that have no p."""

from __future__ import annotations

import math
import random

import pytest
from scipy import stats

from pof.app.experiment.statistics import corrected, holm, paired, spread

# One ulp of the sums involved; both sides compute in float64.
TIGHT = {"rel": 1e-12, "abs": 1e-15}


def test_spread_by_hand() -> None:
    result = spread([1.0, 2.0, 4.0, 5.0])
    assert (result.mean, result.n) == (3.0, 4)
    assert result.sd == pytest.approx(math.sqrt(10 / 3), **TIGHT)
    assert (spread([0.5]).mean, spread([0.5]).sd, spread([0.5]).n) == (0.5, None, 1)


def test_paired_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, deviation 1, t = 2 sqrt(3), quantile of Student's t with 2 degrees 4.302653."""
    result = paired([1.0, 1.0, 1.0], [2.0, 3.0, 4.0])
    assert (result.mean, result.sd, result.n) == (2.0, 1.0, 3)
    half = 4.302652729911275 / math.sqrt(3)
    assert result.low == pytest.approx(2 - half, rel=1e-9)
    assert result.high == pytest.approx(2 + half, rel=1e-9)
    # F(t) = 1/2 + t / (2 sqrt(2 + t^2)) with 2 degrees of freedom.
    assert result.p == pytest.approx(1 - math.sqrt(12 / 14), rel=1e-9)
    # All three of a sign: 2 of the 8 assignments of signs are as extreme.
    assert result.wilcoxon == pytest.approx(0.25, **TIGHT)


@pytest.mark.parametrize("n", [2, 3, 5, 20, 60])
def test_paired_equals_scipy(n: int) -> None:
    draw = random.Random(n)
    before = [draw.gauss(0.05, 0.01) for _ in range(n)]
    after = [value + draw.gauss(-0.002, 0.004) for value in before]
    result = paired(before, after)
    reference = stats.ttest_rel(after, before)
    interval = reference.confidence_interval(0.95)
    assert result.p == pytest.approx(reference.pvalue, rel=1e-9)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert result.wilcoxon == pytest.approx(stats.wilcoxon(after, before).pvalue, rel=1e-9)


def test_ties_of_shares_are_ties() -> None:
    """Errors are counts over 797 samples: differences of one error differ in their last bits, and are equal."""
    counts = [(20, 19), (31, 30), (25, 26), (18, 17), (40, 38), (22, 22)]
    shares = paired([a / 797 for a, _ in counts], [b / 797 for _, b in counts])
    assert shares.wilcoxon == stats.wilcoxon([b - a for a, b in counts]).pvalue


@pytest.mark.parametrize(
    ("before", "after", "mean", "note"),
    [
        ([0.1], [0.2], 0.1, "one seed: no test"),
        ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3], 0.0, "no difference in any seed"),
        ([0.0, 0.0], [0.0, 0.0], 0.0, "no difference in any seed"),
        ([0.1, 0.2, 0.7], [0.2, 0.3, 0.8], 0.1, "the same difference in every seed"),
    ],
)
def test_no_test_where_there_is_no_spread(before: list[float], after: list[float], mean: float, note: str) -> None:
    result = paired(before, after)
    assert result.mean == pytest.approx(mean, abs=1e-15)
    assert (result.low, result.high, result.p, result.wilcoxon, result.note) == (None, None, None, None, note)


def test_paired_refuses_what_is_not_paired() -> None:
    with pytest.raises(ValueError, match="got 2 and 1"):
        paired([0.1, 0.2], [0.1])
    with pytest.raises(ValueError, match="at least one; got 0 and 0"):
        paired([], [])


def test_holm_by_hand() -> None:
    # Sorted .005, .01, .03, .04 -> x4 .02, x3 .03, x2 .06, x1 .04 raised to .06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], **TIGHT)
    assert holm([0.6, None, 0.7]) == [1.0, None, 1.0]
    assert holm([None]) == [None]
    assert holm([]) == []


def test_a_family_without_p_keeps_its_notes() -> None:
    tests = corrected([paired([1.0, 1.0, 1.0], [2.0, 3.0, 4.0]), paired([0.1], [0.2])])
    assert tests[0].p_holm == tests[0].p
    assert (tests[1].p_holm, tests[1].note) == (None, "one seed: no test")
