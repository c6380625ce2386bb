"""Temporary changes to modules: what they change inside, and that everything is as it was after, raising or not."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pof._support.modules import evaluating, frozen_statistics, running_statistics

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")  # deprecated, and still what some networks are


class Boom(Exception):
    pass


class OwnNorm(nn.Module):
    """A custom batch norm; ``replaces``: puts new tensors instead of its buffers."""

    running_mean: Tensor
    seen: Tensor

    def __init__(self, replaces: bool = False) -> None:
        super().__init__()
        self.replaces = replaces
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training:
            return inputs - self.running_mean
        mean = inputs.mean(0)
        if self.replaces:
            self.running_mean = 0.9 * self.running_mean + 0.1 * mean.detach()
            self.seen = self.seen + 1
        else:
            self.running_mean.mul_(0.9).add_(0.1 * mean.detach())
            self.seen += 1
        return inputs - mean


class OwnSubclass(nn.BatchNorm1d):
    """A subclass with a forward of its own, as timm has them."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(super().forward(inputs))


NORMS = {
    "batch norm": lambda: nn.BatchNorm1d(4),
    "cumulative average": lambda: nn.BatchNorm1d(4, momentum=None),
    "no statistics": lambda: nn.BatchNorm1d(4, track_running_stats=False),
    "subclass": lambda: OwnSubclass(4),
    "own, in place": OwnNorm,
    "own, replacing": lambda: OwnNorm(replaces=True),
    "nested": lambda: nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.BatchNorm1d(4), OwnNorm())),
    "instance norm": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()
    ),
    "TorchScript": lambda: torch.jit.script(nn.Sequential(nn.BatchNorm1d(4))),
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(NORMS[name](), nn.Linear(4, 3))
    model(inputs(9))  # statistics that are not the initial ones
    return model


def inputs(seed: int = 0) -> Tensor:
    return 2 + 3 * torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))


def record(model: nn.Module) -> dict[str, Any]:
    """Everything that could be left behind."""
    settings = [
        (m.training, getattr(m, "track_running_stats", None), getattr(m, "momentum", None)) for m in model.modules()
    ]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    return {"settings": settings, "values": values, "storages": [p.data_ptr() for p in model.parameters()]}


def assert_same(record: dict[str, Any], other: dict[str, Any]) -> None:
    assert record["settings"] == other["settings"] and record["storages"] == other["storages"]
    assert record["values"].keys() == other["values"].keys()
    assert all(torch.equal(value, other["values"][name]) for name, value in record["values"].items())


CONTEXTS = {"evaluating": evaluating, "frozen": frozen_statistics, "running": running_statistics}
# Instance norms are no batch norms: under running_statistics they stay in their own mode.
CASES = [(name, context) for name in NORMS for context in CONTEXTS if (name, context) != ("instance norm", "running")]


@pytest.mark.parametrize("raises", [False, True], ids=["", "raising"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("name", "context"), CASES)
def test_everything_is_as_it_was(name: str, context: str, training: bool, raises: bool) -> None:
    model = network(name).train(training)
    before = record(model)
    with suppress(Boom), CONTEXTS[context](model):
        model(inputs())
        if raises:
            raise Boom
    assert_same(before, record(model))


@pytest.mark.parametrize("name", NORMS)
def test_frozen_statistics_leave_the_normalisation_as_it_is(name: str) -> None:
    model = network(name)
    usual = copy.deepcopy(model)(inputs())
    with frozen_statistics(model):
        frozen = model(inputs())
    assert torch.equal(frozen, usual)


@pytest.mark.parametrize("name", NORMS)
def test_statistics_move_on_after_the_context(name: str) -> None:
    """A helper that left momentum at 0, or tracking off, would stop them for ever."""
    model = network(name)
    plain = copy.deepcopy(model)
    for _ in range(2):
        with frozen_statistics(model):
            model(inputs(1))
        for each in (model, plain):
            each(inputs(2))
    assert_same(record(model) | {"storages": 0}, record(plain) | {"storages": 0})


def test_cumulative_average_counts_a_batch_once() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4, momentum=None))
    for seed in range(3):
        model(inputs(seed))
        with frozen_statistics(model):
            model(inputs(10 + seed))
    expected = torch.stack([inputs(seed).mean(0) for seed in range(3)]).mean(0)
    assert int(model[0].num_batches_tracked) == 3
    torch.testing.assert_close(model[0].running_mean, expected)


