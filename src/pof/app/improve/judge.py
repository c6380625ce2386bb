"""Judging networks by their logits on validation data: one part chooses, another confirms.

Every network is judged by its NLL after its own temperature, fitted on the part that chooses: judged before it, the
wrong one can win.  The confirmation compares the chosen network with the incoming one on samples that chose nothing:
exact McNemar for the error, paired bootstrap intervals for NLL and Brier score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pof._support.batches import call, to_device, unpack
from pof._support.modules import device_of, evaluating
from pof._support.precision import at_least_float32, widest
from pof._support.random import derive_seed, seeded
from pof.app.comparison import Interval, mcnemar, paired_intervals
from pof.combine import scaled_nll
from pof.flatness import fit_temperature
from pof.head.reading import Reading
from pof.perturbation.linear import line_search
from pof.perturbation.loss import CrossEntropy
from pof.training.evaluation import counted
from pof.training.stream import same_draws

Take = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
FITTED = 0.005
"""Training error below which a network fits its data as well as can be."""
UNFITTED = 0.15
"""Training loss, as a share of that of guessing, above which it does not: SAM's radius from the data is 0 there."""


@dataclass(frozen=True)
class Figures:
    """A network on the samples that choose."""

    error: float
    nll: float
    scaled_nll: float
    """After the network's own temperature."""
    temperature: float | None

    @property
    def finite(self) -> bool:
        """Whether the network gives numbers at all."""
        return self.nll < float("inf")


@dataclass(frozen=True)
class TrainingFit:
    """How well a network fits its training data."""

    error: float
    fits: bool
    """Whether it does at all."""


@torch.no_grad()
def fit_of(network: nn.Module, train_loader: Iterable[Any], head: str | None = None) -> TrainingFit:
    """Measure it in one pass over the data, whose targets may be soft (mixup): their largest entry is the class then.

    The loss of :data:`UNFITTED` is a share of the way from the entropy of soft targets to guessing.
    """
    logits, targets = _read(network, train_loader, head, _counted_or_soft)
    classes = targets.argmax(dim=1) if targets.is_floating_point() else targets
    loss = F.cross_entropy(widest(logits), widest(targets) if targets.is_floating_point() else targets)
    fits = bool(loss <= CrossEntropy().level(UNFITTED, targets, logits))
    return TrainingFit(float(widest(logits.argmax(dim=1) != classes).mean()), fits)


@dataclass(frozen=True)
class Confirmation:
    """The chosen network against the incoming one, on samples that chose nothing."""

    n: int
    fixed: int
    """Samples that only the chosen network classifies correctly."""
    broken: int
    """Samples that only the incoming network classifies correctly."""
    p_error: float
    """Of the exact two-sided McNemar test; 1 where the two never disagree."""
    nll: Interval
    """Difference of the NLL after each one's temperature, chosen minus incoming."""
    brier: Interval

    @property
    def within_chance(self) -> bool:
        """Whether it makes more errors by less than one standard deviation of the difference, sqrt(fixed + broken)."""
        more = self.broken - self.fixed
        return more <= 0 or more**2 < self.fixed + self.broken

    @property
    def better(self) -> bool:
        """No more errors and a better likelihood; or one better beyond its interval, and errors within chance."""
        if self.fixed >= self.broken:
            return self.nll[1] < 0
        return self.nll[2] < 0 and self.within_chance


