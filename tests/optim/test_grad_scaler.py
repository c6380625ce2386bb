"""GradScaler: the right pattern is right, the wrong ones are refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from pof.optim import SAM
from tests.optim.problem import Build, build_batches, build_model, closure_of, equal, every, msam, weights_of

SCALE = 2.0**16  # a power of two: scaling and unscaling are exact


def scaled_passes(build: Build, model: nn.Module, optimizer, scaler: GradScaler, batch) -> None:
    def backward() -> None:
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(model(batch[0]), batch[1])).backward()

    if build is not msam:
        backward()
    with optimizer.perturbed():
        backward()


@pytest.mark.parametrize("explicit", [True, False], ids=["unscale_", "implicit"])
@every
def test_scaled_training_equals_unscaled_training(build: Build, explicit: bool) -> None:
    plain, model = build_model(), build_model()
    reference, optimizer = build(plain), build(model)
    scaler = GradScaler("cpu", init_scale=SCALE)
    assert not reference.goes_on and not optimizer.goes_on
    for batch in build_batches():
        reference.step(closure_of(plain, reference, batch))
        scaled_passes(build, model, optimizer, scaler, batch)
        if explicit:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        # The scale is exact, but the norm of scaled gradients is rounded anew.
        torch.testing.assert_close(weights_of(plain), weights_of(model), rtol=0, atol=1e-12)
    assert not hasattr(optimizer, "grad_scale") and not hasattr(optimizer, "found_inf")
    assert reference.goes_on and optimizer.goes_on


@every
def test_a_step_that_overflows_is_none(build: Build) -> None:
    model = build_model()
    optimizer, scaler = build(model), GradScaler("cpu", init_scale=SCALE)
    before = weights_of(model)
    scaled_passes(build, model, optimizer, scaler, build_batches()[0])
    next(model.parameters()).grad.fill_(torch.inf)
    scaler.step(optimizer)
    assert equal(before, weights_of(model)) and not optimizer.goes_on
    if build is not msam:  # whose first direction is 0
        with pytest.raises(RuntimeError, match="without a perturbation"):
            optimizer.step()


def test_a_fused_base_optimizer_is_not_unscaled_twice() -> None:
    plain, model = build_model().float(), build_model().float()
    options = {"lr": 0.1, "momentum": 0.9, "fused": True}
    reference, optimizer = (SAM(m.parameters(), torch.optim.SGD, **options) for m in (plain, model))
    scaler = GradScaler("cpu", init_scale=SCALE)
    for inputs, targets in build_batches(3):
        batch = (inputs.float(), targets)
        reference.step(closure_of(plain, reference, batch))
        scaled_passes(SAM, model, optimizer, scaler, batch)
        scaler.step(optimizer)
        scaler.update()
    torch.testing.assert_close(weights_of(plain), weights_of(model), rtol=0, atol=1e-5)  # float32


@every
def test_a_closure_given_to_the_scaler_is_refused(build: Build) -> None:
    model = build_model()
    optimizer, scaler = build(model), GradScaler("cpu", init_scale=SCALE)
    batch = build_batches()[0]
    closure = closure_of(model, optimizer, batch)

    def scaled_closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        scaler.scale(loss).backward()
        return loss

    scaled_closure()
    before = weights_of(model)
    with pytest.raises(RuntimeError, match=r"scaler.step\(optimizer, closure\) cannot work"):
        scaler.step(optimizer, scaled_closure)
    assert equal(before, weights_of(model))
    optimizer.step(closure)  # without the scaler it works as ever
    assert not equal(before, weights_of(model))


def test_a_disabled_scaler_may_be_given_a_closure() -> None:
    one, other = build_model(), build_model()
    plain, optimizer = (SAM(m.parameters(), torch.optim.SGD, lr=0.1) for m in (one, other))
    batch = build_batches()[0]
    plain.step(closure_of(one, plain, batch))
    GradScaler("cpu", enabled=False).step(optimizer, closure_of(other, optimizer, batch))
    assert equal(weights_of(one), weights_of(other))


@every
def test_forgetting_the_perturbation_is_refused(build: Build) -> None:
    model = build_model()
    optimizer, scaler = build(model), GradScaler("cpu", init_scale=SCALE)
    for batch in build_batches(2):
        scaled_passes(build, model, optimizer, scaler, batch)
        scaler.step(optimizer)
        scaler.update()
    scaler.scale(F.cross_entropy(model(batch[0]), batch[1])).backward()
    with pytest.raises(RuntimeError, match="without a perturbation would be a step of SGD"):
        scaler.step(optimizer)


@pytest.mark.parametrize("explicit", [True, False], ids=["unscale_", "implicit"])
@every
def test_an_overflow_skips_the_step_and_lowers_the_scale(build: Build, explicit: bool) -> None:
    model = build_model()
    optimizer, scaler = build(model), GradScaler("cpu", init_scale=SCALE)
    first, batch = build_batches(2)
    scaled_passes(build, model, optimizer, scaler, first)
    scaler.step(optimizer)
    scaler.update()
    before, state = weights_of(model), copy.deepcopy(optimizer.state_dict())
    scaled_passes(build, model, optimizer, scaler, batch)
    model[0].weight.grad[0, 0] = float("inf")
    if explicit:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert equal(before, weights_of(model))
    assert all(
        torch.equal(s["momentum_buffer"], t["momentum_buffer"])
        for s, t in zip(state["state"].values(), optimizer.state_dict()["state"].values(), strict=True)
    )
    assert scaler.get_scale() == SCALE / 2
    scaled_passes(build, model, optimizer, scaler, batch)
    scaler.step(optimizer)
    assert not equal(before, weights_of(model))


def test_an_overflow_in_the_first_pass_of_mixed_precision_keeps_the_weights_finite() -> None:
    model = build_model()
    optimizer, scaler = SAM(model.parameters(), torch.optim.SGD, lr=0.1), GradScaler("cpu", init_scale=SCALE)
    batch = build_batches()[0]
    scaler.scale(F.cross_entropy(model(batch[0]), batch[1])).backward()
    model[0].weight.grad.fill_(float("inf"))
    before = weights_of(model)
    with optimizer.perturbed():
        assert equal(before, weights_of(model))
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(model(batch[0]), batch[1])).backward()
    scaler.step(optimizer)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert not equal(before, weights_of(model))


def oracle(model: nn.Module, batches, rho: float, clip: float, total: int, peak: float) -> None:
    """SAM on whole batches, with Nesterov-free SGD written out; rate and momentum taken from a plain OneCycleLR."""
    parameters = list(model.parameters())
    plain = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    schedule = OneCycleLR(plain, peak, total_steps=total)
    velocity = [torch.zeros_like(p) for p in parameters]

    def gradient(inputs: Tensor, targets: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(F.cross_entropy(model(inputs), targets), parameters))

    for inputs, targets in batches:
        g = gradient(inputs, targets)
        length = torch.cat([x.reshape(-1) for x in g]).norm()
        weights = weights_of(model)
        with torch.no_grad():
            for p, x in zip(parameters, g, strict=True):
                p += rho * x / length
        g = gradient(inputs, targets)
        length = torch.cat([x.reshape(-1) for x in g]).norm()
        factor = min(1.0, clip / (length.item() + 1e-6))
        mu, lr = plain.param_groups[0]["momentum"], plain.param_groups[0]["lr"]
        with torch.no_grad():
            for p, w, x, v in zip(parameters, weights, g, velocity, strict=True):
                v.copy_(mu * v + factor * x)
                p.copy_(w - lr * v)
        plain.step()
        schedule.step()


def test_scaler_one_cycle_clipping_and_accumulation_together_match_a_full_batch_oracle() -> None:
    model, batches, rho, clip, peak = build_model(), build_batches(), 0.1, 0.8, 0.5
    model[1] = nn.LayerNorm(7).double()
    reference = copy.deepcopy(model)
    oracle(reference, batches, rho, clip, len(batches) + 1, peak)

    optimizer = SAM(model.parameters(), torch.optim.SGD, rho, lr=0.1, momentum=0.9, model=model)
    schedule = OneCycleLR(optimizer, peak, total_steps=len(batches) + 1)
    scaler = GradScaler("cpu", init_scale=SCALE, growth_interval=3)  # so that the scale changes on the way
    norms = []

    def backward(inputs: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        for part in (slice(0, 4), slice(4, 5), slice(5, None)):
            if len(targets[part]):
                loss = F.cross_entropy(model(inputs[part]), targets[part], reduction="sum") / len(targets)
                scaler.scale(loss).backward()

    for batch in batches:
        backward(*batch)
        with optimizer.perturbed():
            backward(*batch)
        scaler.unscale_(optimizer)
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), clip))
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
    assert scaler.get_scale() == SCALE * 2**3
    assert min(norms) < clip < max(norms)  # some were clipped, some were not
    # Full-batch sums against sums of parts, in float64; about 1e-16 is seen.
    torch.testing.assert_close(weights_of(model), weights_of(reference), rtol=0, atol=1e-10)
