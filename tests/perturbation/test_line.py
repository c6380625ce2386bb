"""The line along a head gradient: its two kinds against each other, and a moved copy of the head."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from pof.head.split import SplitModel, split
from pof.perturbation.line import HeadLine, LinearLine, ModuleLine, along_head_gradient
from pof.perturbation.loss import CrossEntropy

CLASSES = 5


def problem(width: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[SplitModel, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(24, width, generator=generator).to(dtype)
    targets = torch.randint(CLASSES, (24,), generator=generator)
    torch.manual_seed(seed)
    return split(nn.Sequential(nn.Identity(), nn.Linear(width, CLASSES)).to(dtype)), features, targets


def both(*given: Any) -> tuple[HeadLine, HeadLine]:
    network, features, targets = problem(*given)
    exact = along_head_gradient(network, features, targets, CrossEntropy())
    general = along_head_gradient(network, features, targets, F.cross_entropy)
    assert isinstance(exact, LinearLine) and isinstance(general, ModuleLine)
    return exact, general


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("amount", [-0.7, 0.0, 0.4])
def test_a_positive_amount_goes_down_the_gradient(kind: int, amount: float) -> None:
    network, features, targets = problem(4)
    line = both(4)[kind]
    head = copy.deepcopy(network.head)
    gradients = torch.autograd.grad(F.cross_entropy(head(features), targets), list(head.parameters()))
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    with torch.no_grad():
        for p, g in zip(head.parameters(), gradients, strict=True):
            p -= amount * g / norm
    assert float(line.norm) == pytest.approx(float(norm), rel=1e-12)
    expected = F.cross_entropy(head(features), targets).item()
    assert line.loss_at(amount).item() == pytest.approx(expected, rel=1e-12)
    other = torch.randn(3, 4, dtype=torch.float64)
    found = line.logits(other, network.head(other), torch.tensor(amount, dtype=torch.float64))
    torch.testing.assert_close(found, head(other), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_general_search_agrees_with_the_exact_one(dtype: torch.dtype) -> None:
    for seed in range(10):
        # 40 features: the valley is flat, and a tolerance of 1000 eps ends 4 % too far out in float32.
        exact, general = (line.minimise() for line in both(40, dtype, seed))
        assert bool(exact.bounded) and bool(general.bounded)
        assert float(general.radius) == pytest.approx(float(exact.radius), rel=2e-4 if dtype == torch.float32 else 1e-5)
        assert float(general.loss) == pytest.approx(float(exact.loss), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_separable_mini_batches_are_told_from_rounding(dtype: torch.dtype) -> None:
    # Without a tolerance the rounding of a slope of nearly zero counts as a rise in most of these.
    for seed in range(10):
        exact, general = (line.minimise() for line in both(400, dtype, seed))
        assert not bool(exact.bounded) and not bool(general.bounded)
        assert float(general.radius) == float(exact.radius) == 0.0
        assert float(general.loss) == pytest.approx(float(exact.loss), rel=1e-6)


@pytest.mark.parametrize("share", [0.5, 1.001, 1.5, 4.0])
def test_both_reach_the_same_level(share: float) -> None:
    lines = both(6)
    level = share * float(lines[0].loss_at(0.0))
    exact, general = (line.reach(level) for line in lines)
    assert float(general.radius) == pytest.approx(float(exact.radius), rel=1e-4)
    assert float(exact.loss) == pytest.approx(max(share, 1.0) * level / share, rel=1e-12)
    assert bool(exact.bounded) and bool(general.bounded)


def test_a_gradient_of_zero_has_no_line() -> None:
    network, features, _ = problem(4)
    with torch.no_grad():
        network.head.weight.fill_(500.0).mul_(torch.tensor([[1.0], [-1.0], [-1.0], [-1.0], [-1.0]]))
    ones, targets = torch.ones_like(features), torch.zeros(len(features), dtype=torch.long)
    for loss in (CrossEntropy(), F.cross_entropy):
        line = along_head_gradient(network, ones, targets, loss)
        assert float(line.norm) == float(line.minimise().radius) == float(line.reach(1.0).radius) == 0.0
        assert not bool(line.reach(1.0).bounded)


class Scalar(nn.Module):
    """A head that returns its only weight, 2."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w


def of_weight(loss: Callable[[Tensor], Tensor]) -> HeadLine:
    network = SplitModel(nn.Sequential(nn.Identity(), Scalar()), "1")
    one = torch.ones(1, 1, dtype=torch.float64)
    return along_head_gradient(network, one, torch.zeros(1), lambda w, _: loss(w).sum())


