"""Head ascent against its slow literal twin, and what its radius promises."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pof
from pof.perturbation.linear import head_gradient, reach, respond
from tests.references import head_ascent


def network(head: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh())
    return nn.Sequential(body, head or nn.Linear(8, 4)).double()


def batch(number: int, n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    inputs = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    return inputs, inputs[:, :4].argmax(dim=1)


def fitted(head: nn.Module | None = None) -> nn.Sequential:
    model = network(head)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for number in range(150):
        inputs, targets = batch(number % 5)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return model


@pytest.mark.parametrize("bias", [True, False])
def test_ten_steps_equal_the_literal_twin(bias: bool) -> None:
    model = fitted(nn.Linear(8, 4, bias=bias))
    twin = copy.deepcopy(model)
    method = pof.HeadAscent(model, level=0.3)
    optimizer = torch.optim.SGD(list(method.trainable_parameters()), lr=0.05, momentum=0.9)
    slow = torch.optim.SGD(list(twin[0].parameters()), lr=0.05, momentum=0.9)
    radii = []
    for number in range(10):
        out = method(*batch(number))
        loss, rho = head_ascent.step_loss(twin[0], twin[1], batch(number), 0.3 * math.log(4))
        torch.testing.assert_close(out.loss, loss, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(float(out.radius), rho, rtol=1e-9, atol=1e-10)
        for opt, value in ((optimizer, out.loss), (slow, loss)):
            opt.zero_grad()
            value.backward()
            opt.step()
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, twin.state_dict()[name], rtol=1e-10, atol=1e-10)
        radii.append(rho)
    assert radii[0] > 0


def test_the_head_keeps_its_bits_and_gets_no_gradient() -> None:
    model = fitted()
    before = {name: p.clone() for name, p in model[1].named_parameters()}
    method = pof.HeadAscent(model)
    method(*batch(0)).loss.backward()
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in model[1].named_parameters())
    assert all(p.grad is not None for p in model[0].parameters())


def test_the_loss_is_at_the_level_and_a_harder_batch_is_trained_on_plainly() -> None:
    model = fitted()
    out = pof.HeadAscent(model, level=0.3)(*batch(0))
    assert float(out.loss.detach()) == pytest.approx(0.3 * math.log(4), rel=1e-12)
    assert float(out.clean_loss) < 0.3 * math.log(4)
    inputs, targets = batch(0)
    wrong = pof.HeadAscent(model, level=0.3)(inputs, (targets + 1) % 4)
    assert float(wrong.radius) == 0.0
    assert float(wrong.loss.detach()) == float(wrong.clean_loss)


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["smoothed", "soft", "soft and smoothed"])
def test_the_level_lies_between_the_targets_entropy_and_guessing(kind: str, weighted: bool, linear: bool) -> None:
    head = nn.Linear(8, 4) if linear else nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    model, (inputs, labels) = network(head), batch(0)
    smoothing = 0.0 if kind == "soft" else 0.4
    mixed = 0.7 * F.one_hot(labels, 4).double() + 0.3 * F.one_hot((labels + torch.arange(12) % 2) % 4, 4)
    targets = labels if kind == "smoothed" else mixed
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64) if weighted else None

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, targets, weight=weights, label_smoothing=smoothing)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for _ in range(100):
        optimizer.zero_grad()
        loss(model(inputs)).backward()
        optimizer.step()
    # The best logits are the logarithm of what the loss draws them to, the class weights included.
    wanted = (F.one_hot(labels, 4).double() if kind == "smoothed" else mixed) * (1 - smoothing) + smoothing / 4
    best = (wanted if weights is None else wanted * weights) + 1e-300
    least, guess = float(loss(best.log())), float(loss(torch.zeros_like(mixed)))
    method = pof.HeadAscent(model, "1", level=0.6, label_smoothing=smoothing, class_weights=weights)
    out = method(inputs, targets)
    assert float(out.radius) > 0 and least > 0
    assert float(out.loss.detach()) == pytest.approx(least + 0.6 * (guess - least), rel=1e-9 if linear else 1e-4)


def test_of_a_custom_loss_the_level_is_a_share_of_log_c() -> None:
    out = pof.HeadAscent(fitted(), level=0.3, loss=nn.CrossEntropyLoss())(*batch(0))
    assert float(out.loss.detach()) == pytest.approx(0.3 * math.log(4), rel=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reach_ends_at_the_level(smoothing: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for _ in range(50):
        n, c, d = (int(torch.randint(2, 20, (), generator=generator)) for _ in range(3))
        features = torch.randn(n, d, generator=generator).to(dtype)
        weight, bias = torch.randn(c, d, generator=generator).to(dtype), torch.randn(c, generator=generator).to(dtype)
        targets = torch.randint(c, (n,), generator=generator)
        gradient = head_gradient(features, targets, weight, bias, smoothing)
        logits, response = respond(features, weight, bias), respond(features, gradient.weight, gradient.bias)
        start = F.cross_entropy(logits, targets, label_smoothing=smoothing)
        search = reach(logits, response, targets, float(start) * 1.5, smoothing)
        found = F.cross_entropy(logits + search.radius * response, targets, label_smoothing=smoothing)
        assert float(found) == pytest.approx(float(start) * 1.5, rel=tolerance)
        assert float(search.loss) == pytest.approx(float(found), rel=tolerance)
        assert float(reach(logits, response, targets, float(start) * 0.9, smoothing).radius) == 0.0


def test_a_gradient_of_zero_leaves_the_batch_as_it_is() -> None:
    logits = torch.zeros(3, 2)
    search = reach(logits, torch.zeros(3, 2), torch.tensor([0, 1, 0]), 2.0)
    assert float(search.radius) == 0.0
    assert not bool(search.bounded)
    assert float(search.loss) == pytest.approx(math.log(2))


def test_a_head_that_is_not_linear_reaches_the_level_too() -> None:
    model = fitted(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)))
    out = pof.HeadAscent(model, head="1", level=0.3)(*batch(0))
    assert float(out.radius) > 0
    assert float(out.loss.detach()) == pytest.approx(0.3 * math.log(4), rel=1e-4)
    loss, rho = head_ascent.step_loss(model[0], model[1], batch(0), 0.3 * math.log(4))
    assert float(out.radius) == pytest.approx(rho, rel=1e-4)
    assert float(out.loss.detach()) == pytest.approx(float(loss.detach()), rel=1e-4)


def test_a_batch_norm_inside_the_head_has_the_same_statistics_in_search_and_loss() -> None:
    head = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4)).double()
    model = fitted(head)
    head[1].running_mean += 0.5
    statistics = head[1].running_mean.clone()
    inputs, targets = batch(0)
    out = pof.HeadAscent(model, head="1", level=0.3)(inputs, targets)
    assert float(out.radius) > 0
    assert float(out.loss.detach()) == pytest.approx(0.3 * math.log(4), rel=1e-4)
    # Those of one forward: the search leaves them alone.
    seen = model[1][0](model[0](inputs)).mean(dim=0)
    torch.testing.assert_close(head[1].running_mean, 0.9 * statistics + 0.1 * seen.detach())
    _, rho = head_ascent.step_loss(model[0], model[1], batch(0), 0.3 * math.log(4))
    assert float(out.radius) == pytest.approx(rho, rel=1e-4)


def test_in_eval_mode_the_loss_is_the_plain_one() -> None:
    method = pof.HeadAscent(fitted()).eval()
    out = method(*batch(0))
    assert float(out.radius) == 0.0
    assert float(out.loss.detach()) == float(out.clean_loss)


@pytest.mark.parametrize("level", [-0.1, 1.0, float("nan")])
def test_a_level_out_of_range_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match="level is a share"):
        pof.HeadAscent(network(), level=level)