def halves(targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Split N samples, class by class, into those that choose and those that confirm: two index tensors."""
    order = torch.randperm(len(targets), generator=seeded(derive_seed(seed, "choose and confirm")))
    by_class = order[targets.cpu()[order].argsort(stable=True)]
    return by_class[0::2].sort().values, by_class[1::2].sort().values


@torch.no_grad()
def logits_on(
    network: nn.Module,
    batches: Iterable[Any],
    expected: Tensor | None = None,
    head: str | None = None,
    hear: Callable[[Any], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and targets (N,) on the CPU, of samples that count and as :func:`pof.evaluate` reads them.

    They are in the order of the loader, which must be the same each time; ``hear`` is called with each mini-batch.
    """
    logits, targets = _read(network, batches, head, counted, hear)
    if expected is not None and not torch.equal(expected, targets):
        raise ValueError("val_loader gives its samples in another order each time: give it without shuffling")
    return logits, targets


def _read(
    network: nn.Module,
    batches: Iterable[Any],
    head: str | None,
    take: Take,
    hear: Callable[[Any], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """What is taken of the logits and targets of each batch, on the CPU."""
    device = device_of(network)
    found, reading = [], Reading(network, head)
    with evaluating(network), same_draws(batches, device) as drawn:
        for batch in drawn:
            if hear is not None:
                hear(batch)
            inputs, targets = unpack(to_device(batch, device))
            logits, targets = take(at_least_float32(reading(call(network, inputs), inputs)), targets)
            found.append((logits.cpu(), targets.cpu()))
    if not sum(len(targets) for _, targets in found):
        name, what = ("train_loader", "training") if take is _counted_or_soft else ("val_loader", "validation")
        raise ValueError(f"improve needs {what} data: {name} gave no batch with a label (or not a second time)")
    soft = any(targets.is_floating_point() for _, targets in found)
    return torch.cat([z for z, _ in found]), torch.cat([_rows(y, z.shape[1]) if soft else y for z, y in found])


def _rows(targets: Tensor, classes: int) -> Tensor:
    """Targets as probabilities (N, C), beside those of other mini-batches: some are mixed, and some are not."""
    return targets if targets.is_floating_point() else F.one_hot(targets, classes).float()


def _counted_or_soft(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    soft = isinstance(targets, Tensor) and targets.is_floating_point()
    return (logits, targets) if soft else counted(logits, targets)


def figures(logits: Tensor, targets: Tensor) -> Figures:
    """Judge logits (N, C)."""
    if not bool(torch.isfinite(logits).all()):
        return Figures(1.0, float("inf"), float("inf"), None)
    temperature = _temperature(logits, targets)
    wrong = widest(logits.argmax(dim=1) != targets).mean()
    nll = float(F.cross_entropy(widest(logits), targets))
    return Figures(float(wrong), nll, scaled_nll(logits, targets, temperature), temperature)


def _temperature(logits: Tensor, targets: Tensor) -> float | None:
    """A network's own temperature.

    Where it makes no error in N samples none is best but 0, at which the first error elsewhere would cost infinitely
    much: it is fitted as if one of N + 1 samples could be of any class (Laplace's rule).  None where the logits are no
    better than guessing.
    """
    found = fit_temperature(logits, targets)
    if found is not None or bool((logits.argmax(dim=1) != targets).any()):
        return found
    z = widest(logits)
    inverse = float(line_search(torch.zeros_like(z), -z, targets, 1.0 / (len(targets) + 1)).radius)
    return 1.0 / inverse if inverse > 0 else None


def confirm(
    before: Tensor, after: Tensor, targets: Tensor, temperatures: tuple[float | None, float | None], seed: int
) -> Confirmation:
    """Compare two networks by their logits (N, C) on the samples that confirm."""
    found = mcnemar(*(logits.argmax(dim=1) == targets for logits in (before, after)))
    scaled = [widest(z) / (t or 1.0) for z, t in zip((before, after), temperatures, strict=True)]
    losses = [F.cross_entropy(z, targets, reduction="none") for z in scaled]
    truth = widest(F.one_hot(targets, before.shape[1]))
    scores = [(torch.softmax(widest(z), dim=1) - truth).square().sum(dim=1) for z in (before, after)]
    intervals = paired_intervals([losses[1] - losses[0], scores[1] - scores[0]], seed)
    return Confirmation(len(targets), found.fixed, found.broken, found.p, *intervals)
