"""Distribution of the radius xi* over mini-batches: where the loss along the head gradient has its minimum.

PoF (Sato et al., ICML 2022, slides) expands the radius by gamma = 2, because the minimiser for test batches lies
at about twice the radius of training batches.  Here both distributions, their ratio, and gamma from a validation split.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from pof._support.random import seeded
from pof.flatness import plots
from pof.flatness._measure import Progress, counting, measuring, read, store
from pof.head.split import split
from pof.perturbation.line import LinearLine
from pof.perturbation.loss import CrossEntropy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Direction = Literal["own", "train"]


@dataclass(frozen=True)
class Radii:
    """xi* of each mini-batch of one data set."""

    radius: Tensor
    """(K,) float64, in units of head-parameter distance; 0 where not bounded."""
    bounded: Tensor
    """(K,) bool: False for batches separable along the ray, which have no minimiser."""
    gradient_norm: Tensor
    """(K,) float64, norm of the gradient that gives the direction."""
    batch_size: int
    """Samples per mini-batch; batches of another size are left out, since the radius depends on it."""

    @property
    def median(self) -> float:
        """Median over the bounded batches; NaN if there are none."""
        return float(_median(self.radius[self.bounded])) if bool(self.bounded.any()) else math.nan

    @property
    def separable_share(self) -> float:
        """Share of batches separable along the ray, in [0, 1]."""
        return 1.0 - float(self.bounded.double().mean())


@dataclass(frozen=True)
class RadiusDistribution:
    """Radii of training batches, and of test batches if they were given."""

    train: Radii
    test: Radii | None
    direction: Direction

    @property
    def ratio(self) -> float:
        """Median of the test radii over that of the training radii (2 in the paper).

        NaN without either, or where their mini-batches are of different size, on which the radius depends.
        """
        if self.test is None or self.test.batch_size != self.train.batch_size or not self.train.median > 0:
            return math.nan
        return self.test.median / self.train.median

    def plot(self, ax: Axes | None = None, *, label: str = "", bins: int = 20, limit: float | None = None) -> Axes:
        """Draw both histograms over the bounded batches; arguments as in ``pof.flatness.plots.radii``."""
        sets = {"training": self.train} | ({} if self.test is None else {"test": self.test})
        drawn = {
            f"{plots.joined(label, name)}: median {r.median:.3g}, {r.separable_share:.0%} separable": r
            for name, r in sets.items()
        }
        return plots.radii(
            ax, {key: (r.radius[r.bounded], r.median) for key, r in drawn.items()}, bins=bins, limit=limit
        )


@dataclass(frozen=True)
class SuggestedGamma:
    """gamma by the paper's own reasoning, from data."""

    value: float
    low: float
    """2.5 % quantile over resampled batches (bootstrap)."""
    high: float
    """97.5 % quantile."""


def radius_distribution(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    test_loader: Iterable[Any] | None = None,
    batches: int | None = None,
    head: str | None = None,
    direction: Direction = "own",
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> RadiusDistribution:
    """Find xi* = argmin_{xi >= 0} L_B(theta - xi g_hat) for many mini-batches, in eval mode (PoF, steps 1 and 2).

    Args:
        model: any module with a linear head; unchanged afterwards.
        loader: training batches; shuffle for batches as the training sees them.
        test_loader: test batches of the same size, or of a validation split for :func:`suggested_gamma`.
        batches: at most so many of each; None for all.
        head: the head's qualified name; None finds it.
        direction: what g_hat is for a test batch, which the public text leaves open: "own" is the gradient of the
            test batch itself, "train" that of the training batch with the same number (cycled).
        label_smoothing: of the cross-entropy.
        class_weights: (C,) or None.
        seed: of the order a shuffling loader gives.
        progress: called after each batch.

    Returns:
        The radii of both sets.

    Raises:
        ValueError: if the head is not linear, a loader is empty, or ``direction`` is unknown.
    """
    if direction not in ("own", "train"):
        raise ValueError(f"direction must be 'own' or 'train'; got {direction!r}")
    parts = split(model, head)
    loss = CrossEntropy(label_smoothing, class_weights)
    kept: list[LinearLine] = []

    def measure(source: Iterable[Any], stage: str, given: list[LinearLine]) -> Radii:
        found = []
        for i, batch in enumerate(counting(loss, read(source, batches, device, stage, progress))):
            data = store(parts.features_and_logits, [batch])
            if given:
                line = given[i % len(given)].over(data.features, data.logits, data.targets, loss)
            else:
                line = LinearLine.along(parts, data.features, data.targets, loss)
            search = line.minimise()
            found.append((data.sizes[0], line.norm, search.radius, search.bounded))
            if direction == "train" and not given:
                kept.append(line)
        return _radii(found)

    with measuring(model, seed) as device:
        train = measure(loader, "training batches", [])
        test = None if test_loader is None else measure(test_loader, "test batches", kept)
    return RadiusDistribution(train, test, direction)


def suggested_gamma(distribution: RadiusDistribution, *, resamples: int = 1000, seed: int = 0) -> SuggestedGamma:
    """Suggest gamma: the ratio of the median radii of a validation split and of the training data.

    This is the paper's reason for gamma = 2, with the data's own number in its place.  Give the validation split as
    ``test_loader`` (never the test set).  It says where validation batches have their minimum, not that training
    is stable there: step size and sampling decide that, so treat values well above 2 with care.

    Args:
        distribution: with the radii of the validation split as ``test``.
        resamples: bootstrap resamples of the batches, for the interval.
        seed: of the resampling.

    Returns:
        The ratio with its 95 % interval.

    Raises:
        ValueError: if there is no validation split, its mini-batches are of another size, or fewer than two of one of
            the sets are bounded.
    """
    if distribution.test is None:
        raise ValueError("gamma needs the radii of a validation split: pass it as test_loader to radius_distribution")
    train, test = distribution.train, distribution.test
    if test.batch_size != train.batch_size:
        raise ValueError(
            f"the mini-batches of loader have {train.batch_size} samples and those of test_loader {test.batch_size}, on"
            " which the radius depends: give both loaders one batch_size, not larger than either data set"
        )
    sets = [r.radius[r.bounded] for r in (train, test)]
    if min(len(s) for s in sets) < 2 or not distribution.train.median > 0:
        counts = " and ".join(str(len(s)) for s in sets)
        raise ValueError(
            f"gamma needs at least two bounded batches in each set and a positive training radius; got {counts} "
            "bounded batches: take more batches, or a larger batch size, since small batches are often separable"
        )
    generator = seeded(seed)
    medians = []
    for values in sets:
        draws = torch.randint(len(values), (resamples, len(values)), generator=generator)
        medians.append(_median(values[draws]))
    low, high = torch.quantile(medians[1] / medians[0], torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return SuggestedGamma(distribution.ratio, low, high)


def _radii(found: list[tuple[int, Tensor, Tensor, Tensor]]) -> Radii:
    size = found[0][0]
    norms, radii, bounded = zip(*(rest for n, *rest in found if n == size), strict=True)
    return Radii(
        radius=torch.stack(radii).cpu().double(),
        bounded=torch.stack(bounded).cpu(),
        gradient_norm=torch.stack(norms).cpu().double(),
        batch_size=size,
    )


def _median(values: Tensor) -> Tensor:
    # torch.median takes the lower of the middle two.
    ordered = values.sort(dim=-1).values
    n = values.shape[-1]
    return (ordered[..., (n - 1) // 2] + ordered[..., n // 2]) / 2
