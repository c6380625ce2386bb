"""with_reference: the rule of pof.fit, for loops of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import pof
from pof.training.stream import micro_batches, windows


class Numbers(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


def test_the_reference_is_the_next_batch_and_the_first_at_the_end() -> None:
    assert list(pof.with_reference(["a", "b", "c"])) == [("a", "b"), ("b", "c"), ("c", "a")]
    assert list(pof.with_reference(["a"])) == [("a", "a")]
    assert list(pof.with_reference([])) == []


def test_pairs_are_those_of_fit() -> None:
    data = DataLoader(TensorDataset(torch.arange(10.0), torch.arange(10)), batch_size=3, shuffle=True)
    torch.manual_seed(0)
    fitted = [micro for (micro,) in windows(micro_batches(data, True, torch.device("cpu")), 1, 0)]
    torch.manual_seed(0)
    pairs = list(pof.with_reference(data))
    assert len(pairs) == 4
    for ((inputs, targets), reference), micro in zip(pairs, fitted, strict=True):
        assert torch.equal(inputs, micro.inputs) and torch.equal(targets, micro.targets)  # type: ignore[arg-type]
        assert micro.reference is not None and torch.equal(reference[1], micro.reference[1])


def test_it_is_iterated_anew_and_fetches_one_batch_ahead() -> None:
    fetched: list[int] = []

    class Loader:
        def __iter__(self) -> Iterator[int]:
            for number in range(4):
                fetched.append(number)
                yield number

    pairs = pof.with_reference(Loader())
    assert list(pairs) == list(pairs)
    fetched.clear()
    next(iter(pairs))
    assert fetched == [0, 1]


def test_length_is_the_loaders() -> None:
    assert len(pof.with_reference([1, 2, 3])) == 3
    endless = pof.with_reference(DataLoader(Numbers(), batch_size=1))
    assert len(list(endless)) == 3
    with pytest.raises(TypeError):
        len(endless)


def test_set_epoch_reaches_the_sampler() -> None:
    class Sampler(torch.utils.data.SequentialSampler):
        epoch = -1

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    data = TensorDataset(torch.arange(4.0))
    sampler: Any = Sampler(data)
    pof.with_reference(DataLoader(data, sampler=sampler)).set_epoch(5)
    assert sampler.epoch == 5


def test_an_iterator_is_refused() -> None:
    with pytest.raises(ValueError, match=r"iterated anew for each epoch; got the iterator list_iterator"):
        pof.with_reference(iter([1, 2]))
