"""Situations of an independent second look, each against a custom loop."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset, default_collate

import pof
from pof.combine import estimate_statistics
from tests.cases import batch, batches, mlp

CONSTANT: Any = {"schedule": pof.Schedule("constant"), "device": "cpu"}


def test_no_sample_that_counts_is_nothing_to_evaluate() -> None:
    inputs, targets = batch(8)
    with pytest.raises(ValueError, match="nothing to evaluate: all 8 samples have the label -100"):
        pof.evaluate(mlp(), [(inputs, torch.full_like(targets, -100))])


def test_clipping_is_of_what_is_trained() -> None:
    """Gradients outside of the optimizer are not cleared, and would grow without bound."""
    ours, theirs = mlp(), mlp()
    theirs.load_state_dict(ours.state_dict())
    data = batches(4)
    optimizer = torch.optim.SGD(ours.fc.parameters(), lr=0.5)
    pof.fit(pof.Finetune(ours), data, epochs=2, optimizer=optimizer, clip_norm=0.1, **CONSTANT)
    twin = torch.optim.SGD(theirs.fc.parameters(), lr=0.5)
    for inputs, targets in data * 2:
        twin.zero_grad()
        F.cross_entropy(theirs(inputs), targets).backward()
        nn.utils.clip_grad_norm_(theirs.fc.parameters(), 0.1)
        twin.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_an_optimizer_has_its_own_rate_afterwards_and_may_get_another() -> None:
    model, seen = mlp(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pof.fit(pof.Finetune(model), batches(2), epochs=1, optimizer=optimizer, device="cpu")
    assert optimizer.param_groups[0]["lr"] == 0.1  # not the 0 at which the cosine ends
    optimizer.param_groups[0]["lr"] = 0.001
    pof.fit(pof.Finetune(model), batches(2), epochs=1, optimizer=optimizer, log=seen.append, **CONSTANT)
    assert [row["lr"] for row in seen if row["event"] == "step"] == [0.001, 0.001]


def test_statistics_of_instance_norms_are_those_of_the_average() -> None:
    model = nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 3, 1), nn.InstanceNorm1d(3, track_running_stats=True))
    model.extend([nn.Tanh(), nn.Flatten(), nn.Linear(15, 4)]).double()
    inputs, _ = batch(24)
    estimate_statistics(model, [inputs[:16], inputs[16:]])
    maps = model[:2](inputs)
    torch.testing.assert_close(model[2].running_mean, maps.mean(dim=2).mean(dim=0))
    torch.testing.assert_close(model[2].running_var, maps.var(dim=2).mean(dim=0))


class Shuffled(Sampler[int]):
    """Draws from a generator of its own, of Python or NumPy."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator

    def __len__(self) -> int:
        return 32

    def __iter__(self) -> Iterator[int]:
        order = list(range(32))
        self.generator.shuffle(order)
        return iter(order)


class Noisy(Dataset[Any]):
    """Augments with a generator of its own."""

    def __init__(self) -> None:
        self.rng, (self.inputs, self.targets) = numpy.random.default_rng(0), batch(32)

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index] + torch.from_numpy(self.rng.normal(size=5)), self.targets[index]


class Collate:
    """Mixes with a generator of its own."""

    def __init__(self) -> None:
        self.rng = numpy.random.default_rng(0)

    def __call__(self, items: Any) -> Any:
        return noisy(items, self.rng)

    def method(self, items: Any) -> Any:
        return self(items)


def noisy(items: Any, rng: Any) -> Any:
    inputs, targets = default_collate(items)
    return inputs + torch.from_numpy(rng.normal(size=inputs.shape)), targets


def collating(collate: Any) -> Any:
    return DataLoader(TensorDataset(*batch(32)), 8, collate_fn=collate)


LOADERS = {
    "collate": lambda: collating(Collate()),
    "collate by a method": lambda: collating(Collate().method),
    "collate by partial": lambda: collating(partial(noisy, rng=numpy.random.default_rng(0))),
    "python": lambda: DataLoader(TensorDataset(*batch(32)), 8, sampler=Shuffled(random.Random(0))),
    "numpy": lambda: DataLoader(TensorDataset(*batch(32)), 8, sampler=Shuffled(numpy.random.RandomState(0))),
    "data set": lambda: DataLoader(Noisy(), 8),
    "subset": lambda: DataLoader(torch.utils.data.Subset(Noisy(), range(32)), 8),
}


