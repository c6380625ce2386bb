from __future__ import annotations

import math

import pytest
import torch

from pof._support.random import derive_seed, seeded
from pof.app.comparison import mcnemar, paired_intervals


@pytest.mark.parametrize(("fixed", "broken"), [(5, 0), (4, 1), (3, 3), (0, 0), (1, 6)])
def test_p_is_that_of_a_fair_coin(fixed: int, broken: int) -> None:
    before, after = torch.ones(20, dtype=torch.bool), torch.ones(20, dtype=torch.bool)
    before[:fixed] = False
    after[fixed : fixed + broken] = False
    found = mcnemar(before, after)
    n = fixed + broken
    tail = sum(math.comb(n, k) for k in range(min(fixed, broken) + 1)) / 2**n
    assert (found.fixed, found.broken, found.p) == (fixed, broken, pytest.approx(min(1.0, 2 * tail)))


def test_the_intervals_are_quantiles_of_resampled_means() -> None:
    values = torch.rand(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    picks = torch.randint(30, (2000, 30), generator=seeded(derive_seed(3, "bootstrap")))
    for found, row in zip(paired_intervals(list(values), 3), values, strict=True):
        means = row[picks].mean(dim=1)
        low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        assert found == pytest.approx((low, float(row.mean()), high), rel=1e-12)


def test_the_interval_is_the_normal_one_of_many_samples() -> None:
    values = torch.randn(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.3
    ((low, mean, high),) = paired_intervals([values], 0)
    half = 1.96 * float(values.std()) / math.sqrt(2000)
    # 2000 resamples give the quantiles to about 5 % of the half width.
    assert (mean - low, high - mean) == pytest.approx((half, half), rel=0.15)
