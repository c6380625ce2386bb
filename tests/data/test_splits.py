from __future__ import annotations

import pytest
import torch

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
