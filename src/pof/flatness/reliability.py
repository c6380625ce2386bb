"""Whether a classifier's confidence is right: calibration error, likelihood, Brier score, reliability diagram.

Expected calibration error over bins of equal width and temperature scaling as in Guo et al., ICML 2017.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pof._support.calibration import confidence_bins, expected_calibration_error
from pof._support.checks import MOST_POINTS, finite, whole_number
from pof._support.precision import at_least_float32, widest
from pof.flatness import plots
from pof.flatness._measure import Progress, measuring, outputs_of, read, without_ignored
from pof.perturbation.linear import line_search

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Calibration:
    """Calibration of a classifier on a data set; means are over samples, in float64."""

    ece: float
    """Expected calibration error, sum_b share_b |accuracy_b - confidence_b|, in [0, 1]."""
    nll: float
    """Mean negative log-likelihood, in nats."""
    brier: float
    """Mean of sum_c (p_c - y_c)^2, in [0, 2]."""
    temperature: float | None
    """T that minimises the likelihood loss of softmax(z / T) on the validation part; None without a validation
    part, or where all of it is classified correctly, so that no finite T does."""
    scaled_ece: float | None
    """Expected calibration error with that temperature; None without one."""
    confidence: Tensor
    """(bins,) mean confidence of the samples in each bin, NaN where empty."""
    accuracy: Tensor
    """(bins,) share of correct predictions, NaN where empty."""
    share: Tensor
    """(bins,) share of the samples."""
    correct: Tensor
    """(N,) bool: which samples are classified correctly, in the loader's order."""
    losses: Tensor
    """(N,) float64: negative log-likelihood of each sample, in nats."""
    samples: int
    """N."""

    def plot(self, ax: Axes | None = None, *, label: str = "", series: int = 0) -> Axes:
        """Draw the reliability diagram; arguments as in ``pof.flatness.plots.reliability``."""
        legend = f"{label} ECE {self.ece:.2%}".strip()
        return plots.reliability(ax, self.confidence, self.accuracy, self.share, label=legend, series=series)


def calibration(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    validation_loader: Iterable[Any] | None = None,
    bins: int = 15,
    head: str | None = None,
    batches: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Calibration:
    """Measure the calibration of a classifier, in eval mode.

    Arguments that all measurements share are described in ``pof.flatness``.

    Args:
        model: gives logits (N, C), also inside an object with ``.logits``; unchanged afterwards.
        loader: batches to measure on, targets (N,) class indices, -100 to be left out.
        validation_loader: other batches, to fit the temperature on.
        bins: of equal width on (0, 1], closed on the right.

    Returns:
        The calibration.

    Raises:
        ValueError: if a loader is empty or the targets are not class indices.
    """
    with measuring(model, seed, head) as device:
        logits, labels = _outputs(model, read(loader, batches, device, "calibration", progress))
        temperature = None
        if validation_loader is not None:
            held = _outputs(model, read(validation_loader, batches, device, "validation", progress))
            temperature = fit_temperature(*held)
    return calibration_of(logits, labels, temperature=temperature, bins=bins)


def calibration_of(logits: Tensor, labels: Tensor, *, temperature: float | None = None, bins: int = 15) -> Calibration:
    """Compute the calibration from logits.

    Args:
        logits: (N, C).
        labels: (N,) class indices.
        temperature: from :func:`fit_temperature` on other data, or None.
        bins: of equal width on (0, 1], closed on the right.

    Returns:
        The calibration.

    Raises:
        ValueError: if the labels are not class indices of the logits, or ``bins`` or the temperature is not positive.
    """
    _check(logits, labels)
    whole_number("bins", bins, 1, MOST_POINTS)
    if temperature is not None:
        finite("temperature", temperature, above=0)
    z = widest(logits.detach())
    p = torch.softmax(z, dim=1)
    ece, confidence, accuracy, share = _reliability(p, labels, bins)
    scaled = None if temperature is None else _reliability(torch.softmax(z / temperature, dim=1), labels, bins)[0]
    losses = F.cross_entropy(z, labels, reduction="none")
    return Calibration(
        ece=ece,
        nll=float(losses.mean()),
        brier=float((p - F.one_hot(labels, z.shape[1])).square().sum(dim=1).mean()),
        temperature=temperature,
        scaled_ece=scaled,
        confidence=confidence.cpu(),
        accuracy=accuracy.cpu(),
        share=share.cpu(),
        correct=(z.argmax(dim=1) == labels).cpu(),
        losses=losses.cpu(),
        samples=len(labels),
    )


def fit_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """Fit the temperature T > 0 that minimises the cross-entropy of softmax(z / T).

    In 1 / T the loss is convex, and it is PoF's line search: along the response -z, from logits 0.

    Args:
        logits: (N, C) of a validation part.
        labels: (N,) class indices.

    Returns:
        T; None where no finite positive T minimises, because every sample is classified correctly (T -> 0) or
        the logits are no better than none (T -> infinity).

    Raises:
        ValueError: if the labels are not class indices of the logits.
    """
    _check(logits, labels)
    if not bool(logits.isfinite().all()):
        raise ValueError("logits must be finite; got NaN or infinite ones")
    z = widest(logits.detach())
    found = line_search(torch.zeros_like(z), -z, labels)
    inverse = float(found.radius)
    return 1.0 / inverse if bool(found.bounded) and inverse > 0 else None


def _reliability(p: Tensor, labels: Tensor, bins: int) -> tuple[float, Tensor, Tensor, Tensor]:
    # Calibration error, then confidence, accuracy and share of each bin, (bins,).
    confidence, prediction = p.max(dim=1)
    correct = (prediction == labels).to(p.dtype)
    index = confidence_bins(confidence, bins)
    count = torch.bincount(index, minlength=bins).to(p.dtype)
    summed = p.new_zeros(2, bins).index_add_(1, index, torch.stack([confidence, correct]))
    ece = float(expected_calibration_error(confidence, correct, bins))
    return ece, summed[0] / count, summed[1] / count, count / len(labels)


@torch.no_grad()
def _outputs(model: nn.Module, data: Iterable[tuple[Any, Tensor]]) -> tuple[Tensor, Tensor]:
    outputs = [(at_least_float32(outputs_of(model, inputs)), targets) for inputs, targets in data]
    labels, logits = without_ignored(torch.cat([y for _, y in outputs]), torch.cat([z for z, _ in outputs]))
    return logits, labels


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.is_floating_point() or labels.shape != logits.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"calibration needs logits (N, C) and class indices (N,), N > 0; got {tuple(logits.shape)} and"
            f" {tuple(labels.shape)} of {labels.dtype}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(f"class indices must be in [0, {logits.shape[1] - 1}]; got values from {low} to {high}")
