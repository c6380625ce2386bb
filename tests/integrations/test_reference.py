"""with_reference: the rule of pof.fit, for custom loops."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from transformers import BatchEncoding

import pof
from pof.training.stream import micro_batches, windows
from tests.cases import batches, mlp

ROOT = Path(__file__).resolve().parents[2]


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


class Pixels(nn.Module):
    """Takes its inputs as keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, pixels: Tensor) -> Any:
        return self.inner(pixels)


def test_a_batch_that_is_a_mapping_or_a_dataclass_comes_as_a_pair() -> None:
    @dataclass
    class Data:
        inputs: Tensor
        label: Tensor

    plain = batches(3)
    kinds: list[list[Any]] = [
        [{"pixels": x, "labels": y} for x, y in plain],
        [BatchEncoding({"pixels": x, "labels": y}) for x, y in plain],
        [Data(x, y) for x, y in plain],
        [list(each) for each in plain],
    ]
    for loader in kinds:
        pairs = pof.with_reference(loader)
        for number, ((inputs, targets), (others, labels)) in enumerate(pairs):
            inputs, others = (each["pixels"] if isinstance(each, Mapping) else each for each in (inputs, others))
            (x, y), (a, b) = plain[number], plain[(number + 1) % 3]
            assert all(torch.equal(*two) for two in ((inputs, x), (targets, y), (others, a), (labels, b)))


LOOPS = ("README.md", "docs/trainers/plain.md", "docs/trainers/accelerate.md", "docs/methods/adarand.md")


@pytest.mark.parametrize("page", LOOPS)
def test_the_loops_of_the_pages_take_dict_batches(page: str) -> None:
    code = (ROOT / page).read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```python\n(.*?)```", code, re.DOTALL) if "pof.with_reference(" in block]
    assert blocks
    for block in blocks:
        torch.manual_seed(0)
        model = Pixels().float()
        before = [p.detach().clone() for p in model.parameters()]
        loader = [{"pixels": x.float(), "labels": y} for x, y in batches(3)]
        names = dict.fromkeys(("model", "your_trained_model"), model)
        names |= dict.fromkeys(("loader", "train_loader", "your_loader"), Again(loader))
        own = {"torch": torch, "pof": pof, "cross_entropy": F.cross_entropy}
        own["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.1)
        exec(compile(block, page, "exec"), {**own, **names})
        assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


class Again(DataLoader[Any]):
    """The mini-batches of a list; Accelerate wants a DataLoader."""

    def __init__(self, given: list[Any]) -> None:
        super().__init__(given, batch_size=None)
