"""What the features are like: norm, head gradient, entropy, information about the label, margin.

The statistics by which AdaRand explains fine-tuning (Yamaguchi et al., CVPR 2024), and the distance of the samples
to the head's decision boundaries.  All are of features computed once, in eval mode.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pof._support.precision import at_least_float32, widest
from pof.flatness import plots
from pof.flatness._measure import Progress, Stored, hard_labels, measuring, read, report, store, without_ignored
from pof.head.split import SplitModel, split
from pof.perturbation.linear import head_gradient, respond
from pof.perturbation.targets import encode_targets, logit_gradient

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Elements of one block of the distance matrix.
_BLOCK_ELEMENTS = 2**24


@dataclass(frozen=True)
class FeatureStatistics:
    """Statistics of the features of a data set."""

    norm: float
    """Mean of ||f||."""
    gradient_norm: float
    """Norm of the gradient of the mean loss over all samples in the head's parameters."""
    sample_gradient_norm: float
    """Mean over samples of the norm of each sample's own gradient in the head's parameters."""
    entropy: float
    """H(g) in nats, MeanNN, up to a constant of the dimension (see :func:`meannn_entropy`); NaN for one sample."""
    mutual_information: float
    """I(g; y) = H(g) - H(g | y) in nats; the constant cancels.  It compares networks with features of one dimension D
    and is no amount of information: MeanNN multiplies a mean log distance by D, so its bias grows with D and exceeds
    what there can be, log C (112 instead of at most 2.3 nats for ten digits and 64 features).  NaN where no class
    has two samples."""
    margins: Tensor
    """(N,) signed distance to the nearest decision boundary, negative where wrong; see :func:`head_margins`."""
    samples: int
    """N."""

    @property
    def margin(self) -> float:
        """Median margin, in units of feature distance."""
        return float(self.margins.quantile(0.5))

    def plot(self, ax: Axes | None = None, *, label: str = "", series: int = 0, bins: int = 40) -> Axes:
        """Draw the histogram of the margins; arguments as in ``pof.flatness.plots.margins``."""
        return plots.margins(ax, self.margins, bins, label=label, series=series)


@dataclass(frozen=True)
class PrincipalComponents:
    """Principal components of features."""

    projection: Tensor
    """(N, k) float64, centred."""
    components: Tensor
    """(k, D) float64, unit rows; the entry of largest magnitude is positive."""
    explained: Tensor
    """(k,) share of the variance."""
    mean: Tensor
    """(D,) float64."""
    labels: Tensor
    """(N,) int64."""

    def plot(self, ax: Axes | None = None, *, samples: int = 2000, names: Sequence[str] | None = None) -> Axes:
        """Draw the first two components; arguments as in ``pof.flatness.plots.components``."""
        return plots.components(ax, self.projection, self.explained, self.labels, samples=samples, names=names)