def test_a_loss_with_many_valleys_is_searched_to_the_first() -> None:
    line = of_weight(torch.cos)
    found = line.minimise()
    assert float(found.radius) == pytest.approx(math.pi - 2.0, rel=1e-4)
    assert float(line.reach(0.9).radius) == pytest.approx(2.0 - math.acos(0.9), rel=1e-4)


def test_a_valley_above_the_start_is_no_minimum() -> None:
    """a^2 - b sin(2^10 pi a) falls at every power of two below the valley that is found, at a of about 16."""
    line = of_weight(lambda w: (2 - w) ** 2 - 0.01 * (2**10 * math.pi * (2 - w)).sin())
    found = line.minimise()
    assert bool(found.bounded) and float(found.radius) == 0.0
    assert float(found.loss) == float(line.loss_at(0.0))


def test_nothing_of_the_head_changes_and_its_parameters_get_no_gradient() -> None:
    head = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, CLASSES)).double()
    network = split(nn.Sequential(nn.Linear(3, 4).double(), head), "1")
    before = copy.deepcopy(network.state_dict())
    inputs, targets = torch.randn(8, 3, dtype=torch.float64), torch.arange(8) % CLASSES
    features = network.model[0](inputs)  # type: ignore[index]
    line = along_head_gradient(network, features, targets, CrossEntropy())
    line.logits(features, head(features), line.minimise().radius).sum().backward()
    line.reach(2.0)
    assert head.training and head[0].training
    assert all(p.grad is None for p in head.parameters())
    assert network.model[0].weight.grad is not None  # type: ignore[index]
    after = network.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items() if "running" not in k and "num_batches" not in k)
    assert int(after["model.1.0.num_batches_tracked"]) == 1


class Scaled(nn.Module):
    """Multiplies by a buffer, which the graph then holds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 4, dtype=torch.float64))

    def forward(self, values: Tensor) -> Tensor:
        return torch.tanh(values * self.scale)


class OwnForward(nn.BatchNorm1d):
    """One whose kernel moves the statistics, and keeps them for its backward pass."""

    def forward(self, values: Tensor) -> Tensor:
        return F.batch_norm(values, self.running_mean, self.running_var, self.weight, self.bias, training=True)


@pytest.mark.parametrize(
    "middle",
    [
        lambda: Scaled(),
        lambda: prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.3),
        lambda: nn.utils.spectral_norm(nn.Linear(4, 4)),
        lambda: OwnForward(4),
    ],
    ids=["scale", "pruned", "spectral norm", "custom batch norm"],
)
def test_a_graph_may_hold_the_buffers_of_the_head(middle: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(4, 4), middle(), nn.Linear(4, CLASSES)).double()
    network = split(nn.Sequential(nn.Linear(3, 4).double(), head), "1")
    inputs, targets = torch.randn(8, 3, dtype=torch.float64), torch.arange(8) % CLASSES
    features = network.model[0](inputs)  # type: ignore[index]
    line = along_head_gradient(network, features, targets, CrossEntropy())
    assert isinstance(line, ModuleLine)
    buffers = copy.deepcopy(dict(head.named_buffers()))
    radius = line.minimise().radius
    found = line.logits(features, features, radius)
    assert all(torch.equal(value, buffers[name]) for name, value in head.named_buffers())
    (gradient,) = torch.autograd.grad(found.square().sum(), features)
    step = 1e-6 * gradient / gradient.norm()
    with torch.no_grad():
        sums = [line.logits(features + sign * step, features, radius).square().sum() for sign in (1, -1)]
    assert float(sums[0] - sums[1]) / 2e-6 == pytest.approx(float(gradient.norm()), rel=1e-5)


class Moduli(nn.Module):
    """A head with complex weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(CLASSES, 6, dtype=torch.complex128))

    def forward(self, features: Tensor) -> Tensor:
        return (features.to(self.weight.dtype) @ self.weight.T).abs()


def test_a_head_of_complex_weights_moves_along_its_gradient() -> None:
    _, features, targets = problem(6)
    head = Moduli()
    line = ModuleLine.along(head, features, targets, F.cross_entropy)
    gradient = line.norm * line.direction["weight"]
    assert line.norm.dtype == torch.float64
    torch.testing.assert_close(line.norm, torch.linalg.vector_norm(torch.view_as_real(gradient)))
    fallen = (line.loss_at(-1e-6) - line.loss_at(1e-6)) / 2e-6  # the slope along the unit gradient
    torch.testing.assert_close(fallen, line.norm, rtol=1e-6, atol=0)
    found = line.minimise()
    assert 0 < found.loss < line.loss_at(0.0)
