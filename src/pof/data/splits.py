"""Stratified splits: every class keeps its share, the sizes are exact, the same seed gives the same samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pof._support.random import seeded
from pof.data.checks import DataError


def split_validation(labels: Tensor, size: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Take a validation set out of a training set; at least one sample of each class stays for training.

    Args:
        labels: (N,) class indices of the training set.
        size: share in (0, 1), or number of samples, a whole number >= 1.
        seed: of the choice.

    Returns:
        Ascending indices of the training and of the validation samples.

    Raises:
        DataError: if the size is no such number, or more than can be taken.
    """
    total = _count(size, len(labels), "validation size")
    chosen = _choose(labels, total, at_least=0, leave=1, seed=seed)
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[chosen] = False
    return kept.nonzero().flatten(), chosen


def stratified_fraction(labels: Tensor, size: float, *, seed: int, name: str = "size") -> Tensor:
    """Choose a part of a training set, for experiments on little data; each class keeps at least one sample.

    Args:
        labels: (N,) class indices.
        size: share in (0, 1), or number of samples in all, a whole number >= 1.
        seed: of the choice.
        name: of the size in error messages.

    Returns:
        Ascending indices.

    Raises:
        DataError: if the size is no such number, more than there is, or less than one per class.
    """
    return _choose(labels, _count(size, len(labels), name), at_least=1, leave=0, seed=seed)


def _count(size: float, available: int, name: str) -> int:
    if 0 < size < 1:
        return max(1, round(size * available))
    if size >= 1 and float(size).is_integer() and size <= available:
        return int(size)
    raise DataError(
        f"{name} {size}: give a share between 0 and 1, or a whole number up to the {available} samples there are"
    )


def _choose(labels: Tensor, total: int, *, at_least: int, leave: int, seed: int) -> Tensor:
    classes, counts = torch.unique(labels, return_counts=True)
    quotas = _quotas(counts.tolist(), total, at_least=at_least, leave=leave)
    order = torch.randperm(len(labels), generator=seeded(seed))
    chosen = [order[labels[order] == label][:quota] for label, quota in zip(classes.tolist(), quotas, strict=True)]
    return torch.cat(chosen).sort().values


def _quotas(counts: list[int], total: int, *, at_least: int, leave: int) -> list[int]:
    # Largest remainders: whole parts first, the rest to the classes that lost most by rounding down.
    low = [min(at_least, count) for count in counts]
    high = [count - leave for count in counts]
    if not sum(low) <= total <= sum(high):
        raise DataError(
            f"cannot take {total} of {sum(counts)} samples of {len(counts)} classes: between {sum(low)} and "
            f"{sum(high)} can be taken, so that each class is on the training side"
        )
    shares = [total * count / sum(counts) for count in counts]
    quotas = [min(max(math.floor(s), a), b) for s, a, b in zip(shares, low, high, strict=True)]
    while (missing := total - sum(quotas)) != 0:
        step = 1 if missing > 0 else -1
        movable = [k for k, q in enumerate(quotas) if low[k] <= q + step <= high[k]]
        movable.sort(key=lambda k: step * (quotas[k] - shares[k]))
        for k in movable[: abs(missing)]:
            quotas[k] += step
    return quotas
