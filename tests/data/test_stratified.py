from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pof._support.random import seeded
from pof.data import DataError, split_validation, stratified_fraction

# Classes of 50, 30, 19 and 1 samples, in mixed order.
LABELS = torch.cat([torch.full((n,), k) for k, n in enumerate((50, 30, 19, 1))])
LABELS = LABELS[torch.randperm(100, generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize(("size", "count"), [(0.1, 10), (0.25, 25), (37, 37), (1, 1), (96, 96)])
def test_validation_is_disjoint_exact_and_stratified(size, count):
    train, validation = split_validation(LABELS, size, seed=0)
    assert len(validation) == count
    assert torch.equal(torch.cat([train, validation]).sort().values, torch.arange(100))
    assert torch.equal(train, train.sort().values)
    taken = torch.bincount(LABELS[validation], minlength=4)
    # Exact shares up to one sample, where a class is not needed for training.
    for quota, n in zip(taken.tolist()[:3], (50, 30, 19), strict=True):
        assert abs(quota - count * n / 100) <= 1
    assert taken[3] == 0
    assert len(torch.unique(LABELS[train])) == 4


@pytest.mark.parametrize(("size", "count"), [(0.1, 10), (4, 4), (100, 100), (0.5, 50)])
def test_fraction_keeps_every_class(size, count):
    chosen = stratified_fraction(LABELS, size, seed=0)
    assert len(chosen) == len(torch.unique(chosen)) == count
    assert len(torch.unique(LABELS[chosen])) == 4
    for quota, n in zip(torch.bincount(LABELS[chosen]).tolist()[:3], (50, 30, 19), strict=True):
        assert abs(quota - count * n / 100) <= 1.5


def test_seed_decides_and_the_global_state_does_not():
    state = torch.get_rng_state()
    first = split_validation(LABELS, 20, seed=1)[1]
    torch.rand(3)
    assert torch.equal(first, split_validation(LABELS, 20, seed=1)[1])
    assert not torch.equal(first, split_validation(LABELS, 20, seed=2)[1])
    torch.set_rng_state(state)
    split_validation(LABELS, 20, seed=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_classes_need_not_be_consecutive():
    labels = torch.tensor([7, 7, 7, 7, 2, 2, 2, 2])
    _, validation = split_validation(labels, 4, seed=0)
    assert sorted(labels[validation].tolist()) == [2, 2, 7, 7]


@pytest.mark.parametrize("size", [0, -0.1, 1.5, 101, float("nan")])
def test_bad_sizes(size):
    with pytest.raises(DataError, match="a share between 0 and 1, or a whole number up to the 100 samples"):
        split_validation(LABELS, size, seed=0)
    with pytest.raises(DataError, match=f"size {size}"):
        stratified_fraction(LABELS, size, seed=0)


def test_more_than_can_be_taken():
    with pytest.raises(DataError, match="cannot take 97 of 100 samples of 4 classes: between 0 and 96"):
        split_validation(LABELS, 97, seed=0)
    with pytest.raises(DataError, match="cannot take 3 of 100 samples of 4 classes: between 4 and 100"):
        stratified_fraction(LABELS, 3, seed=0)


def slow_choice(labels: Tensor, total: int, *, at_least: int, leave: int, seed: int) -> list[int]:
    """Largest remainders class by class: whole parts, then one sample each to those that lost most by rounding."""
    counts = {label: labels.tolist().count(label) for label in sorted(set(labels.tolist()))}
    low = {k: min(at_least, n) for k, n in counts.items()}
    high = {k: n - leave for k, n in counts.items()}
    shares = {k: total * n / len(labels) for k, n in counts.items()}
    quotas = {k: min(max(math.floor(shares[k]), low[k]), high[k]) for k in counts}
    while (missing := total - sum(quotas.values())) != 0:
        step = 1 if missing > 0 else -1
        movable = [k for k, q in quotas.items() if low[k] <= q + step <= high[k]]
        for k in sorted(movable, key=lambda k: step * (quotas[k] - shares[k]))[: abs(missing)]:
            quotas[k] += step
    order = torch.randperm(len(labels), generator=seeded(seed)).tolist()
    return sorted(i for k in counts for i in [i for i in order if labels[i] == k][: quotas[k]])


@pytest.mark.parametrize("seed", range(40))
def test_the_choice_is_that_of_a_loop_over_classes(seed):
    generator = seeded(seed)
    counts = torch.randint(1, 12, (7,), generator=generator) ** 2
    counts[torch.rand(7, generator=generator) < 0.4] = 1
    labels = (3 * torch.arange(7) - 5).repeat_interleave(counts)
    labels = labels[torch.randperm(len(labels), generator=generator)]
    for total in torch.randint(7, len(labels) - 6, (4,), generator=generator).tolist() if len(labels) > 13 else []:
        kept, chosen = split_validation(labels, total, seed=seed)
        assert chosen.tolist() == slow_choice(labels, total, at_least=0, leave=1, seed=seed)
        assert sorted([*kept.tolist(), *chosen.tolist()]) == list(range(len(labels)))
        expected = slow_choice(labels, total, at_least=1, leave=0, seed=seed)
        assert stratified_fraction(labels, total, seed=seed).tolist() == expected


def test_the_rest_goes_to_the_largest_remainders():
    """Hamilton's method by hand: 10 of 100 are shares of 4.7, 3.3 and 2.0."""
    labels = torch.arange(3).repeat_interleave(torch.tensor([47, 33, 20]))
    _, chosen = split_validation(labels, 10, seed=0)
    assert torch.bincount(labels[chosen]).tolist() == [5, 3, 2]


class Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("fill", [0, 40_000])
def test_many_classes_take_no_more_operations_than_few(fill):
    """12,000 classes of four samples; with ``fill`` one more class, which alone can give what all others cannot."""
    labels = torch.cat([torch.arange(12_000).repeat(4), torch.full((fill,), 12_000)])
    with Operations() as operations:
        _, chosen = split_validation(labels, 0.85 if fill else 0.1, seed=0)
    assert operations.count < 150
    assert len(torch.unique(chosen)) == round(len(labels) * (0.85 if fill else 0.1))
