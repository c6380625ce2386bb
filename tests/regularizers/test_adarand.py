"""AdaRand's update: the gradient against autograd, its geometry, what must not move, and its memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pof.regularizers import AdaRand
from pof.regularizers.adarand import mean_gradient
from tests.references import regularizers as twin


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("classes", "dim"), [(2, 1), (2, 5), (9, 3), (4, 40)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_gradient_equals_autograd_of_the_literal_objective(classes: int, dim: int, scale: float) -> None:
    mu = (scale * random(classes, dim)).requires_grad_()
    mu_bar = random(classes, dim, seed=1)
    (expected,) = torch.autograd.grad(twin.mean_objective(mu, mu_bar), mu)
    # In one dimension the gradient is 0 up to rounding, which is relative to 1/|mu|.
    torch.testing.assert_close(mean_gradient(mu.detach(), mu_bar), expected, rtol=1e-10, atol=1e-14 / scale)


def test_first_adam_step_moves_every_coordinate_by_the_learning_rate() -> None:
    mean = random(6, 4)
    regularizer = AdaRand(mean, torch.ones_like(mean), lr=0.02)
    expected = mean - 0.02 * mean_gradient(mean, mean).sign()
    # alpha does not matter without a batch that moves mu_bar; the step falls short of lr by eps over the gradient.
    regularizer.update(mean, torch.arange(6))
    torch.testing.assert_close(regularizer.mu, expected, rtol=0, atol=1e-6)


def test_means_follow_the_features_and_move_apart() -> None:
    classes, dim = 4, 8
    # Nearly parallel means; features on orthogonal axes.
    mean = torch.ones(classes, dim).double() + 0.01 * random(classes, dim)
    axes = 3 * torch.eye(dim).double()[:classes]
    regularizer = AdaRand(mean, torch.ones_like(mean))
    for _ in range(1000):
        regularizer.update(axes, torch.arange(classes))
    torch.testing.assert_close(regularizer.mu_bar, axes, rtol=0, atol=1e-12)
    units = torch.nn.functional.normalize(regularizer.mu)
    between = (units @ units.T)[~torch.eye(classes, dtype=torch.bool)]
    # Each mean is pulled to its own axis and pushed off the others: it leans over, past the right angle.
    assert (units @ axes.T / 3).diagonal().min() > 0.8
    assert between.max() < 0.0


def test_absent_classes_keep_their_moving_average_to_the_bit() -> None:
    mean = random(5, 3).float()
    regularizer = AdaRand(mean, torch.ones_like(mean), alpha=0.25)
    regularizer.update(torch.full((3, 3), 2.0), torch.tensor([1, 3, 3]))
    absent = [0, 2, 4]
    assert torch.equal(regularizer.mu_bar[absent], mean[absent])
    torch.testing.assert_close(regularizer.mu_bar[[1, 3]], 0.25 * mean[[1, 3]] + 1.5)


def test_alpha_one_keeps_and_alpha_zero_replaces_the_moving_average() -> None:
    mean, features = random(2, 3), random(2, 3, seed=1)
    keep, replace = (AdaRand(mean, torch.ones_like(mean), alpha=a) for a in (1.0, 0.0))
    for regularizer in (keep, replace):
        regularizer.update(features, torch.tensor([0, 1]))
    assert torch.equal(keep.mu_bar, mean)
    torch.testing.assert_close(replace.mu_bar, features)


def test_zero_lr_keeps_the_means_and_sigma_never_moves() -> None:
    mean, std = random(3, 4), random(3, 4, seed=1).abs()
    still, moving = AdaRand(mean, std, lr=0.0), AdaRand(mean, std)
    for regularizer in (still, moving):
        regularizer.update(random(6, 4, seed=2), torch.arange(6) % 3)
        assert torch.equal(regularizer.sigma, std)
    assert torch.equal(still.mu, mean)
    assert not torch.equal(moving.mu, mean)


def test_zero_gradients_zero_rows_give_no_nan() -> None:
    mean = random(4, 3)
    mean[1] = 0.0
    regularizer = AdaRand(mean, torch.zeros_like(mean))
    for _ in range(5):
        regularizer.update(torch.zeros(4, 3).double(), torch.arange(4))
        assert torch.equal(regularizer.mu[1], torch.zeros(3).double())
    assert all(b.isfinite().all() for b in regularizer.buffers())
    identical = AdaRand(torch.ones(4, 3), torch.ones(4, 3))
    identical.update(torch.ones(4, 3), torch.arange(4))
    assert identical.mu.isfinite().all()


def test_update_takes_features_with_a_graph_and_adds_nothing_to_it() -> None:
    features = random(4, 3).requires_grad_()
    regularizer = AdaRand(random(2, 3), torch.ones(2, 3).double())
    penalty = regularizer(features, torch.tensor([0, 1, 1, 0]))
    regularizer.update(features, torch.tensor([0, 1, 1, 0]))
    assert not any(b.requires_grad for b in regularizer.buffers())
    penalty.backward()
    assert features.grad is not None


class LargestResult(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_no_intermediate_is_larger_than_the_means() -> None:
    classes, dim = 300, 4
    regularizer = AdaRand(random(classes, dim), torch.ones(classes, dim).double())
    features, targets = random(8, dim), torch.arange(8)
    with LargestResult() as largest:
        regularizer(features, targets)
        regularizer.update(features, targets)
    assert largest.numel == classes * dim


def test_penalty_is_scaled_by_the_feature_dimension() -> None:
    mean = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    penalty = AdaRand(mean, torch.zeros(2, 2), strength=2.0)(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
    assert penalty == pytest.approx(2 * (5 + 34 + 34) / (3 * 2))


def test_sigma_of_half_width_scales_the_noise_in_full_precision() -> None:
    mean, std = torch.zeros(2, 3), torch.full((2, 3), 1.5)
    features, targets = random(5, 3).float(), torch.tensor([0, 1, 1, 0, 0])
    narrow, wide = AdaRand(mean, std.bfloat16()), AdaRand(mean, std)
    assert narrow.sigma.dtype == torch.bfloat16
    # 1.5 is exact in bfloat16.
    assert torch.equal(narrow(features, targets), wide(features, targets))


@pytest.mark.parametrize("how", ["given", "cast"])
def test_half_precision_is_for_the_network_alone(how: str) -> None:
    """In bfloat16 a count ends at 256, and steps of the learning rate are rounded away."""
    mean, std = random(2, 4).float(), torch.ones(2, 4)
    features, targets = random(700, 4, seed=1).float() + 2, torch.zeros(700, dtype=torch.int64)
    wide = AdaRand(mean.bfloat16().float(), std, alpha=0.0, lr=1e-4)
    half = AdaRand(mean.bfloat16(), std, alpha=0.0, lr=1e-4)
    if how == "cast":
        half = AdaRand(mean.bfloat16().float(), std, alpha=0.0, lr=1e-4).bfloat16()
    for regularizer in (wide, half):
        for _ in range(3):
            regularizer.update(features, targets)
    assert torch.equal(half.mu, wide.mu) and torch.equal(half.mu_bar, wide.mu_bar)
    torch.testing.assert_close(half.mu_bar[0], features.mean(dim=0))
    assert half.double().mu.dtype == torch.float64
