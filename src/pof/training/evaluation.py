"""Figures of a network on a data set: of a classifier error, negative log-likelihood, calibration error.

Means are over samples, not over mini-batches, in float64.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pof._support.batches import check_inputs, class_targets, joined, to_device, unpack
from pof._support.calibration import expected_calibration_error
from pof._support.checks import gives_batches
from pof._support.modules import check_values, device_of, evaluating
from pof._support.precision import at_least_float32, autocast, widest
from pof.head.calls import Untouched
from pof.head.output import End
from pof.head.reading import Reading
from pof.methods.loss import AskedLoss, CrossEntropy, Loss, chosen_loss
from pof.perturbation.loss import ignored_class, weight_of
from pof.perturbation.targets import IGNORED
from pof.training.tasks import AskedMetric, TaskMetrics, task_metrics


@dataclass(frozen=True)
class Metrics:
    """Figures over n samples."""

    error: float
    """Share of wrong predictions, in [0, 1]."""
    nll: float
    """Mean negative log-likelihood, in nats."""
    ece: float
    """Expected calibration error, 15 bins of equal width (Guo et al., ICML 2017), in [0, 1]."""
    n: int
    """Number of samples."""
    num_classes: int
    """C; chance is an error of 1 - 1/C where the classes are balanced."""

    def named(self) -> dict[str, Any]:
        """All figures by name, for logs and files."""
        return dict(vars(self))

    def rank(self) -> tuple[float, float]:
        """What is compared, smaller is better: errors, among equals the likelihood, where NaN loses."""
        return self.error, self.nll if self.nll == self.nll else math.inf

    @property
    def metric(self) -> str:
        """The figure that an epoch is chosen by."""
        return "error"

    @property
    def value(self) -> float:
        """Of that figure."""
        return self.error

    @property
    def tie_breaker(self) -> str:
        """What decides among equals."""
        return "NLL"

    @property
    def higher_is_better(self) -> bool:
        """Not of an error."""
        return False

    def worded(self, value: float) -> str:
        """A value of that figure in words."""
        return f"{100 * value:.2f} %"


@overload
def evaluate(
    model: nn.Module, loader: Iterable[Any], *, head: str | None = None, precision: torch.dtype | None = None
) -> Metrics: ...


@overload
def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    loss: AskedLoss = None,
    metric: AskedMetric = None,
    head: str | None = None,
    precision: torch.dtype | None = None,
) -> Metrics | TaskMetrics: ...


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    loss: AskedLoss = None,
    metric: AskedMetric = None,
    head: str | None = None,
    precision: torch.dtype | None = None,
) -> Metrics | TaskMetrics:
    """Evaluate a network, in eval mode; the modes of its modules are put back.

    Args:
        model: any classifier; gives logits (N, C), also inside an object with ``.logits``, or probabilities (N, C),
            whose logarithm is then taken.  Of several tensors in a tuple or mapping, that of its head counts.
        loader: yields ``(inputs, targets)`` or dicts with ``labels``; targets are (N,) class indices,
            -100 to be left out, or what another loss takes.
        loss: ``"bce"`` (one logit, several labels), ``"mse"``, ``"ordinal"``, or a function of outputs (N, C) and
            targets; None is the cross-entropy.
        metric: another figure: ``"loss"``, one of the loss's own (``"rmse"``, ``"mae"``, ``"r2"`` of ``"mse"``,
            ``"error"`` of ``"bce"``, ``"mae"``, ``"error"`` of ``"ordinal"``), or a function of all outputs and
            targets.
        head: qualified name of the head, for outputs with several tensors; found by :func:`pof.find_head` if None.
        precision: dtype of autocast, or None for none.

    Returns:
        The figures over all samples: :class:`Metrics` of a classifier, :class:`TaskMetrics` with another loss or
        metric.

    Raises:
        ValueError: if the loader is empty, an input is NaN, targets do not fit the loss, the network ends in a sigmoid
            or softmax of another task, or it is not clear which tensor of the output is meant.
    """
    found = measured(model, loader, loss=chosen_loss(loss), metric=metric, head=head, precision=precision)
    warn_of_unusable(found)
    return found.metrics


def warn_of_unusable(found: Measured) -> None:
    """Warn of samples whose logits are not finite."""
    if found.unusable:
        warnings.warn(
            f"the logits of {found.unusable} of {found.metrics.n} samples are not finite: these figures mean nothing",
            stacklevel=3,
        )


@dataclass(frozen=True)
class Measured:
    """Figures, and how many samples had logits that are no numbers."""

    metrics: Metrics | TaskMetrics
    unusable: int


def measured(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    loss: Loss | None = None,
    metric: AskedMetric = None,
    head: str | None = None,
    precision: torch.dtype | None = None,
) -> Measured:
    """As :func:`evaluate`, without a warning."""
    if metric is None and (loss is None or isinstance(loss, CrossEntropy)):
        return figures_of(judged(model, loader, head=head, precision=precision))
    return _of_task(model, loader, CrossEntropy() if loss is None else loss, metric, head, precision)


@dataclass(frozen=True)
class Judged:
    """What a classifier says of each of n samples, in their order, those with the label -100 left out."""

    index: Tensor
    """(n,) number of the sample in the loader."""
    target: Tensor
    """(n,) class index."""
    predicted: Tensor
    """(n,) class index."""
    confidence: Tensor
    """(n,) float64, probability of the predicted class; NaN where the logits are no numbers."""
    loss: Tensor
    """(n,) float64, negative log-likelihood, in nats."""
    unusable: int
    """Number of samples whose logits are not finite."""
    num_classes: int
    """C."""

    @property
    def wrong(self) -> Tensor:
        """(n,) bool, whether the prediction is wrong; the largest of NaN is a class by chance, and wrong."""
        return (self.predicted != self.target) | self.confidence.isnan()


@torch.no_grad()
def judged(
    model: nn.Module, loader: Iterable[Any], *, head: str | None = None, precision: torch.dtype | None = None
) -> Judged:
    """Judge each sample; arguments and errors as in :func:`evaluate`."""
    parts: list[tuple[Tensor, ...]] = []
    unusable, given = 0, 0
    for logits, targets in outputs(model, loader, head=head, precision=precision):
        logits, counting = counted(logits, targets)
        rows = (targets != IGNORED if targets.ndim == 1 else torch.ones(len(targets))).nonzero()[:, 0] + given
        given, targets = given + len(targets), counting
        unusable += int((~logits.isfinite()).any(dim=1).sum())
        losses = widest(F.cross_entropy(logits, targets, reduction="none"))
        confidence, predicted = torch.softmax(logits, dim=1).max(dim=1)
        parts.append((rows.to(targets.device), targets, predicted, widest(confidence), losses))
    if not parts:
        raise ValueError("nothing to evaluate: the loader gave no batch")
    if not sum(len(part[0]) for part in parts):
        raise ValueError(f"nothing to evaluate: all {given} samples have the label {IGNORED}, which is to be ignored")
    index, target, predicted, confidence, loss = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return Judged(index, target, predicted, confidence, loss, unusable, int(logits.shape[1]))


def figures_of(found: Judged) -> Measured:
    """Figures over all samples."""
    metrics = Metrics(
        error=float(widest(found.wrong).mean()),
        nll=float(found.loss.mean()),
        ece=float(expected_calibration_error(found.confidence, ~found.wrong)),
        n=len(found.target),
        num_classes=found.num_classes,
    )
    return Measured(metrics, found.unusable)


@torch.no_grad()
def _of_task(
    model: nn.Module,
    loader: Iterable[Any],
    loss: Loss,
    metric: AskedMetric,
    head: str | None,
    precision: torch.dtype | None,
) -> Measured:
    """Figures of any loss: the mean over all samples, and what all outputs and targets tell together."""
    total, weight, parts, all_targets = 0.0, 0.0, [], []
    for found, targets in outputs(model, loader, head=head, precision=precision, end=loss.end):
        values = found.unsqueeze(1) if found.ndim == 1 else found
        counts = float(weight_of(loss, targets))
        total = total + counts * float(loss.to(values.device)(values, targets)) if counts else total
        weight += counts
        parts.append(values.cpu())
        all_targets.append(to_device(targets, "cpu"))
    if not weight:
        raise ValueError("nothing to evaluate: the loader gave no batch with a target that counts")
    values, targets = torch.cat(parts), joined(all_targets, [len(part) for part in parts])
    if isinstance(loss, CrossEntropy):
        values, targets = counted(values, targets)
    elif (ignored := ignored_class(loss)) is not None and targets.ndim == 1 and not targets.is_floating_point():
        part = targets != ignored
        values, targets = values[part], targets[part]
    figures = task_metrics(loss, total / weight, values, targets, metric)
    return Measured(figures, int((~values.isfinite()).any(dim=1).sum()))


@torch.no_grad()
def outputs(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    head: str | None = None,
    precision: torch.dtype | None = None,
    end: End | None = "softmax",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Run a network in eval mode: outputs, at least float32, and targets of each mini-batch, on the model's device.

    Arguments and errors as in :func:`evaluate`; ``end`` is as :func:`pof.split` takes it.
    """
    gives_batches("loader", loader)
    check_values(model)
    device = device_of(model)
    reading, untouched = Reading(model, head, end), Untouched()
    with evaluating(model):
        for batch in loader:
            inputs, targets = unpack(to_device(batch, device))
            check_inputs(inputs)
            with autocast(device, precision):
                found = at_least_float32(reading(untouched(model, inputs), inputs, targets))
            yield found, targets


