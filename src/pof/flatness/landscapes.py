"""Loss along the head gradient, for the mini-batch that gives it, for all training data and for test data.

theta - xi g_hat, the ray on which PoF (Sato et al., ICML 2022) finds its radius: a linear head with cross-entropy
is convex along it, so the minima are exact.  From it the curvature-induced loss increment
dL = L_test(theta) - min_xi L_test(theta - xi g_hat).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pof._support.checks import MOST_POINTS, finite, whole_number
from pof._support.precision import widest
from pof.flatness import plots
from pof.flatness._measure import Progress, Stored, counting, mean_of, measuring, read, store
from pof.head.split import SplitModel, split
from pof.perturbation.line import LinearLine
from pof.perturbation.loss import CrossEntropy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class LossCurve:
    """Mean loss of one set of samples along a direction of the head."""

    loss: Tensor
    """(G,) at the offsets of the landscape, float64."""
    start: float
    """Loss at offset 0."""
    minimum: float | None
    """Offset of the minimum over the whole line, behind 0 too; None if the samples are separable along it."""
    minimum_loss: float | None
    """Loss there."""

    @property
    def lowest(self) -> tuple[float, float] | None:
        """Offset of the minimum and the change of the loss there."""
        if self.minimum is None or self.minimum_loss is None:
            return None
        return self.minimum, self.minimum_loss - self.start


@dataclass(frozen=True)
class Landscape:
    """Loss along the normalised head gradient of one mini-batch."""

    offsets: Tensor
    """(G,) xi, float64, in units of head-parameter distance; 0 is the network as it is."""
    batch: LossCurve
    """Of the mini-batch that gives the direction; its minimum is the radius xi*."""
    train: LossCurve
    """Of all training samples that were read."""
    test: LossCurve | None
    """Of the test samples."""

    @property
    def curves(self) -> dict[str, LossCurve]:
        """The curves by the name of their samples."""
        tested = {} if self.test is None else {"test": self.test}
        return {"mini-batch": self.batch, "training": self.train, **tested}

    @property
    def radius(self) -> float | None:
        """xi* of the mini-batch; None if it is separable along the ray."""
        return self.batch.minimum

    @property
    def increment(self) -> float | None:
        """dL, the curvature-induced increment of the test loss; None without a test set or a minimum."""
        if self.test is None or self.test.minimum_loss is None:
            return None
        return self.test.start - self.test.minimum_loss

    def plot(self, ax: Axes | None = None, *, label: str = "") -> Axes:
        """Draw the change of each loss with its minimum; arguments as in ``pof.flatness.plots.landscape``."""
        drawn = {
            f"{plots.joined(label, name)} ({curve.start:.3g} at 0)": (curve.loss - curve.start, curve.lowest)
            for name, curve in self.curves.items()
        }
        return plots.landscape(ax, self.offsets, drawn, self.radius)


@dataclass(frozen=True)
class LossIncrement:
    """dL over the directions of many mini-batches."""

    value: float
    """Mean over the directions along which the test set has a minimum."""
    standard_error: float
    """Of that mean; all directions share one test set, whose own sampling error is not in it."""
    increments: Tensor
    """(K,) float64; NaN where the test set is separable along the direction."""

    def plot(self, ax: Axes | None = None, *, label: str = "", series: int = 0) -> Axes:
        """Draw the increments and their mean; arguments as in ``pof.flatness.plots.values_and_mean``."""
        labels = "mini-batch that gives the direction", "increment of the test loss"
        return plots.values_and_mean(ax, self.increments, self.value, labels, label=label, series=series)


def landscape(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    test_loader: Iterable[Any] | None = None,
    batches: int | None = None,
    head: str | None = None,
    points: int = 81,
    reach: float | None = None,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Landscape:
    """Evaluate the loss along the head gradient of the loader's first mini-batch that counts, in eval mode.

    For a network before and after post-training give the same loader, seed and reach: the mini-batch is then the
    same.  :func:`loss_increment` averages over many mini-batches.

    Args:
        model: any module with a linear head; unchanged afterwards.
        loader: training batches.
        test_loader: test batches.
        batches: at most so many of each; None for all.
        head: the head's qualified name; None finds it.
        points: of the grid, at least 2.
        reach: the grid goes from -reach / 2 to reach; None for three times the farthest minimum, or the norm of
            the head's parameters where there is no minimum.
        label_smoothing: of the cross-entropy.
        class_weights: (C,) or None.
        seed: of the order a shuffling loader gives.
        progress: called after each batch.

    Returns:
        The landscape.

    Raises:
        ValueError: if the head is not linear, a loader is empty, or ``points`` or ``reach`` is out of range.
    """
    whole_number("points", points, 2, MOST_POINTS)
    if reach is not None:
        finite("reach", reach, above=0)
    parts = split(model, head)
    loss = CrossEntropy(label_smoothing, class_weights)
    with measuring(model, seed) as device:
        data = read(loader, batches, device, "training batches", progress)
        train = store(parts.features_and_logits, counting(loss, data))
        sets = [_first(train), train]
        if test_loader is not None:
            data = read(test_loader, batches, device, "test batches", progress)
            sets.append(store(parts.features_and_logits, counting(loss, data)))
        line = LinearLine.along(parts, sets[0].features, sets[0].targets, loss)
        lines = [_over(data, line, loss) for data in sets]
        minima = [_minimum(line) for line in lines]
        reach = _reach(parts, minima) if reach is None else reach
        offsets = torch.linspace(-reach / 2, reach, points, dtype=torch.float64)
        curves = [_curve(line, offsets, minimum) for line, minimum in zip(lines, minima, strict=True)]
    return Landscape(offsets, curves[0], curves[1], curves[2] if len(curves) == 3 else None)


def loss_increment(
    model: nn.Module,
    loader: Iterable[Any],
    test_loader: Iterable[Any],
    *,
    batches: int | None = None,
    head: str | None = None,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> LossIncrement:
    """Average dL = L_test(theta) - min_xi L_test(theta - xi g_hat) over mini-batches' g_hat, in eval mode.

    Args:
        model: any module with a linear head; unchanged afterwards.
        loader: training batches; each gives a direction.
        test_loader: test batches; their features (N, D) are kept in memory.
        batches: at most so many of each; None for all.
        head: the head's qualified name; None finds it.
        label_smoothing: of the cross-entropy.
        class_weights: (C,) or None.
        seed: of the order a shuffling loader gives.
        progress: called after each batch.

    Returns:
        The increment; NaN without a direction that has a minimum, and its standard error also with only one.

    Raises:
        ValueError: if the head is not linear or a loader is empty.
    """
    parts = split(model, head)
    loss = CrossEntropy(label_smoothing, class_weights)
    found = []
    with measuring(model, seed) as device:
        held = read(test_loader, batches, device, "test batches", progress)
        test = store(parts.features_and_logits, counting(loss, held))
        for batch in counting(loss, read(loader, batches, device, "directions", progress)):
            data = store(parts.features_and_logits, [batch])
            line = _over(test, LinearLine.along(parts, data.features, data.targets, loss), loss)
            lowest = _minimum(line)[1]
            found.append(float("nan") if lowest is None else float(line.loss_at(0.0)) - lowest)
    increments = torch.tensor(found, dtype=torch.float64)
    mean = mean_of(increments[~increments.isnan()])
    return LossIncrement(mean.value, mean.standard_error, increments)


def _first(data: Stored) -> Stored:
    n = data.sizes[0]
    return Stored(data.features[:n], data.logits[:n], data.targets[:n], (n,))


def _over(data: Stored, line: LinearLine, loss: CrossEntropy) -> LinearLine:
    # In float64: the increment is a small difference of two losses.
    return line.over(data.features, widest(data.logits), data.targets, loss)


def _minimum(line: LinearLine) -> tuple[float | None, float | None]:
    # Offset and loss; convex, so at most one half-line goes below the start.
    ahead, behind = line.minimise(), line.minimise_behind()
    if not (bool(ahead.bounded) and bool(behind.bounded)):
        return None, None
    if float(behind.radius) > 0 and float(behind.loss) < float(ahead.loss):
        return -float(behind.radius), float(behind.loss)
    return float(ahead.radius), float(ahead.loss)


def _reach(parts: SplitModel, minima: list[tuple[float | None, float | None]]) -> float:
    farthest = max(abs(offset) for offset, _ in [*minima, (0.0, None)] if offset is not None)
    size = [parts.weight.detach().flatten()] + ([] if parts.bias is None else [parts.bias.detach()])
    return 3.0 * farthest if farthest > 0 else float(torch.linalg.vector_norm(torch.cat(size))) or 1.0


def _curve(line: LinearLine, offsets: Tensor, minimum: tuple[float | None, float | None]) -> LossCurve:
    losses = [float(line.loss_at(xi)) for xi in offsets.tolist()]
    return LossCurve(torch.tensor(losses, dtype=torch.float64), float(line.loss_at(0.0)), *minimum)
