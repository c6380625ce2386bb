"""The head alone, to convergence: its optimum, what it leaves alone, and LP-FT as a method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import pof
from pof.app.method_options import ProbeOptions
from pof.app.methods import Context, build_method
from pof.app.options import TrainOptions
from tests.references.linear_probe import probe
from tests.regularizers import problem


def features_of(model: nn.Module, data: list[problem.Batch]) -> tuple[torch.Tensor, torch.Tensor]:
    network = pof.split(model.eval(), "head")
    with torch.no_grad():
        return torch.cat([network.features(x) for x, _ in data]), torch.cat([y for _, y in data])


def head_of(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return model.head.weight.detach(), model.head.bias.detach()


@pytest.mark.parametrize("l2", [1e-3, 0.1])
def test_the_head_is_the_minimum_that_newton_finds(l2: float) -> None:
    model, data = problem.network(), problem.batches()[:6]  # all classes
    loss = pof.linear_probe(model, data, "head", l2=l2)
    features, targets = features_of(model, data)
    expected = probe(features, targets, problem.CLASSES, l2)
    weight, bias = head_of(model)
    # It ends where a step gains less than 1e-14: the gradient is some 1e-8, and the smallest curvature l2 >= 1e-3.
    torch.testing.assert_close(weight, expected[:, :-1], rtol=0, atol=1e-5)
    # A common shift of all biases changes nothing.
    torch.testing.assert_close(bias - bias.mean(), expected[:, -1] - expected[:, -1].mean(), rtol=0, atol=1e-4)
    reached = nn.functional.cross_entropy(nn.functional.linear(features, weight, bias), targets)
    assert loss == pytest.approx(float(reached), rel=1e-9)


def test_the_head_is_that_of_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="compares with scikit-learn")
    model, data = problem.network(), problem.batches()
    pof.linear_probe(model, data, "head", l2=0.01)
    features, targets = features_of(model, data)
    theirs = linear_model.LogisticRegression(C=1 / (0.01 * len(targets)), tol=1e-10, max_iter=10_000)
    theirs.fit(features.numpy(), targets.numpy())
    torch.testing.assert_close(head_of(model)[0], torch.from_numpy(theirs.coef_), rtol=0, atol=1e-5)


def test_everything_else_stays_and_the_old_head_does_not_matter() -> None:
    model, data = problem.network(dropout=0.5).train(), problem.batches()
    model.norm.eval()
    other = problem.network(dropout=0.5)
    with torch.no_grad():
        other.head.weight.normal_()
    before, generator = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    assert pof.linear_probe(model, data) == pof.linear_probe(other, data)
    assert all(torch.equal(a, b) for a, b in zip(head_of(model), head_of(other), strict=True))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"}
    assert model.training and not model.norm.training
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_class_of_twice_the_weight_counts_as_twice_the_samples() -> None:
    data = problem.batches()
    weighted, repeated = problem.network(), problem.network()
    weights = torch.ones(problem.CLASSES, dtype=torch.float64)
    weights[1] = 2.0
    twice = [(torch.cat([x, x[y == 1]]), torch.cat([y, y[y == 1]])) for x, y in data]
    value = pof.linear_probe(weighted, data, class_weights=weights)
    # As near as the minimum is found: rounding differs, and with it the number of steps.
    assert value == pytest.approx(pof.linear_probe(repeated, twice), rel=1e-8)
    torch.testing.assert_close(head_of(weighted)[0], head_of(repeated)[0], rtol=0, atol=1e-5)


def test_samples_to_be_ignored_have_no_part_and_smoothing_has() -> None:
    data = problem.batches()
    model, fewer, smooth = problem.network(), problem.network(), problem.network()
    marked = [(torch.cat([x, x + 1]), torch.cat([y, torch.full_like(y, -100)])) for x, y in data]
    assert pof.linear_probe(model, marked) == pytest.approx(pof.linear_probe(fewer, data), rel=1e-12)
    # The optimum of the smoothed loss has smaller weights.
    pof.linear_probe(smooth, data, label_smoothing=0.5)
    assert head_of(smooth)[0].norm() < 0.8 * head_of(model)[0].norm()


def test_heads_without_bias_and_of_one_by_one_convolutions() -> None:
    data = problem.batches()
    model = problem.network()
    model.head = nn.Linear(problem.DIM, problem.CLASSES, bias=False).double()
    pof.linear_probe(model, data, "head")
    features, targets = features_of(model, data)
    weight = model.head.weight.detach().requires_grad_()
    loss = nn.functional.cross_entropy(features @ weight.T, targets) + 1e-2 / 2 * weight.square().sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient.abs().max() < 1e-7
    layers = [*list(problem.network())[:6], nn.Conv2d(problem.DIM, problem.CLASSES, 1).double(), nn.Flatten()]
    convolution = nn.Sequential(*layers)
    plain = problem.network()
    pof.linear_probe(convolution, data, "6")
    pof.linear_probe(plain, data, "head")
    torch.testing.assert_close(convolution[6].weight.flatten(1), plain.head.weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda m: None, {"l2": 0.0}, "l2 must be a finite number > 0; got 0.0"),
        (lambda m: None, {"label_smoothing": 1.0}, "label_smoothing"),
        (lambda m: m.head.requires_grad_(False), {}, "the head 'head', which is frozen or sharded"),
        (lambda m: m.head.weight.data.mul_(1), {"head": "stem"}, "stem"),
    ],
)
def test_bad_input_is_named(change: Any, options: dict[str, Any], message: str) -> None:
    model = problem.network()
    change(model)
    with pytest.raises(ValueError, match=message):
        pof.linear_probe(model, problem.batches(), **options)


def test_a_loader_without_samples_is_named() -> None:
    with pytest.raises(ValueError, match="without samples"):
        pof.linear_probe(problem.network(), [])


def test_lp_ft_is_plain_training_from_the_probed_head() -> None:
    model, data = problem.network(), problem.batches()
    training = TrainOptions("lp-ft", probe=ProbeOptions(l2=0.02))
    method = build_method(Context(model, "head", training, problem.CLASSES, data))
    expected = problem.network()
    pof.linear_probe(expected, data, "head", l2=0.02)
    assert type(method) is pof.Finetune and method.model is model
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    with pytest.raises(ValueError, match="lp-ft trains a head on features that are trained already: give --weights"):
        build_method(Context(model, "head", training, problem.CLASSES, data, from_scratch=True))


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize(
    "computed",
    [
        torch.nn.utils.parametrizations.weight_norm,
        torch.nn.utils.weight_norm,
        torch.nn.utils.parametrizations.spectral_norm,
        lambda head: prune.random_unstructured(head, "weight", 0.3),
    ],
)
def test_a_head_that_is_computed_is_refused(computed: Any) -> None:
    """What would be set is the result of the computation, which the next forward makes anew."""
    model = problem.network()
    computed(model.head)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="the head 'head', which is computed from other parameters"):
        pof.linear_probe(model, problem.batches(), "head")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_in_inference_mode() -> None:
    one, other = problem.network(), problem.network()
    with torch.inference_mode():
        assert pof.linear_probe(one, problem.batches()) == pof.linear_probe(other, problem.batches())
    expected = problem.network()
    pof.linear_probe(expected, problem.batches())
    assert torch.equal(head_of(one)[0], head_of(expected)[0])
