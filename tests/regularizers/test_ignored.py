"""Samples with the label -100 take no part in a penalty, as in the cross-entropy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pof
from pof.regularizers import FNP, Regularizer, class_statistics

N, D, K = 12, 5, 3
IGNORED = torch.tensor([0, 3, 4, 11])


def problem() -> tuple[nn.Sequential, Tensor, Tensor, Tensor]:
    """A network, inputs, targets of which some are ignored, and the rows that count."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, D)), nn.Linear(D, K)).double()
    inputs, targets = torch.randn(N, 4, dtype=torch.float64), torch.arange(N) % K
    targets[IGNORED] = -100
    return model, inputs, targets, targets != -100


def adarand(model: nn.Module, **options: Any) -> Regularizer:
    mean = torch.arange(K * D, dtype=torch.float64).view(K, D)
    return pof.AdaRand(mean, torch.zeros(K, D, dtype=torch.float64), **options)


def class_prior(model: nn.Module) -> Regularizer:
    return pof.RandReg("class", mean=torch.ones(K, D).double(), std=torch.zeros(K, D).double())


def feature_prior(model: nn.Module) -> Regularizer:
    return pof.RandReg("features", mean=torch.ones(D).double(), std=torch.zeros(D).double())


def bi_tuning(model: nn.Module) -> Regularizer:
    """With a key of each class."""
    made = pof.BiTuning(model, dimension=3, keys=2)
    inputs, targets = torch.randn(K, 4, dtype=torch.float64), torch.arange(K)
    made(model.get_submodule("0")(inputs), targets, inputs)
    made.update(inputs, targets)
    return made


MAKES: list[Callable[[nn.Module], Regularizer]] = [
    adarand,
    class_prior,
    feature_prior,
    lambda model: FNP(),
    lambda model: pof.BSS(k=2),
    lambda model: pof.DELTA(model, ["0.0", "0.2"], channel_weights=[torch.rand(6), torch.rand(D)]),
    lambda model: pof.CoTuning(nn.Linear(D, 4).double(), torch.eye(K, 4).double()),
    bi_tuning,
]


def penalty_of(make: Callable[[nn.Module], Regularizer], rows: Any, wrong: float = 0.0) -> tuple[Tensor, Tensor]:
    """Penalty of some rows, and its gradient in the first layer."""
    model, inputs, targets, _ = problem()
    inputs[IGNORED] += wrong
    regularizer = make(model)
    with torch.no_grad():
        model[0][0].weight.add_(0.1)
    features = model[0](inputs[rows])
    value = regularizer(features, targets[rows], inputs[rows])
    (gradient,) = torch.autograd.grad(value, model[0][0].weight)
    return value.detach(), gradient


@pytest.mark.parametrize("make", MAKES)
def test_a_penalty_is_that_of_the_samples_that_count(make: Callable[[nn.Module], Regularizer]) -> None:
    _, _, _, counted = problem()
    value, gradient = penalty_of(make, slice(None))
    expected, wanted = penalty_of(make, counted)
    assert float(gradient.abs().max()) > 1e-6
    # Sums of some hundred float64 numbers in another order.
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("make", MAKES)
def test_what_is_not_finite_in_an_ignored_sample_reaches_nothing(make: Callable[[nn.Module], Regularizer]) -> None:
    for tensor in penalty_of(make, slice(None), wrong=float("inf"))[:1]:
        assert tensor.isfinite().all()


@pytest.mark.parametrize("make", MAKES)
def test_of_a_mini_batch_without_any_that_counts_the_penalty_is_zero(make: Callable[[nn.Module], Regularizer]) -> None:
    value, gradient = penalty_of(make, IGNORED)
    assert float(value) == 0.0 and not gradient.any()


def test_the_means_of_adarand_follow_the_samples_that_count() -> None:
    model, inputs, targets, counted = problem()
    features = model[0](inputs)
    one, other = adarand(model), adarand(model)
    one.update(features, targets)
    other.update(features[counted], targets[counted])
    torch.testing.assert_close(one.state_dict()["mu_bar"], other.state_dict()["mu_bar"], rtol=1e-12, atol=0)
    torch.testing.assert_close(one.state_dict()["mu"], other.state_dict()["mu"], rtol=1e-12, atol=0)


def test_class_statistics_leave_them_out() -> None:
    model, inputs, targets, counted = problem()
    network = pof.split(model)
    batches = [(inputs[:5], targets[:5]), (inputs[[0, 3]], targets[[0, 3]]), (inputs[5:], targets[5:])]
    found = class_statistics(network, batches, num_classes=K)
    expected = class_statistics(network, [(inputs[counted], targets[counted])], num_classes=K)
    for name, value in vars(expected).items():
        torch.testing.assert_close(getattr(found, name), value, rtol=1e-10, atol=1e-12)


def test_a_step_is_that_of_the_samples_that_count() -> None:
    weights = []
    for rows in (slice(None), problem()[3]):
        model, inputs, targets, _ = problem()
        batches = [(inputs[rows], targets[rows])] * 3
        pof.fit(pof.Regularized(model, adarand(model)), batches, epochs=1, device="cpu")
        weights.append(model[0][0].weight.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-10, atol=1e-12)
