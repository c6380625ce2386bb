"""The radius that a rise of the loss gives, against the perturbation written out."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pof
from pof.methods.sharpness_aware import Kind
from pof.optim import SAM, rho_for_level
from tests.processes import ranks

LEVEL = 0.15 * math.log(3)
Batch = tuple[Tensor, Tensor]


def fitted(norm: bool = True, dropout: float = 0.0) -> tuple[nn.Module, list[Batch]]:
    """A network that fits five mini-batches, and these."""
    torch.manual_seed(0)
    middle: nn.Module = nn.BatchNorm1d(16) if norm else nn.Identity()
    model = nn.Sequential(nn.Linear(5, 16), middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 3)).double()
    centres = 2 * torch.eye(3, 5, dtype=torch.float64)
    targets = [torch.randint(3, (16,)) for _ in range(5)]
    batches = [(centres[t] + 0.3 * torch.randn(16, 5, dtype=torch.float64), t) for t in targets]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        for inputs, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model, batches


def loss_at(model: nn.Module, batch: Batch, rho: float, kind: Kind) -> float:
    """The loss of a mini-batch at w + eps(rho)."""
    moved = copy.deepcopy(model)
    parameters = list(moved.parameters())
    gradients = torch.autograd.grad(F.cross_entropy(moved(batch[0]), batch[1]), parameters)
    on = [kind != "sam-on" or i in {2, 3} for i in range(len(parameters))]
    scales = [p.detach().abs() + 0.01 if kind == "asam" else torch.ones_like(p) for p in parameters]
    norm = math.sqrt(sum(float((t * g).square().sum()) for t, g, o in zip(scales, gradients, on, strict=True) if o))
    with torch.no_grad():
        for p, t, g, o in zip(parameters, scales, gradients, on, strict=True):
            p += rho * t * t * g / norm * o
        return float(F.cross_entropy(moved(batch[0]), batch[1]))


@pytest.mark.parametrize("kind", ["sam", "asam", "sam-on"])
def test_the_loss_at_the_radius_has_risen_to_the_level(kind: Kind) -> None:
    model, batches = fitted()
    assert loss_at(model, batches[0], 0.0, kind) < 0.1 * LEVEL
    rho = pof.SharpnessAware(model, kind=kind).calibrate(batches[:1])
    # The search ends within 5 %, and two digits are another 5 % at most.
    assert loss_at(model, batches[0], rho / 1.1, kind) < LEVEL < loss_at(model, batches[0], rho * 1.1, kind)


@pytest.mark.parametrize("guess", [1e-4, 1.0, 3.0, 1e4])
def test_the_search_ends_at_the_same_radius_from_any_guess(guess: float) -> None:
    weight = nn.Parameter(torch.tensor([2.0, 1.0]))
    optimizer = SAM([weight], torch.optim.SGD, rho=0.7, lr=0.1)
    calls = []

    def loss() -> Tensor:
        calls.append(1)
        return weight.square().sum()

    loss().backward()
    gradient, before = weight.grad.clone(), weight.detach().clone()
    rho = rho_for_level(optimizer, loss, 12.0, guess=guess)
    # Uphill from w, the loss is (||w|| + rho)^2.
    assert rho == pytest.approx(math.sqrt(12) - math.sqrt(5), rel=0.05)
    assert len(calls) < (10 if guess == 1.0 else 40)
    assert torch.equal(weight, before) and torch.equal(weight.grad, gradient)
    assert optimizer.param_groups[0]["rho"] == 0.7
    with pytest.raises(RuntimeError, match="without a perturbation"):
        optimizer.step()


def test_the_radius_is_the_median_over_the_mini_batches_to_two_digits() -> None:
    model, batches = fitted()
    single = [pof.SharpnessAware(model).calibrate([batch]) for batch in batches[:3]]
    assert len(set(single)) == 3
    method = pof.SharpnessAware(model)
    assert method.calibrate(batches, num_batches=3) == pytest.approx(sorted(single)[1], rel=0.1)
    assert method.rho == float(f"{method.rho:.1e}")
    assert method.build_optimizer(torch.optim.SGD, lr=0.1).param_groups[0]["rho"] == method.rho


def test_a_higher_level_is_reached_farther_out() -> None:
    model, batches = fitted()
    radii = [pof.SharpnessAware(model).calibrate(batches, level=level) for level in (0.05, 0.15, 0.5)]
    assert radii == sorted(radii) and radii[0] < radii[-1]


def test_nothing_else_changes_and_dropout_does_not_matter() -> None:
    model, batches = fitted(dropout=0.3)
    model.eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    method = pof.SharpnessAware(model)
    first = method.calibrate(batches)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    torch.manual_seed(9)
    assert method.calibrate(batches) == first > 0


def test_a_network_that_does_not_fit_gets_plain_steps_and_a_warning() -> None:
    def trained(make: Callable[[nn.Module], pof.Method]) -> nn.Module:
        _, batches = fitted()
        torch.manual_seed(3)
        method = make(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double())
        if isinstance(method, pof.SharpnessAware):
            with pytest.warns(UserWarning, match="rho is 0: the loss of this network is above 0.15 times"):
                assert method.calibrate(batches) == 0
        optimizer = method.build_optimizer(torch.optim.SGD, lr=0.1, momentum=0.9)
        return pof.fit(method, batches, epochs=2, optimizer=optimizer, device="cpu").model

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = trained(pof.Finetune)
    for one, other in zip(trained(pof.SharpnessAware).parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


def test_bad_calls_are_named() -> None:
    model, batches = fitted()
    for options in ({"level": 0.0}, {"level": 1.0}, {"num_batches": 0}):
        with pytest.raises(ValueError, match=r"level must be in \(0, 1\) and num_batches >= 1"):
            pof.SharpnessAware(model).calibrate(batches, **options)
    with pytest.raises(ValueError, match="msam ascends along its momentum"):
        pof.SharpnessAware(model, kind="msam").calibrate(batches)
    with pytest.raises(ValueError, match="got no mini-batch"):
        pof.SharpnessAware(model).calibrate([])
    with pytest.raises(ValueError, match="the loss is nan before the weights are perturbed"):
        pof.SharpnessAware(model).calibrate([(batches[0][0] * float("nan"), batches[0][1])])
    method = pof.SharpnessAware(model)
    method.build_optimizer(torch.optim.SGD, lr=0.1)
    with pytest.raises(RuntimeError, match="comes before build_optimizer"):
        method.calibrate(batches)
    still = SAM([nn.Parameter(torch.zeros(2))], torch.optim.SGD, lr=0.1)
    with pytest.raises(ValueError, match=r"does not cross the level 0\.5 at any radius from 0\.1 to"):
        rho_for_level(still, lambda: 0.1, 0.5)


def on_a_share(rank: int) -> float:
    model, batches = fitted(norm=False)
    # Shares of different sizes; the mean is that of the whole mini-batch.
    rows = slice(0, 6) if rank == 0 else slice(6, None)
    return pof.SharpnessAware(model).calibrate([(inputs[rows], targets[rows]) for inputs, targets in batches])


def test_two_processes_find_the_radius_of_the_whole_mini_batch(tmp_path: Path) -> None:
    model, batches = fitted(norm=False)
    expected: Any = pof.SharpnessAware(model).calibrate(batches)
    assert expected > 0
    assert ranks(on_a_share, 2, tmp_path) == [expected] * 2
