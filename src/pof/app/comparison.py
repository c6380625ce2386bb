"""Two networks on the same samples: exact McNemar for the error, paired bootstrap intervals for means.

On the same samples a difference is less uncertain than either figure: only samples on which the networks disagree say
anything about the error (McNemar, Psychometrika 12, 1947).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pof._support.random import derive_seed, seeded

RESAMPLES, CHUNK = 2000, 50
SIGNIFICANT = 0.05
Interval = tuple[float, float, float]
"""Of a mean difference: low, mean, high (95 %, bootstrap over samples)."""


def in_words(interval: Interval, digits: int) -> str:
    """An interval with so many decimals."""
    low, mean, high = (f"{value:+.{digits}f}".replace("-", "−") for value in interval)
    return f"{mean} (95 % interval {low} to {high})"


@dataclass(frozen=True)
class Disagreement:
    """Samples that only one of two networks classifies correctly."""

    fixed: int
    """Only the second network is right."""
    broken: int
    """Only the first network is right."""
    p: float
    """Of the exact two-sided McNemar test; 1 where the two never disagree."""


def mcnemar(before: Tensor, after: Tensor) -> Disagreement:
    """Compare two networks by which of N samples each classifies correctly: two bool tensors (N,)."""
    from scipy.stats import binomtest

    fixed, broken = int((after & ~before).sum()), int((before & ~after).sum())
    return Disagreement(fixed, broken, float(binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0)


def paired_intervals(differences: Sequence[Tensor], seed: int) -> list[Interval]:
    """Intervals of the means of differences, each (N,) float64, all over the same resamples of the N samples."""
    columns = torch.stack(list(differences), dim=1)
    n, generator = len(columns), seeded(derive_seed(seed, "bootstrap"))
    # In pieces: 2000 resamples of a large test set would not fit into memory.
    means = torch.cat(
        [columns[torch.randint(n, (CHUNK, n), generator=generator)].mean(dim=1) for _ in range(RESAMPLES // CHUNK)]
    )
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=means.dtype), dim=0).tolist()
    return list(zip(low, columns.mean(dim=0).tolist(), high, strict=True))
