"""Direction and radius against autograd, scipy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pof.perturbation.linear import head_gradient, line_search, respond
from pof.perturbation.targets import cross_entropy, encode_targets
from tests.references import pof as twin

PROBLEMS = 1000


def _soft(targets: Tensor, classes: int) -> Tensor:
    return torch.softmax(torch.randn(len(targets), classes, dtype=torch.float64), dim=1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["hard", "smoothed", "weighted", "smoothed and weighted", "soft", "soft and weighted"])
def test_head_gradient_equals_autograd(kind: str, bias: bool) -> None:
    torch.manual_seed(0)
    features, targets = torch.randn(9, 5, dtype=torch.float64), torch.randint(4, (9,))
    weight = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(4, dtype=torch.float64, requires_grad=True) if bias else None
    smoothing = 0.1 if "smoothed" in kind else 0.0
    class_weights = torch.tensor([0.0, 0.5, 1.0, 3.0], dtype=torch.float64) if "weighted" in kind else None
    if "soft " in kind or kind == "soft":
        targets = _soft(targets, 4)
    loss = F.cross_entropy(F.linear(features, weight, offset), targets, weight=class_weights, label_smoothing=smoothing)
    parameters = [weight] if offset is None else [weight, offset]
    expected = torch.autograd.grad(loss, parameters)
    norm = math.sqrt(sum(float((g**2).sum()) for g in expected))

    found = head_gradient(features, targets, weight, offset, smoothing, class_weights=class_weights)

    torch.testing.assert_close(found.weight, expected[0] / norm, rtol=1e-12, atol=1e-14)
    assert float(found.norm) == pytest.approx(norm, rel=1e-12)
    if offset is None:
        assert found.bias is None
    else:
        torch.testing.assert_close(found.bias, expected[1] / norm, rtol=1e-12, atol=1e-14)
    encoded = encode_targets(targets, features.new_zeros(9, 4), smoothing, class_weights=class_weights)
    mine = cross_entropy(F.linear(features, weight, offset), encoded)
    assert mine.item() == pytest.approx(loss.item(), rel=1e-12)


def test_line_search_equals_scipy_on_random_problems() -> None:
    rng = np.random.default_rng(0)
    separable = 0
    for _ in range(PROBLEMS):
        n, c = int(2 ** rng.uniform(0, 9.01)), int(2 ** rng.uniform(1, np.log2(1000)))
        n = max(1, min(n, 40_000 // c))
        logits = torch.from_numpy(rng.normal(size=(n, c)) * 10 ** rng.uniform(-6, 6))
        response = rng.normal(size=(n, c)) * 10 ** rng.uniform(-6, 6)
        targets = rng.integers(0, c, n)
        smoothing = float(rng.choice([0.0, 0.1]))
        if rng.random() < 0.25:  # separable: the target responds least, in some rows with ties
            response[np.arange(n), targets] = response.min(1) - (rng.random(n) < 0.5) * np.abs(response).max()
        r, y = torch.from_numpy(response), torch.from_numpy(targets)
        never_turns = smoothing == 0 and bool((response.min(1) == response[np.arange(n), targets]).all())
        separable += never_turns

        found = line_search(logits, r, y, smoothing)

        assert bool(found.bounded) is not never_turns
        if never_turns:
            assert float(found.radius) == 0.0
            continue
        exact = twin.radius(logits, r, y, smoothing)
        problem = (logits.numpy(), response, targets, smoothing)
        at_found, at_exact = (twin.loss_along(*problem, xi) for xi in (float(found.radius), exact))
        close = float(found.radius) == pytest.approx(exact, rel=1e-6)
        assert close or abs(at_found - at_exact) < 1e-12 * max(1.0, at_exact)
        assert float(found.loss) == pytest.approx(at_found, rel=1e-9, abs=1e-12)
    assert separable > 50


def test_line_search_equals_the_bounded_minimiser() -> None:
    from scipy.optimize import minimize_scalar

    torch.manual_seed(1)
    for _ in range(20):
        logits, response = torch.randn(2, 33, 7, dtype=torch.float64)
        targets = torch.randint(7, (33,))
        found = line_search(logits, -response, targets)
        problem = (logits.numpy(), -response.numpy(), targets.numpy(), 0.0)
        reference = minimize_scalar(
            lambda xi, problem=problem: twin.loss_along(*problem, xi),
            bounds=(0, 50),
            method="bounded",
            options={"xatol": 1e-12},
        )
        # A minimiser found from values alone is good to the square root of the precision.
        assert float(found.radius) == pytest.approx(reference.x, rel=1e-6, abs=1e-6)


def test_closed_form_of_two_classes() -> None:
    """One sample each of two classes with equal and opposite response: the slope is zero where p = 1/2."""
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    response = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    found = line_search(logits, response, torch.tensor([0, 1]))
    assert float(found.radius) == pytest.approx(2.0, rel=1e-12)
    assert float(found.loss) == pytest.approx(math.log(2.0), rel=1e-12)


def test_uphill_ray_gives_radius_zero() -> None:
    logits, targets = torch.zeros(3, 2, dtype=torch.float64), torch.tensor([0, 0, 1])
    uphill = torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64)
    found = line_search(logits, uphill, targets)
    assert float(found.radius) == 0.0 and bool(found.bounded)


@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_response_that_moves_nothing_is_bounded_at_zero(constant: float) -> None:
    found = line_search(torch.randn(4, 3), torch.full((4, 3), constant), torch.tensor([0, 1, 2, 0]))
    assert float(found.radius) == 0.0 and bool(found.bounded)


def test_label_smoothing_bounds_a_separable_batch() -> None:
    logits, response = torch.zeros(2, 3), torch.tensor([[-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    targets = torch.tensor([0, 1])
    assert not bool(line_search(logits, response, targets).bounded)
    assert bool(line_search(logits, response, targets, 0.1).bounded)


def test_sample_of_weight_zero_has_no_say_in_separability() -> None:
    logits, response = torch.zeros(2, 2), torch.tensor([[-1.0, 0.0], [-1.0, 0.0]])
    targets, weights = torch.tensor([0, 1]), torch.tensor([1.0, 0.0])
    assert bool(line_search(logits, response, targets).bounded)
    assert not bool(line_search(logits, response, targets, class_weights=weights).bounded)


def test_zero_gradients_give_a_zero_direction() -> None:
    features, weight = torch.ones(2, 3), torch.tensor([[500.0] * 3, [-500.0] * 3])
    found = head_gradient(features, torch.tensor([0, 0]), weight, None)
    assert float(found.norm) == 0.0
    assert torch.equal(found.weight, torch.zeros(2, 3))


def test_gradient_of_a_confident_batch_keeps_its_digits_in_float32() -> None:
    features, weight = torch.ones(1, 1), torch.tensor([[30.0], [0.0], [0.0]])
    targets = torch.tensor([0])
    exact = head_gradient(features.double(), targets, weight.double(), None)
    found = head_gradient(features, targets, weight, None)
    torch.testing.assert_close(found.weight.double(), exact.weight, rtol=1e-5, atol=0)
    assert float(found.norm) == pytest.approx(float(exact.norm), rel=1e-5)


def test_half_precision_and_autocast_are_computed_in_float32() -> None:
    torch.manual_seed(0)
    features, weight, targets = torch.randn(6, 4), torch.randn(3, 4), torch.randint(3, (6,))
    plain = head_gradient(features, targets, weight, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = head_gradient(features, targets, weight, None)
        search = line_search(respond(features, weight, None), respond(features, inside.weight, None), targets)
    assert torch.equal(plain.weight, inside.weight)
    assert search.radius.dtype == torch.float32
    assert head_gradient(features.bfloat16(), targets, weight, None).weight.dtype == torch.float32


@pytest.mark.parametrize("chunk", [1, 10**9])
def test_number_of_candidates_does_not_change_the_radius(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    torch.manual_seed(0)
    logits, response, targets = torch.randn(64, 10), torch.randn(64, 10), torch.randint(10, (64,))
    before = line_search(logits, response, targets)
    monkeypatch.setattr("pof.perturbation.linear._CPU_ROUND", chunk)
    torch.testing.assert_close(line_search(logits, response, targets).radius, before.radius, rtol=1e-5, atol=0)


def test_no_value_is_read_back_on_an_accelerator() -> None:
    """On the meta device every read of a value raises, as a wait would cost on a GPU."""
    features, weight, bias = (torch.empty(s, device="meta") for s in ((8, 5), (3, 5), (3,)))
    targets = torch.empty(8, dtype=torch.long, device="meta")
    g = head_gradient(features, targets, weight, bias)
    found = line_search(respond(features, weight, bias), respond(features, g.weight, g.bias), targets)
    assert found.radius.shape == found.bounded.shape == found.loss.shape == ()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0, 3]), r"class indices must be in \[0, 2\]; got values from 0 to 3"),
        (torch.tensor([0, -1]), "got values from -1 to 0"),
        (torch.tensor([0]), r"targets must be \(2,\) class indices"),
        (torch.rand(2, 4), r"soft targets must have the logits' shape \(2, 3\)"),
    ],
)
def test_bad_targets_are_named(targets: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        line_search(torch.randn(2, 3), torch.randn(2, 3), targets)


def test_bad_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"logits and response must both be \(N, C\)"):
        line_search(torch.randn(2, 3), torch.randn(2, 4), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"features must be \(N, D\)"):
        head_gradient(torch.randn(2, 3, 4), torch.tensor([0, 1]), torch.randn(3, 4), None)
    with pytest.raises(ValueError, match="label_smoothing must be in"):
        line_search(torch.randn(2, 3), torch.randn(2, 3), torch.tensor([0, 1]), 1.5)
    with pytest.raises(ValueError, match="mini-batch is empty"):
        line_search(torch.randn(0, 3), torch.randn(0, 3), torch.zeros(0, dtype=torch.long))
