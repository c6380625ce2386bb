"""Batches of every kind, and loaders that cannot be trained with, each with one clear line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import pof
from pof._support.batches import first_samples, to_device, unpack
from tests.cases import batch, batches, mlp

Pair = tuple[Tensor, Tensor]


def fit(method: pof.Method, data: Any, **options: Any) -> pof.FitResult:
    return pof.fit(method, data, **{"epochs": 1, "device": "cpu", **options})


@pytest.mark.parametrize("make", [pof.Finetune, pof.PoF])
def test_a_batch_that_is_none_ends_no_epoch_but_is_named(make: Any) -> None:
    data = [batches(1)[0], None, *batches(2)]
    with pytest.raises(ValueError, match=r"a batch must be \(inputs, targets\) or a dict with 'labels'; got NoneType"):
        fit(make(mlp()), data)
    assert [pair for pair in pof.with_reference([1, None, 2])] == [(1, None), (None, 2), (2, 1)]


class Recycling:
    """Every mini-batch lies in the memory of the one before, or of the one ``behind`` it."""

    def __init__(self, kind: str, behind: int = 1) -> None:
        self.kind, self.behind = kind, behind

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Pair]:
        memory = [(numpy.zeros((16, 5)), numpy.zeros(16, dtype=numpy.int64)) for _ in range(self.behind)]
        kept = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in memory]
        for number, (inputs, targets) in enumerate(batches(4)):
            place = number % self.behind
            if self.kind == "numpy":
                for array, tensor in zip(memory[place], (inputs, targets), strict=True):
                    array[...] = tensor.numpy()
                yield torch.from_numpy(memory[place][0]), torch.from_numpy(memory[place][1])
            else:
                for mine, tensor in zip(kept[place], (inputs, targets), strict=True):
                    mine.copy_(tensor)
                yield kept[place] if self.kind == "same" else tuple(t[:] for t in kept[place])  # type: ignore[misc]


@pytest.mark.parametrize("behind", [1, 2])
@pytest.mark.parametrize("kind", ["numpy", "same", "view"])
def test_a_loader_that_recycles_its_memory_is_refused_where_mini_batches_wait(kind: str, behind: int) -> None:
    message = "the loader writes a mini-batch into the memory of one that is still needed"
    with pytest.raises(ValueError, match=message):
        fit(pof.PoF(mlp()), Recycling(kind, behind))
    with pytest.raises(ValueError, match=message):
        list(pof.with_reference(Recycling(kind, behind)))
    with pytest.raises(ValueError, match=message):
        fit(pof.Finetune(mlp()), Recycling(kind, behind), accumulation=3)


def test_a_loader_that_recycles_its_memory_trains_where_none_wait() -> None:
    model, other = mlp(), mlp()
    other.load_state_dict(model.state_dict())
    fit(pof.Finetune(model), Recycling("numpy"))
    fit(pof.Finetune(other), batches(4))
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


def test_a_loader_that_repeats_itself_is_no_recycling_one() -> None:
    x, y = batch()
    fit(pof.PoF(mlp()), [(x, y)] * 3, accumulation=2)
    fit(pof.PoF(mlp()), [(x[:8], y[:8]) for _ in range(3)], accumulation=2)


def test_a_mini_batch_of_one_sample_under_batch_norm_is_named_with_its_step() -> None:
    with pytest.raises(
        ValueError, match=r"step 3 has a mini-batch of 1 sample, too few for batch norm.*drop_last=True"
    ):
        fit(pof.Finetune(mlp(norm=True)), batches(3, last=1))


class Named(NamedTuple):
    x: Tensor
    labels: Tensor


class Turned(NamedTuple):
    labels: Tensor
    x: Tensor


class Three(NamedTuple):
    x: Tensor
    scale: Tensor
    labels: Tensor


@dataclass
class Record:
    x: Tensor
    labels: Tensor


@dataclass
class LongRecord:
    x: Tensor
    scale: Tensor
    labels: Tensor


class Scaled(nn.Module):
    """Takes two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        logits: Tensor = self.inner(x * scale)
        return logits


