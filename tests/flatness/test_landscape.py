"""Landscapes against the line search and a loop over modified copies."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pof.flatness import landscape, loss_increment, loss_plane, radius_distribution
from pof.flatness.plane import filter_direction
from pof.perturbation.linear import head_gradient
from tests.flatness.nets import ConvNet, data, joined, network, untouched

TEST = data((20, 6), seed=9)


def moved_head_loss(model: ConvNet, direction: tuple[torch.Tensor, torch.Tensor], xi: float, batches: list) -> float:
    moved = copy.deepcopy(model).eval()
    x, y = joined(batches)
    with torch.no_grad():
        moved.fc.weight -= xi * direction[0]
        moved.fc.bias -= xi * direction[1]
        return float(F.cross_entropy(moved(x), y))


def first_direction(model: ConvNet) -> tuple[torch.Tensor, torch.Tensor]:
    evaluated = copy.deepcopy(model).eval()
    x, y = data()[0]
    features = torch.tanh(evaluated.body(torch.tanh(evaluated.norm(evaluated.conv(x))).flatten(1))).detach()
    g = head_gradient(features, y, evaluated.fc.weight.detach(), evaluated.fc.bias.detach())
    assert g.bias is not None
    return g.weight, g.bias


def test_curves_are_the_losses_of_moved_heads() -> None:
    model = network()
    with untouched(model):
        found = landscape(model, data(), test_loader=TEST, points=7, reach=2.0)
    direction = first_direction(model)
    assert found.offsets.tolist() == pytest.approx([-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0])
    for curve, batches in ((found.batch, data()[:1]), (found.train, data()), (found.test, TEST)):
        assert curve is not None
        expected = [moved_head_loss(model, direction, xi, batches) for xi in found.offsets.tolist()]
        assert curve.loss.tolist() == pytest.approx(expected, rel=1e-10)
        assert curve.start == pytest.approx(moved_head_loss(model, direction, 0.0, batches), rel=1e-10)


def test_minima_lie_on_the_curves_and_the_radius_is_the_line_search() -> None:
    model = network()
    found = landscape(model, data(), test_loader=TEST, points=401)
    step = float(found.offsets[1] - found.offsets[0])
    assert found.radius == pytest.approx(float(radius_distribution(model, data(), batches=1).train.radius), rel=1e-9)
    for curve in (found.batch, found.train, found.test):
        assert curve is not None
        assert curve.minimum is not None
        assert curve.minimum_loss is not None
        assert abs(curve.minimum - float(found.offsets[curve.loss.argmin()])) <= step
        assert curve.minimum_loss <= float(curve.loss.min())
        assert curve.minimum_loss == pytest.approx(
            moved_head_loss(
                model,
                first_direction(model),
                curve.minimum,
                {id(found.batch): data()[:1], id(found.train): data()}.get(id(curve), TEST),
            ),
            rel=1e-10,
        )
    assert found.test is not None
    assert found.test.minimum_loss is not None
    assert found.increment == found.test.start - found.test.minimum_loss >= 0


def test_a_minimum_behind_the_network_is_found() -> None:
    model, signs = network(), set()
    for often in range(3):
        x, y = joined(data((12,), seed=5))
        y[:8] = often
        found = landscape(model, data(), test_loader=[(x, y)], points=201, reach=8.0)
        assert found.test is not None
        assert found.test.minimum is not None
        if found.offsets[0] < found.test.minimum < found.offsets[-1]:
            assert found.test.minimum == pytest.approx(float(found.offsets[found.test.loss.argmin()]), abs=12 / 200)
            signs.add(found.test.minimum > 0)
    assert signs == {True, False}


def test_increment_is_the_mean_over_directions() -> None:
    model = network()
    with untouched(model):
        found = loss_increment(model, data(), TEST)
    first = landscape(model, data(), test_loader=TEST).increment
    assert float(found.increments[0]) == pytest.approx(first, rel=1e-9)
    assert len(found.increments) == 3
    assert (found.increments >= 0).all()
    assert found.value == pytest.approx(float(found.increments.mean()))
    assert found.standard_error == pytest.approx(float(found.increments.std()) / math.sqrt(3))


def test_separable_batch_has_no_radius_and_still_a_picture() -> None:
    model = nn.Sequential(nn.Linear(2, 2)).double()
    torch.nn.init.zeros_(model[0].weight)
    torch.nn.init.zeros_(model[0].bias)
    batch = (torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64), torch.tensor([0, 1]))
    found = landscape(model, [batch], test_loader=[batch])
    assert found.radius is None
    assert found.increment is None
    assert (found.batch.loss.diff() < 0).all()
    assert float(found.offsets[-1]) > 0


def test_plane_is_the_loss_of_moved_networks() -> None:
    model, loss = network(), nn.CrossEntropyLoss()
    with untouched(model):
        found = loss_plane(model, loss, data(), reach=0.5, points=3, seed=4)
    g = torch.Generator().manual_seed(4)
    first, second = filter_direction(model, g), filter_direction(model, g)
    x, y = joined(data())
    for i, a in enumerate([-0.5, 0.0, 0.5]):
        for j, b in enumerate([-0.5, 0.0, 0.5]):
            moved = copy.deepcopy(model).eval()
            with torch.no_grad():
                for name, p in moved.named_parameters():
                    if name in first:
                        p += a * first[name] + b * second[name]
                assert float(found.loss[i, j]) == pytest.approx(float(loss(moved(x), y)), rel=1e-10)
    assert found.samples == 17


def test_filters_of_the_direction_have_the_networks_norms() -> None:
    model = network()
    d = filter_direction(model, torch.Generator().manual_seed(0))
    assert set(d) == {"conv.weight", "body.weight", "fc.weight"}
    for name, direction in d.items():
        p = model.get_parameter(name).detach()
        torch.testing.assert_close(direction.flatten(1).norm(dim=1), p.flatten(1).norm(dim=1))


def test_bad_requests_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="points must be odd and at least 3; got 4"):
        loss_plane(network(), nn.CrossEntropyLoss(), data(), points=4)
    with pytest.raises(ValueError, match=r"reach must be positive; got 0"):
        loss_plane(network(), nn.CrossEntropyLoss(), data(), reach=0.0)
    with pytest.raises(ValueError, match="points must be a whole number >= 2; got 1"):
        landscape(network(), data(), points=1)
