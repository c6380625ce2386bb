"""The rates of candidates: the largest stable ones, each family's own, and what finding them costs."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pof
from pof.app.improve.rate import FACTOR, RANGE, RISE, RateSearch, candidate_options, first_rate, steps_of
from pof.app.options import TrainOptions
from pof.training.step import Stepper

BASE = TrainOptions("finetune", momentum=0.0, weight_decay=0.0, precision="fp32")
SGD: dict[str, Any] = {"method": "finetune"}
SAM: dict[str, Any] = {"method": "sam", "sam": {"rho": 0.2}}
Batches = list[tuple[Tensor, Tensor]]


def sharp(factor: float) -> tuple[nn.Module, Batches]:
    """A trained network, and mini-batches whose inputs make it the sharper the larger the factor."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    batches = [(factor * torch.randn(8, 6), torch.arange(8) % 3) for _ in range(10)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 / factor**2)
    for x, y in batches * 20:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, batches


def search(model: nn.Module, batches: Batches) -> RateSearch:
    return RateSearch(model, None, batches, lambda: None, 3, len(batches))


def loss_after(model: nn.Module, batches: Batches, lr: float) -> float:
    """By hand: eight steps, and the mean loss of their mini-batches."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for x, y in batches[:8] if lr else []:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        return float(torch.stack([nn.functional.cross_entropy(model(x), y) for x, y in batches[:8]]).mean())


@pytest.mark.parametrize("factor", [1.0, 8.0, 24.0])
def test_the_largest_rate_that_does_not_raise_the_loss(factor: float) -> None:
    model, batches = sharp(factor)
    bound = loss_after(model, batches, 0.0) + RISE * math.log(3)
    rate = RANGE["sgd"][1]
    while rate > RANGE["sgd"][0] and loss_after(model, batches, rate) > bound:
        rate /= FACTOR
    if rate < RANGE["sgd"][1] and loss_after(model, batches, 2 * rate) <= bound:
        rate *= 2
    before = copy.deepcopy(model.state_dict())
    assert search(model, batches).largest_stable(BASE) == rate
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_sharper_networks_get_smaller_rates() -> None:
    found = [search(*sharp(factor)).largest_stable(BASE) for factor in (1.0, 8.0, 24.0)]
    assert found == sorted(found, reverse=True) and found[0] > found[-1]


def test_each_family_has_its_own_and_the_passes_are_counted() -> None:
    given = search(*sharp(8.0))
    plain = search(*sharp(8.0))
    largest = plain.largest_stable(BASE)
    rates = given.rates({"sgd": SGD, "sam": SAM}, BASE)
    assert rates["sgd"] == first_rate(largest, "finetune") == largest / 2
    assert rates["sam"] <= rates["sgd"]
    # Eight of ten mini-batches a try, twice for SAM.
    tries = (given.spent - plain.spent) / 1.6
    assert round(tries) >= 1 and tries == pytest.approx(round(tries))


def test_pof_begins_at_four_times_its_share_of_half_the_largest_rate() -> None:
    assert first_rate(0.8, "pof") == pytest.approx(4 * 1.6e-3 * 0.5 * 0.8)


def test_a_rate_of_its_own_is_taken_and_costs_nothing() -> None:
    given = search(*sharp(1.0))
    assert given.rates({"mine": SGD | {"lr": 0.3}}, BASE) == {"mine": 0.3}
    assert given.spent == 0.0


def test_the_global_generator_has_no_part() -> None:
    """Dropout draws in the pass that gives the bound too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 3))
    _, batches = sharp(1.0)
    bounds = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        bounds.append(search(model, batches)._bound)
        assert torch.equal(torch.get_rng_state(), before)
    assert bounds[0] == bounds[1]


def test_what_the_loader_made_in_inference_mode_or_with_a_graph() -> None:
    model, batches = sharp(1.0)
    expected = search(model, batches).largest_stable(BASE)
    with torch.inference_mode():
        inferred = [(x.clone(), y.clone()) for x, y in batches]
    assert search(model, inferred).largest_stable(BASE) == expected
    radius = pof.SharpnessAware(copy.deepcopy(model)).calibrate(batches, level_kind="rise")
    assert pof.SharpnessAware(copy.deepcopy(model)).calibrate(inferred, level_kind="rise") == radius
    leaf = torch.ones(6, requires_grad=True)
    graphs = [(x * leaf, y) for x, y in batches]
    assert pof.SharpnessAware(copy.deepcopy(model)).calibrate(graphs, level_kind="rise") == radius and leaf.grad is None


def test_networks_that_fit_their_data_come_apart_late() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 3))
    x = 3 * torch.randn(320, 6)
    y = x[:, :3].argmax(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    batches = list(zip(x.split(8), y.split(8), strict=True))
    few, many = (RateSearch(model, None, batches, lambda: None, 3, 40, steps) for steps in (8, steps_of(20.0, 40)))
    training = TrainOptions("finetune")
    assert many.largest_stable(training) < few.largest_stable(training)
    # The trial at the highest rate ends where the loss is lost: what it costs is counted up to there.
    many.spent = 0.0
    assert not many._is_stable(replace(training, lr=1.0)) and 0 < many.spent < 28 / 40


@pytest.mark.parametrize(("options", "steps"), [(SGD, 32), (SAM, 8)])
def test_a_trial_takes_its_steps(options: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than there are mini-batches: it goes through them again."""
    model, batches = sharp(1.0)
    given, taken, step = RateSearch(model, None, batches, lambda: None, 3, 10, 32), [], Stepper.step
    monkeypatch.setattr(Stepper, "step", lambda self, window: (taken.append(1), step(self, window))[1])
    assert given._is_stable(candidate_options(options | {"lr": 1e-3}, BASE, "x"))
    assert len(taken) == steps


def test_the_steps_of_a_trial_go_by_the_budget() -> None:
    assert [steps_of(20.0, 40), steps_of(20.0, 1000), steps_of(10.0, 40), steps_of(60.0, 4)] == [28, 32, 14, 8]