@pytest.mark.parametrize("method", [pof.Finetune, pof.PoF])
@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_a_resume_goes_on_with_generators_that_samplers_and_data_sets_own(
    make: Any, method: Any, tmp_path: Path
) -> None:
    start = mlp()
    whole, killed, resumed = (copy.deepcopy(start) for _ in range(3))
    plain: Any = {"epochs": 4, "optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "device": "cpu"}
    pof.fit(method(whole), make(), **plain)

    def kill(row: Any) -> None:
        if row["event"] == "step" and row["step"] == 10:
            raise InterruptedError

    saved: Any = {"checkpoint_dir": tmp_path, "checkpoint_every": 1}
    with pytest.raises(InterruptedError):
        pof.fit(method(killed), make(), log=kill, **plain, **saved)
    pof.fit(method(resumed), make(), resume=True, **plain, **saved)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_validation_draws_the_same_from_a_generator_that_the_data_set_owns() -> None:
    data = Noisy()
    frozen = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0), "val_loader": DataLoader(data, 8)}
    result = pof.fit(pof.Finetune(mlp()), batches(2), epochs=2, **frozen, **CONSTANT)  # type: ignore[arg-type]
    assert len({row["val_nll"] for row in result.history}) == 1
    assert data.rng.normal() == numpy.random.default_rng(0).normal()  # and moves it nowhere


class Inside(nn.Module):
    """Calls its network ``module``, as wrappers do."""

    def __init__(self) -> None:
        super().__init__()
        self.module = mlp()

    def forward(self, one: Tensor, other: Tensor) -> Any:
        return self.module(one + other)


def test_a_network_inside_is_not_asked_for_the_arguments_of_the_one_around() -> None:
    (one, targets), (other, _) = batch(8), batch(8, seed=1)
    model = Inside()
    wanted = F.cross_entropy(model(one, other), targets)
    assert pof.evaluate(model, [((one, other), targets)]).nll == pytest.approx(wanted.item())


@pytest.mark.parametrize("method", [pof.HeadAscent, pof.PoF])
def test_ignored_labels_under_label_smoothing_are_as_if_left_out(method: Any) -> None:
    (inputs, targets), model = batch(16), mlp()
    some = torch.where(torch.arange(16) < 5, -100, targets)
    losses = []
    for x, y in ((inputs, some), (inputs[5:], targets[5:])):
        trained = method(model, label_smoothing=0.1).train()
        losses.append(trained(x, y, x, y).loss.item() if trained.needs_reference else trained(x, y).loss.item())
    assert losses[0] == pytest.approx(losses[1])


def test_a_partial_cross_entropy_weighs_mini_batches_by_its_class_weights() -> None:
    inputs, targets = batch(32)
    targets, weights = targets.sort().values, torch.tensor([0.1, 1.0, 3.0, 0.5], dtype=torch.float64)
    loss = partial(F.cross_entropy, weight=weights)
    whole, parts = mlp(), mlp()
    parts.load_state_dict(whole.state_dict())
    plain: Any = {"epochs": 1, "optimizer": lambda p: torch.optim.SGD(p, lr=0.5), **CONSTANT}
    pof.fit(pof.PoF(whole, gamma=0.0, loss=loss), [(inputs, targets)], **plain)
    pieces = list(zip(inputs.split(8), targets.split(8), strict=True))
    pof.fit(pof.PoF(parts, gamma=0.0, loss=loss), pieces, accumulation=4, **plain)
    torch.testing.assert_close(parts.state_dict(), whole.state_dict())


@pytest.mark.parametrize("penalty", ["fnp", "adarand"])
def test_a_penalty_weighs_samples_whatever_the_class_weights(penalty: str) -> None:
    inputs, targets = batch(32)
    targets, weights = targets.sort().values, torch.tensor([0.1, 1.0, 3.0, 0.5], dtype=torch.float64)
    start = mlp()
    whole, parts = copy.deepcopy(start), copy.deepcopy(start)
    plain: Any = {"epochs": 1, "optimizer": lambda p: torch.optim.SGD(p, lr=0.5), **CONSTANT}
    pieces = list(zip(inputs.split(8), targets.split(8), strict=True))
    for model, data, accumulation in ((whole, [(inputs, targets)], 1), (parts, pieces, 4)):
        means = torch.linspace(-1, 1, 24, dtype=torch.float64).view(4, 6)
        regularizer = pof.FNP() if penalty == "fnp" else pof.AdaRand(means, torch.zeros_like(means))
        method = pof.Regularized(model, regularizer, class_weights=weights)
        pof.fit(method, data, accumulation=accumulation, **plain)
    torch.testing.assert_close(parts.state_dict(), whole.state_dict())