def counted(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Those of logits (N, C) and class indices, or one-hot rows, that count: not to be ignored."""
    if logits.ndim > 2:
        column = (
            "; scores of classes it returns without the last axis, by .squeeze(-1)" if logits.shape[2:] == (1,) else ""
        )
        raise ValueError(
            f"the network gives {tuple(logits.shape)}, several predictions for each sample (of pixels or tokens): all"
            f" methods and measures here are for one per sample, logits (N, C){column}"
        )
    if logits.ndim == 2:
        targets = class_targets(targets, logits.shape[1])
    if logits.ndim != 2 or targets.is_floating_point() or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"evaluate needs logits (N, C) and class indices (N,); got {tuple(logits.shape)} and"
            f" {tuple(targets.shape)} of {targets.dtype} (for other tasks give the loss, such as bce or mse;"
            " pof.improve has none: it compares classifiers)"
        )
    if logits.shape[1] == 1:
        raise ValueError(
            "the network returns one logit, as for a binary loss, and evaluate needs one per class: give loss='bce'"
        )
    part = targets != IGNORED
    logits, targets = logits[part], targets[part]
    low, high = (int(targets.min()), int(targets.max())) if len(targets) else (0, 0)
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(
            f"labels must be in [0, {logits.shape[1] - 1}] for this model's {logits.shape[1]} classes;"
            f" got values from {low} to {high}"
        )
    return logits, targets