def feature_statistics(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    batches: int | None = None,
    head: str | None = None,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> FeatureStatistics:
    """Measure the features of a data set, in eval mode.  The entropies take N^2 D operations: bound ``batches``.

    Arguments that all measurements share are described in ``pof.flatness``.

    Args:
        label_smoothing: of the cross-entropy whose gradient is measured.

    Returns:
        The statistics.

    Raises:
        ValueError: if the head is not linear or the loader is empty.
    """
    parts, stored = _features(model, loader, batches, head, seed, progress)
    weight, bias = parts.weight.detach(), None if parts.bias is None else parts.bias.detach()
    features, labels = stored.features, hard_labels(stored.targets)
    total = head_gradient(
        features, stored.targets, weight, bias, label_smoothing=label_smoothing, class_weights=class_weights
    )
    encoded = encode_targets(stored.targets, stored.logits, label_smoothing, class_weights=class_weights)
    residual = torch.linalg.vector_norm(logit_gradient(stored.logits, encoded), dim=1) * len(features)
    square = features.square().sum(dim=1) + (0.0 if bias is None else 1.0)
    pairs = len(features) > 1 and int(labels.bincount().max()) > 1
    entropy = meannn_entropy(features, progress=progress) if len(features) > 1 else math.nan
    given = conditional_entropy(features, labels, progress=progress) if pairs else math.nan
    return FeatureStatistics(
        norm=float(widest(torch.linalg.vector_norm(features, dim=1)).mean()),
        gradient_norm=float(total.norm),
        sample_gradient_norm=float(widest(residual * square.sqrt()).mean()),
        entropy=entropy,
        mutual_information=entropy - given,
        margins=head_margins(features, labels, weight, bias).cpu(),
        samples=len(features),
    )


def meannn_entropy(features: Tensor, *, progress: Progress | None = None) -> float:
    """Entropy of features by MeanNN: D / (N (N - 1)) sum_{i != j} log ||g_i - g_j|| (Faivishevsky, Goldberger, 2008).

    The estimate of the differential entropy is larger by the constant 1 + log V_D, V_D the volume of the unit ball,
    which depends on the dimension alone.  Distances below the rounding error of the features count as that error.

    Args:
        features: (N, D); distances are taken in float64.
        progress: called after each block of rows.

    Returns:
        The entropy in nats, without the constant.

    Raises:
        ValueError: if N < 2.
    """
    n, d = features.shape
    if n < 2:
        raise ValueError(f"the entropy needs at least 2 features; got {n}")
    x = widest(features.detach())
    x = x - x.mean(dim=0)
    square = x.square().sum(dim=1)
    floor = (torch.finfo(features.dtype).eps ** 2 * square.max()).clamp_min(torch.finfo(x.dtype).tiny)
    step = max(1, _BLOCK_ELEMENTS // n)
    total = 0.0
    for i in range(0, n, step):
        rows = slice(i, i + step)
        distance = square[rows].unsqueeze(1) + square - 2.0 * (x[rows] @ x.T)
        logs = distance.clamp_min_(floor).log_()
        logs.diagonal(i).zero_()
        total += 0.5 * float(logs.sum())
        report(progress, "entropy", min(n, i + step), n)
    return d * total / (n * (n - 1))


def conditional_entropy(features: Tensor, labels: Tensor, *, progress: Progress | None = None) -> float:
    """H(g | y) = sum_y p(y) H(g | y), each by MeanNN; a class of one sample has no entropy and is left out.

    Args:
        features: (N, D).
        labels: (N,) class indices.
        progress: called after each block of rows.

    Returns:
        The entropy in nats, without the constant.

    Raises:
        ValueError: if no class has two samples.
    """
    classes, counts = torch.unique(labels, return_counts=True)
    pairs = [(c, n) for c, n in zip(classes.tolist(), counts.tolist(), strict=True) if n > 1]
    if not pairs:
        raise ValueError(
            f"the entropy given the label needs a class with at least 2 samples; got {len(labels)} classes"
        )
    total = sum(n for _, n in pairs)
    parts = [n / total * meannn_entropy(features[labels == c], progress=progress) for c, n in pairs]
    return math.fsum(parts)


@torch.no_grad()
def head_margins(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Signed distance of each feature to the head's nearest decision boundary: min_j (z_y - z_j) / ||w_y - w_j||.

    Args:
        features: (N, D).
        labels: (N,) class indices.
        weight: (C, D).
        bias: (C,) or None.

    Returns:
        (N,), negative where the sample is classified wrongly; infinite where no boundary exists (equal rows of
        the weight).
    """
    features = at_least_float32(features)
    weight = weight.to(features.dtype)
    logits = respond(features, weight, None if bias is None else bias.to(features))
    gaps = logits.gather(1, labels.unsqueeze(1)) - logits
    distances = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")[labels]
    margins = torch.where(gaps == 0, torch.zeros_like(gaps), gaps / distances)
    return margins.scatter(1, labels.unsqueeze(1), torch.inf).amin(dim=1)


def feature_components(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    components: int = 2,
    batches: int | None = None,
    head: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> PrincipalComponents:
    """Find the principal components of the features of a data set, in eval mode.

    Arguments that all measurements share are described in ``pof.flatness``.

    Args:
        components: k, at least 2.

    Returns:
        The components.

    Raises:
        ValueError: if the head is not linear, the loader is empty or ``components`` is out of range.
    """
    _, stored = _features(model, loader, batches, head, seed, progress)
    return principal_components(stored.features, hard_labels(stored.targets), components)


def principal_components(features: Tensor, labels: Tensor, components: int = 2) -> PrincipalComponents:
    """Principal components from the eigenvectors of the covariance, in float64.

    Args:
        features: (N, D).
        labels: (N,) class indices, for the picture.
        components: k, between 2 and D.

    Returns:
        The components, largest variance first.

    Raises:
        ValueError: if ``components`` is out of range.
    """
    if not 2 <= components <= features.shape[1]:
        raise ValueError(
            f"components must be between 2 and the feature dimension {features.shape[1]}; got {components}"
        )
    x = widest(features.detach())
    mean = x.mean(dim=0)
    x = x - mean
    # On the CPU, as MPS has none of its own.
    values, vectors = (found.to(x.device) for found in torch.linalg.eigh((x.T @ x).cpu()))
    top = vectors.flip(1)[:, :components].T
    signs = torch.sign(top.gather(1, top.abs().argmax(dim=1, keepdim=True)))
    top = top * signs
    explained = values.flip(0)[:components].clamp_min(0.0) / values.sum().clamp_min(torch.finfo(x.dtype).tiny)
    return PrincipalComponents(x @ top.T, top, explained, mean, labels.long())


def _features(
    model: nn.Module,
    loader: Iterable[Any],
    batches: int | None,
    head: str | None,
    seed: int,
    progress: Progress | None,
) -> tuple[SplitModel, Stored]:
    parts = split(model, head)
    with measuring(model, seed) as device:
        stored = store(parts.features_and_logits, read(loader, batches, device, "features", progress))
    targets, features, logits = without_ignored(stored.targets, stored.features, stored.logits)
    return parts, Stored(features, logits, targets, (len(targets),))
