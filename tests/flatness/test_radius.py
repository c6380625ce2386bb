"""Radii against single line searches, and the suggestion for gamma."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pof.flatness import Radii, RadiusDistribution, loss_increment, radius_distribution, suggested_gamma
from pof.perturbation.linear import head_gradient, line_search
from tests.flatness.nets import ConvNet, data, network, untouched


def searched(model: ConvNet, x: Tensor, y: Tensor, direction: tuple[Tensor, Tensor] | None = None) -> float:
    model = network() if model.training else model
    model.eval()
    features = torch.tanh(model.body(torch.tanh(model.norm(model.conv(x))).flatten(1))).detach()
    w, b = model.fc.weight.detach(), model.fc.bias.detach()
    g = head_gradient(features, y, w, b)
    gw, gb = (g.weight, g.bias) if direction is None else direction
    return float(line_search(features @ w.T + b, features @ gw.T + gb, y).radius)


def direction_of(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    model = network().eval()
    features = torch.tanh(model.body(torch.tanh(model.norm(model.conv(x))).flatten(1))).detach()
    g = head_gradient(features, y, model.fc.weight.detach(), model.fc.bias.detach())
    assert g.bias is not None
    return g.weight, g.bias


def radii(values: list[float], bounded: list[bool] | None = None) -> Radii:
    v = torch.tensor(values, dtype=torch.float64)
    return Radii(v, torch.tensor(bounded or [True] * len(values)), torch.ones_like(v), 8)


def test_each_batch_is_one_line_search() -> None:
    model, train, test = network(), data((9, 9, 9)), data((9, 9, 9, 9), seed=5)
    with untouched(model):
        found = radius_distribution(model, train, test_loader=test)
    assert found.train.radius.tolist() == pytest.approx([searched(model, x, y) for x, y in train], rel=1e-9)
    assert found.test is not None
    assert found.test.radius.tolist() == pytest.approx([searched(model, x, y) for x, y in test], rel=1e-9)
    assert found.train.bounded.all()
    assert found.train.batch_size == 9


def test_direction_of_the_training_batch() -> None:
    model, train, test = network(), data((9, 9)), data((9, 9, 9), seed=5)
    found = radius_distribution(model, train, test_loader=test, direction="train")
    given = [direction_of(*train[i]) for i in (0, 1, 0)]
    expected = [searched(model, x, y, d) for (x, y), d in zip(test, given, strict=True)]
    assert found.test is not None
    assert found.test.radius.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_short_last_batch_is_left_out() -> None:
    found = radius_distribution(network(), data((9, 9, 3)))
    assert len(found.train.radius) == 2
    assert found.test is None
    assert math.isnan(found.ratio)


def test_batches_bound_both_sets_and_a_shuffling_loader_repeats() -> None:
    (x, y), *_ = data((40,))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8, shuffle=True)
    model = network()
    with untouched(model):
        found = [radius_distribution(model, loader, test_loader=loader, batches=3, seed=2) for _ in range(2)]
    assert torch.equal(found[0].train.radius, found[1].train.radius)
    assert len(found[0].train.radius) == 3
    assert found[0].test is not None
    assert len(found[0].test.radius) == 3


def test_separable_batches_are_counted_and_not_in_the_median() -> None:
    model = nn.Linear(2, 2, bias=False).double()
    torch.nn.init.zeros_(model.weight)
    apart = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    mixed = torch.tensor([[1.0, 0.5], [0.9, 0.5]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    found = radius_distribution(nn.Sequential(model), [(apart, labels), (mixed, labels)])
    assert found.train.bounded.tolist() == [False, True]
    assert found.train.separable_share == 0.5
    assert found.train.radius[0] == 0
    assert found.train.median == float(found.train.radius[1]) > 0


def test_ratio_and_gamma() -> None:
    g = torch.Generator().manual_seed(0)
    train = radii([*(1 + 0.1 * torch.randn(200, generator=g)).tolist(), 9.0], [True] * 200 + [False])
    found = RadiusDistribution(train, radii((2 + 0.1 * torch.randn(200, generator=g)).tolist()), "own")
    gamma = suggested_gamma(found)
    assert found.ratio == pytest.approx(2.0, abs=0.05)
    assert gamma.value == found.ratio
    assert gamma.low < gamma.value < gamma.high
    # Standard error of a ratio of medians of 200 normal values: 2 * sqrt(pi/2) * 0.1 * sqrt(1 + 1/4) / sqrt(200).
    assert gamma.high - gamma.low == pytest.approx(
        2 * 1.96 * 2 * math.sqrt(math.pi / 2 * (0.1**2 + 0.05**2) / 200), rel=0.3
    )
    assert suggested_gamma(found) == gamma


def test_median_of_an_even_number_lies_between() -> None:
    assert radii([1.0, 2.0, 3.0, 10.0]).median == 2.5
    assert math.isnan(radii([0.0], [False]).median)


def test_bad_requests_say_what_to_do() -> None:
    alone = RadiusDistribution(radii([1.0, 2.0]), None, "own")
    with pytest.raises(ValueError, match="pass it as test_loader"):
        suggested_gamma(alone)
    few = RadiusDistribution(radii([1.0, 0.0], [True, False]), radii([1.0, 2.0]), "own")
    with pytest.raises(ValueError, match="got 1 and 2 bounded batches: take more batches"):
        suggested_gamma(few)
    with pytest.raises(ValueError, match="direction must be 'own' or 'train'; got 'both'"):
        radius_distribution(network(), data(), direction="both")  # type: ignore[arg-type]


def test_a_mini_batch_without_a_target_that_counts_has_no_radius() -> None:
    batches = data((9, 9, 9))
    batches[1][1][:] = -100
    found = radius_distribution(network(), batches).train
    assert found.radius.tolist() == radius_distribution(network(), [batches[0], batches[2]]).train.radius.tolist()
    increment = loss_increment(network(), batches, data((5,), seed=5))
    assert increment.value == loss_increment(network(), [batches[0], batches[2]], data((5,), seed=5)).value
