"""Stratified splits: every class keeps its share, the sizes are exact, the same seed gives the same samples."""

from __future__ import annotations

import torch
from torch import Tensor

from pof._support.random import seeded
from pof.data.checks import DataError


def split_validation(labels: Tensor, size: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Take a validation set out of a training set; at least one sample of each class stays for training.

    Args:
        labels: (N,) class indices of the training set; floating-point targets are one class.
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
    """Ascending indices of ``total`` random samples; all classes at once, there may be many thousands."""
    if labels.is_floating_point():  # no classes
        labels = torch.zeros(len(labels), dtype=torch.int64)
    _, members, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    quotas = _quotas(counts, total, at_least=at_least, leave=leave)
    order = torch.randperm(len(labels), generator=seeded(seed))
    by_class = order[members[order].argsort(stable=True)]
    rank_in_class = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return by_class[rank_in_class < quotas.repeat_interleave(counts)].sort().values


def _quotas(counts: Tensor, total: int, *, at_least: int, leave: int) -> Tensor:
    """Samples to take of each class, (C,), by largest remainders; ``at_least`` of each are taken, ``leave`` are not."""
    low, high, size = counts.clamp(max=at_least), counts - leave, int(counts.sum())
    if not int(low.sum()) <= total <= int(high.sum()):
        raise DataError(
            f"cannot take {total} of {size} samples of {len(counts)} classes: between {int(low.sum())} and "
            f"{int(high.sum())} can be taken, so that each class is on the training side"
        )
    shares = (total * counts).double() / size
    quotas = shares.floor().long().clamp(low, high)
    # The rest goes to the classes that lost most by rounding, one sample each, in turns until nothing is missing.
    while missing := total - int(quotas.sum()):
        step = 1 if missing > 0 else -1
        room = high - quotas if missing > 0 else quotas - low
        movable = room.nonzero().flatten()
        turns = min(abs(missing) // len(movable), int(room[movable].min()))
        if not turns:
            lost = step * (quotas - shares)[movable]
            movable = movable[lost.argsort(stable=True)[: abs(missing)]]
        quotas[movable] += step * max(turns, 1)
    return quotas
