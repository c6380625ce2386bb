"""Direction and radius against autograd, scipy and closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pof.head.split import split
from pof.perturbation.gram import GramGradient
from pof.perturbation.line import LinearLine
from pof.perturbation.linear import HeadGradient, gradient_of, head_gradient, line_search, reach, respond
from pof.perturbation.loss import CrossEntropy
from pof.perturbation.targets import cross_entropy, encode_targets, logit_gradient
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


@pytest.mark.parametrize("round_", [1, 2**22])
@pytest.mark.parametrize("kind", ["hard", "smoothed", "weighted", "soft"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_accelerators_find_what_processors_find(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, kind: str, round_: int
) -> None:
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    weights = torch.tensor([0.0, 0.5, 1.0, 3.0, 1.0]) if kind == "weighted" else None
    for seed in range(5):
        torch.manual_seed(seed)
        logits, response, targets = 3 * torch.randn(24, 5).to(dtype), torch.randn(24, 5).to(dtype), torch.arange(24) % 5
        if kind == "soft":
            targets = _soft(targets, 5)
        smoothing = 0.1 if kind == "smoothed" else 0.0
        sides = response, -response, torch.zeros_like(response), response.abs() * F.one_hot(torch.arange(24) % 5, 5)
        problems = [(logits, side, targets) for side in sides]
        with monkeypatch.context() as patch:
            found = []
            for here in (True, False):
                patch.setattr("pof.perturbation.linear._on_processor", lambda _, here=here: here)
                patch.setattr("pof.perturbation.linear._ROUND", round_)
                found.append(
                    [line_search(*p, smoothing, class_weights=weights) for p in problems]
                    + [reach(*p, 9.0, smoothing, class_weights=weights) for p in problems]
                )
        for one, other in zip(*found, strict=True):
            assert bool(one.bounded) == bool(other.bounded)
            torch.testing.assert_close(other.radius, one.radius, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(other.loss, one.loss, rtol=tolerance, atol=tolerance)


def test_a_level_that_the_loss_does_not_rise_to_has_no_radius() -> None:
    """The loss falls along the ray to log(2)."""
    logits = torch.tensor([[0.0, 4.0, 4.0]])
    found = reach(logits, torch.tensor([[0.0, 1.0, 1.0]]), torch.tensor([1]), 2.0)
    assert not bool(found.bounded) and float(found.radius) == 0.0


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gram_form_is_the_gradient(dtype: torch.dtype, scale: float, bias: bool) -> None:
    torch.manual_seed(0)
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    features, other = torch.randn(6, 40).to(dtype) * scale, torch.randn(4, 40).to(dtype)
    features[0] = 0.0
    logits, encoded = torch.randn(6, 30).to(dtype), encode_targets(torch.arange(6), torch.empty(6, 30))
    residual = logit_gradient(logits, encoded)
    dense = gradient_of(features, residual, bias=bias)
    gram, response = GramGradient.along(features, residual, bias=bias)
    torch.testing.assert_close(gram.norm, dense.norm, rtol=tolerance, atol=0)
    for given, mine in ((features, response), (other, gram.respond(other))):
        expected = dense.respond(given)
        torch.testing.assert_close(mine, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("size", [1e-30, 0.0])
def test_the_gram_form_of_tiny_and_zero_gradients(size: float) -> None:
    torch.manual_seed(0)
    features, residual = torch.randn(6, 40), torch.randn(6, 30)
    whole, expected = GramGradient.along(features, residual, bias=True)
    gram, response = GramGradient.along(features, residual * size, bias=True)
    torch.testing.assert_close(response, expected if size else torch.zeros_like(expected))
    torch.testing.assert_close(gram.norm / (size or 1.0), whole.norm if size else torch.zeros(()))


@pytest.mark.parametrize(("samples", "few"), [(4, True), (5, False)])
def test_the_form_is_chosen_by_its_operations(samples: int, few: bool) -> None:
    """M (C + D) against C D: 5 * (10 + 10) = 10 * 10 is not less."""
    network = split(nn.Sequential(nn.Identity(), nn.Linear(10, 10)).double())
    torch.manual_seed(0)
    features, targets = torch.randn(samples, 10, dtype=torch.float64), torch.arange(samples)
    line = LinearLine.along(network, features, targets, CrossEntropy())
    assert isinstance(line.gradient, GramGradient if few else HeadGradient)
    dense = head_gradient(features, targets, network.weight.detach(), network.head.bias)  # type: ignore[arg-type]
    assert float(line.norm) == pytest.approx(float(dense.norm), rel=1e-12)
    torch.testing.assert_close(line.response, dense.respond(features), rtol=1e-12, atol=1e-12)


def test_the_norm_of_a_large_head_keeps_its_digits() -> None:
    torch.manual_seed(0)
    features, residual = torch.randn(64, 1024), torch.randn(64, 512)
    exact = gradient_of(features.double(), residual.double(), bias=True).norm
    assert float(gradient_of(features, residual, bias=True).norm) == pytest.approx(float(exact), rel=1e-6)


def test_labels_to_be_ignored_have_no_part_in_a_line() -> None:
    network = split(nn.Sequential(nn.Identity(), nn.Linear(4, 3)).double())
    torch.manual_seed(0)
    features, targets = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, -100])
    line, kept = (LinearLine.along(network, features[:n], targets[:n], CrossEntropy()) for n in (6, 5))
    torch.testing.assert_close(line.norm, kept.norm)
    torch.testing.assert_close(line.minimise().radius, kept.minimise().radius)


def test_class_indices_out_of_range_are_named_along_a_line_too() -> None:
    network = split(nn.Sequential(nn.Identity(), nn.Linear(4, 3)))
    for wrong in (3, -1):
        with pytest.raises(ValueError, match=f"class indices must be in \\[0, 2\\]; got values from .*{wrong}"):
            LinearLine.along(network, torch.randn(2, 4), torch.tensor([0, wrong]), CrossEntropy())


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


def test_logits_of_the_lines_own_features_have_the_graph_of_their_product() -> None:
    torch.manual_seed(0)
    network = split(nn.Sequential(nn.Identity(), nn.Linear(3, 4)).double())
    features, targets = torch.randn(6, 3, dtype=torch.float64, requires_grad=True), torch.arange(6) % 4
    logits = network.head(features)
    line = LinearLine.along(network, features, targets, CrossEntropy(), logits.detach())
    assert line.carried is not None and not line.response.requires_grad
    amount = torch.tensor(0.3, dtype=torch.float64)
    found, product = (line.logits(given, logits, amount) for given in (features, features.clone()))
    assert torch.equal(found, product)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad((z * weights).sum(), features, retain_graph=True)[0] for z in (found, product)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("search", [line_search, reach])
def test_nan_is_no_radius(search: Any) -> None:
    logits, response, targets = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    more = (0.1,) if search is reach else ()
    for place in range(2):
        given = [logits.clone(), response.clone()]
        given[place][1, 1] = math.nan
        with pytest.raises(ValueError, match="logits or response hold NaN"):
            search(*given, targets, *more)
    response[0, 0] = math.inf
    with pytest.raises(ValueError, match="logits or response hold NaN"):
        search(logits, response, targets, *more)