def test_frozen_statistics_in_nested_contexts() -> None:
    model = network("nested")
    before = record(model)
    with frozen_statistics(model):
        with frozen_statistics(model):
            model(inputs())
        model(inputs())
    assert_same(before, record(model))


def test_synchronised_batch_norm_stops_tracking_inside() -> None:
    """Its forward needs a GPU; the switch is the one of every batch norm."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network("batch norm"))
    with frozen_statistics(model):
        assert model[0].track_running_stats is False and model[0].training
    assert model[0].track_running_stats is True


def test_frozen_batch_norms_in_eval_mode_stay_in_eval_mode() -> None:
    model = network("nested").train()
    model[0][1][0].eval()
    before = record(model)
    for context in (frozen_statistics, running_statistics):
        with context(model):
            assert not model[0][1][0].training
        assert_same(before, record(model))


@pytest.mark.parametrize("name", ["batch norm", "subclass", "own, in place", "nested"])
def test_running_statistics_normalise_as_eval_mode_does(name: str) -> None:
    model = network(name)
    expected = copy.deepcopy(model).eval()(inputs())
    with running_statistics(model):
        assert torch.equal(model(inputs()), expected)


def test_running_statistics_leave_dropout_alone() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))
    with running_statistics(model):
        assert [m.training for m in model] == [False, True]
        assert bool((model(inputs()) == 0).any())


def test_evaluating_gives_each_module_its_own_mode_back() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(4).eval(), nn.Sequential(nn.Dropout()).eval())
    model.training = False  # unlike its children
    modes = [m.training for m in model.modules()]
    assert modes == [False, True, False, False, False]
    with evaluating(model):
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == modes


def test_frozen_statistics_cover_the_own_buffers_of_a_batch_norm_subclass() -> None:
    class Counting(nn.BatchNorm1d):
        def __init__(self, features: int) -> None:
            super().__init__(features)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += len(x)
            return super().forward(x)

    norm = Counting(3)
    with frozen_statistics(norm):
        norm(torch.randn(4, 3))
    assert float(norm.seen) == 0 and int(norm.num_batches_tracked) == 0
    norm(torch.randn(4, 3))
    assert float(norm.seen) == 4 and int(norm.num_batches_tracked) == 1


def test_frozen_statistics_pass_by_buffers_that_nobody_can_write() -> None:
    """A table that was made in inference mode, as caches of positions are."""
    model = nn.Linear(2, 2)
    with torch.inference_mode():
        model.register_buffer("table", torch.arange(2.0))
    with frozen_statistics(model):
        model(torch.ones(1, 2))
    assert model.table.tolist() == [0.0, 1.0]


def test_frozen_statistics_put_back_what_was_written_behind_autograd() -> None:
    class Old(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.mean.data.add_(1.0)
            return x

    model = Old()
    with frozen_statistics(model):
        model(torch.ones(1, 3))
    assert model.mean.tolist() == [0.0, 0.0, 0.0]


class Merging(nn.Linear):
    """As the older LoRA: merges its weights in eval mode, and takes them apart again in training mode."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.low, self.merged = nn.Parameter(torch.randn(3, 4)), False
        self.weight.requires_grad_(False)

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if mode == self.merged:
            with torch.no_grad():
                self.weight.add_(self.low, alpha=-1 if mode else 1)
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight if self.merged else self.weight + self.low, self.bias)


@pytest.mark.parametrize("inner", [True, False])
def test_modes_come_back_through_a_train_of_the_modules_own(inner: bool) -> None:
    model = nn.Sequential(nn.Dropout(), Merging())
    model[1].train(inner)
    with evaluating(model):
        assert model[1].merged
    assert [m.training for m in model.modules()] == [True, True, inner]
    assert model[1].merged is not inner
    model(inputs()).sum().backward()
    assert (model[1].low.grad is not None) is inner
