"""LE-SAM: every step's radius from a loss budget, against the twin, closed forms, and its limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pof
from pof.optim import SAM
from pof.optim._equations import annealed
from tests.optim.problem import SGD_OPTIONS, build_batches, build_model, closure_of, equal, sam, train, weights_of
from tests.optim.test_twins import TOLERANCE, flat, gradient_of
from tests.references import sam as twin

LINEAR = torch.tensor([3.0, 4.0], dtype=torch.float64)
"""A gradient of norm 5."""


def budgeted(model: nn.Module, budget: float = 0.1, rho: float = 0.5, **options: Any) -> SAM:
    return SAM(model.parameters(), torch.optim.SGD, rho, budget=budget, model=model, **SGD_OPTIONS, **options)


@pytest.mark.parametrize("rho_max", [0.12, 10.0])
def test_parameters_equal_the_twin_after_every_step(rho_max: float) -> None:
    model, batches, reference = build_model(), build_batches(), twin.SGD(0.1, 0.9, 0.01)
    optimizer, w = budgeted(model, 0.1, rho_max), flat(model.parameters())
    radii = []
    for batch in batches:
        optimizer.step(closure_of(model, optimizer, batch))
        w = twin.le_sam_step(w, reference, gradient_of(build_model(), batch), 0.1, rho_max)
        assert flat(model.parameters()) == pytest.approx(w, abs=TOLERANCE)
        radii.append(float(optimizer.radius))
    # Some steps at the largest radius, others below it; or none.
    assert (max(radii) == 0.12 > min(radii)) if rho_max < 1 else max(radii) < 10


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_linear_loss_rises_by_the_budget_exactly(adaptive: bool) -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = SAM([weight], torch.optim.SGD, rho=100.0, adaptive=adaptive, budget=0.3, lr=0.1)
    before = (LINEAR * weight).sum()
    before.backward()
    with optimizer.perturbed(), torch.no_grad():
        assert float((LINEAR * weight).sum() - before) == pytest.approx(0.3, rel=1e-12)
    if not adaptive:
        assert float(optimizer.radius) == pytest.approx(0.3 / 5)


@pytest.mark.parametrize("scale", [1024.0, 65536.0])
def test_a_scaled_loss_is_perturbed_alike_if_the_optimizer_knows_the_scale(scale: float) -> None:
    def moved(factor: float) -> torch.Tensor:
        weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        optimizer = SAM([weight], torch.optim.SGD, rho=100.0, budget=0.3, lr=0.1)
        optimizer.loss_scale = factor
        (factor * (LINEAR * weight).sum()).backward()
        with optimizer.perturbed():
            return weight.detach().clone()

    torch.testing.assert_close(moved(scale), moved(1.0), rtol=1e-12, atol=0)


def test_a_scale_that_the_optimizer_was_not_told_is_refused() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = SAM([weight], torch.optim.SGD, rho=100.0, budget=0.3, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def passes() -> None:
        optimizer.zero_grad()
        scaler.scale((weight * weight).sum()).backward()
        with optimizer.perturbed():
            optimizer.zero_grad()
            scaler.scale((weight * weight).sum()).backward()

    passes()
    with pytest.raises(RuntimeError, match=r"loss was scaled by 8 and the budget by 1: set optimizer.loss_scale"):
        scaler.step(optimizer)
    before = weight.detach().clone()
    optimizer.loss_scale = scaler.get_scale()
    passes()
    scaler.step(optimizer)
    assert not torch.equal(weight, before)


def test_a_budget_that_never_binds_is_sam_and_a_budget_of_0_plain_training_exactly() -> None:
    models = [build_model() for _ in range(4)]
    train(models[0], sam(models[0], rho=0.1), build_batches())
    train(models[1], budgeted(models[1], 1e9, 0.1), build_batches())
    train(models[2], torch.optim.SGD(models[2].parameters(), **SGD_OPTIONS), build_batches())
    train(models[3], budgeted(models[3], 0.0), build_batches())
    for one, other in zip(weights_of(models[0]), weights_of(models[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert equal(weights_of(models[2]), weights_of(models[3]))
    assert not equal(weights_of(models[0]), weights_of(models[2]))


def test_a_gradient_of_0_perturbs_nothing() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = SAM([weight], torch.optim.SGD, rho=1.0, budget=0.3, lr=0.1)
    weight.grad = torch.zeros(2)
    with optimizer.perturbed():
        assert weight.tolist() == [1.0, -2.0]


def test_the_budget_falls_along_half_a_cosine_over_the_last_share_of_the_run() -> None:
    assert [annealed(2.0, epoch, 4, 1.0) for epoch in range(4)] == pytest.approx([2.0, 1.7071068, 1.0, 0.2928932])
    assert [annealed(2.0, epoch, 8, 0.25) for epoch in range(8)] == pytest.approx([2.0] * 7 + [1.0])
    assert {annealed(2.0, epoch, 3, 0.0) for epoch in range(3)} == {2.0}
    assert annealed(2.0, 0, 1, 1.0) == 2.0


def loader() -> Iterator[Any]:
    yield from ((inputs.float(), targets) for inputs, targets in build_batches(3))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_fit_anneals_the_budget_and_logs_budget_and_radius(precision: Any) -> None:
    model = build_model().float()
    method = pof.SharpnessAware(model, rho=10.0, budget=0.1)
    optimizer = method.build_optimizer(torch.optim.SGD, lr=1e-3)
    batches, norms = list(loader()), []
    for inputs, targets in batches:
        loss = F.cross_entropy(model(inputs), targets)
        norms.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).norm())
    found = pof.fit(method, batches, epochs=2, optimizer=optimizer, precision=precision, device="cpu").history
    assert [row["train_budget"] for row in found[1:]] == pytest.approx([0.1, 0.05])
    # Small steps hardly change the gradients: the first epoch's mean is that of budget / norm at the start.
    weights = [len(targets) for _, targets in batches]
    wanted = sum(w * 0.1 / float(n) for w, n in zip(weights, norms, strict=True)) / sum(weights)
    assert found[1]["train_radius"] == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": -1.0}, "budget is a finite loss >= 0 .* got budget=-1.0"),
        ({"budget": float("nan")}, "got budget=nan"),
        ({"budget": 0.1, "anneal": 2.0}, "anneal=2.0"),
        ({"budget": 0.1, "kind": "asam"}, "for asam"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pof.SharpnessAware(build_model(), **options)
    with pytest.raises(ValueError, match="budget must be finite and not negative; got -1"):
        budgeted(build_model(), -1.0)
    with pytest.raises(ValueError, match=r"the budget 0\.1 sets the radius of every step"):
        pof.SharpnessAware(build_model(), budget=0.1).calibrate(build_batches(1))