class Together(nn.Module):
    """Takes its two inputs as one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Scaled()

    def forward(self, both: Any) -> Tensor:
        x, scale = both.values() if isinstance(both, dict) else both
        logits: Tensor = self.inner(x, scale)
        return logits


class Nested(nn.Module):
    """Takes a dict of dicts, as keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Scaled()

    def forward(self, image: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.inner(image["x"], image["scale"])
        return logits


class Recurrent(nn.Module):
    """Takes packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.fc = nn.GRU(5, 6), nn.Linear(6, 4)

    def forward(self, sequences: PackedSequence) -> Tensor:
        logits: Tensor = self.fc(self.cell(sequences)[1][0])
        return logits


def packed(x: Tensor) -> PackedSequence:
    return pack_sequence([row.expand(1 + number % 3, -1) for number, row in enumerate(x)], enforce_sorted=False)


def scale(x: Tensor) -> Tensor:
    return torch.full((len(x), 1), 2.0, dtype=torch.float64)


KINDS: dict[str, tuple[Any, Any]] = {
    "a pair in a list": (mlp, lambda x, y: [x, y]),
    "a named tuple": (mlp, Named),
    "a named tuple, targets first": (mlp, lambda x, y: Turned(y, x)),
    "a dataclass": (mlp, Record),
    "a named tuple of three": (Scaled, lambda x, y: Three(x, scale(x), y)),
    "a dataclass of three": (Scaled, lambda x, y: LongRecord(x, scale(x), y)),
    "a dict": (Scaled, lambda x, y: {"x": x, "scale": scale(x), "labels": y}),
    "a nested dict": (Nested, lambda x, y: {"image": {"x": x, "scale": scale(x)}, "labels": y}),
    "two inputs": (Scaled, lambda x, y: ((x, scale(x)), y)),
    "two inputs as one": (Together, lambda x, y: ((x, scale(x)), y)),
    "packed sequences": (lambda: Recurrent().double(), lambda x, y: (packed(x), y)),
}


@pytest.mark.parametrize("name", KINDS)
def test_batches_of_every_kind_are_trained_and_evaluated(name: str) -> None:
    network, kind = KINDS[name]
    for make in (pof.Finetune, pof.PoF, pof.HeadAscent, lambda m: pof.SharpnessAware(m, ascent_share=0.5)):
        if name == "packed sequences" and make not in (pof.Finetune, pof.PoF, pof.HeadAscent):
            continue
        torch.manual_seed(0)
        model = network()
        data = [kind(x, y) for x, y in batches(3)]
        method = make(model)
        optimizer = method.build_optimizer(torch.optim.SGD, lr=0.1)
        result = fit(method, data, val_loader=data, optimizer=optimizer, accumulation=2)
        assert result.steps == 2 and pof.evaluate(model, data).n == 48


@pytest.mark.parametrize("name", [name for name in KINDS if name != "packed sequences"])
def test_the_first_samples_are_those_of_every_tensor(name: str) -> None:
    inputs, targets = unpack(KINDS[name][1](*batch()))
    few, labels = first_samples(inputs, targets, 4)
    found: list[Tensor] = []
    to_device(few, "cpu")

    def collect(value: Any) -> None:
        if isinstance(value, Tensor):
            found.append(value)
        else:
            for each in value.values() if isinstance(value, dict) else value:
                collect(each)

    collect(few)
    assert len(labels) == 4 and found and all(len(t) == 4 for t in found)


def test_a_part_of_packed_sequences_is_refused() -> None:
    with pytest.raises(ValueError, match="packed sequences, sparse and nested tensors cannot be cut into samples"):
        first_samples(packed(batch()[0]), batch()[1], 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Named, Record, LongRecord, Three])
def test_a_batch_keeps_its_kind_where_it_is_moved(kind: Any) -> None:
    x, y = batch()
    given = kind(x, y) if kind in (Named, Record) else kind(x, scale(x), y)
    assert type(to_device(given, "cpu")) is kind and torch.equal(to_device(given, "cpu").labels, y)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ((1, 2, 3), "got tuple of length 3"),
        (torch.zeros(2, 3), "got Tensor"),
        ({"x": 1}, "exactly one of the keys"),
        ((torch.zeros(2, 3), None), "targets must be a tensor of class indices or probabilities; got None"),
        (Three(1, 2, None), "targets must be a tensor of class indices or probabilities; got None"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_batch_is_named(given: Any, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        unpack(given)
