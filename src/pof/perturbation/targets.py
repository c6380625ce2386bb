"""Targets of the cross-entropy, in one form for all of them.

A distribution P (N, C) with rows that sum to 1, and sample weights w (N,):

    CE = sum_n w_n (logsumexp z_n - P_n . z_n),

which is ``torch.nn.functional.cross_entropy`` for hard labels, label smoothing, class weights and soft targets alike.
Hard labels stay indices: a gather does what a product with P would do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pof._support.batches import class_targets

IGNORED = -100
"""The class index of a sample without part in the cross-entropy, torch's ``ignore_index``."""


@dataclass(frozen=True, eq=False)
class Targets(ABC):
    """What a mini-batch is to be classified as."""

    unequal: Tensor | None
    """(N,), w; None where every sample weighs 1 / N."""

    @abstractmethod
    def distribution(self, like: Tensor) -> Tensor:
        """The probabilities P (N, C), in the dtype of ``like`` (N, C)."""

    @abstractmethod
    def expectation(self, values: Tensor) -> Tensor:
        """The mean over the targets, sum_c P_nc v_nc (N, 1), of values (N, C)."""

    @abstractmethod
    def lead(self, response: Tensor, moved: Tensor) -> Tensor:
        """(N, C): nowhere negative if and only if no class responds less than the targets; ``moved`` is R - P . R."""

    @abstractmethod
    def excess(self, probabilities: Tensor) -> Tensor:
        """The difference p - P (N, C), instead of p."""

    def weights(self, like: Tensor) -> Tensor:
        """The sample weights w (N,)."""
        return like.new_full((len(like),), 1.0 / len(like)) if self.unequal is None else self.unequal

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the samples, sum_n w_n v_n, of values (N,)."""
        return values.mean() if self.unequal is None else values @ self.unequal

    def weigh(self, values: Tensor) -> Tensor:
        """Values (N, C) times w_n."""
        return values / values.shape[0] if self.unequal is None else values * self.unequal.unsqueeze(1)


@dataclass(frozen=True, eq=False)
class Labels(Targets):
    """Class indices."""

    classes: Tensor
    """(N,)."""
    index: Tensor
    """The same as a column (N, 1)."""

    def distribution(self, like: Tensor) -> Tensor:
        """As one-hot rows."""
        return torch.zeros_like(like).scatter_(1, self.index, 1.0)

    def expectation(self, values: Tensor) -> Tensor:
        """The entries of the labels, exactly."""
        return values.gather(1, self.index)

    def lead(self, response: Tensor, moved: Tensor) -> Tensor:
        """The differences themselves, whose signs are exact."""
        return moved

    def excess(self, probabilities: Tensor) -> Tensor:
        """The label's entry is minus the sum of the others: p - 1 would lose the digits of confident samples."""
        others = probabilities.scatter_(1, self.index, 0.0)
        return others.scatter_(1, self.index, others.sum(dim=1, keepdim=True).neg_())


@dataclass(frozen=True, eq=False)
class Soft(Targets):
    """Probabilities: soft targets, or smoothed labels."""

    probabilities: Tensor
    """(N, C), rows summing to 1."""

    def distribution(self, like: Tensor) -> Tensor:
        """The probabilities themselves."""
        return self.probabilities

    def expectation(self, values: Tensor) -> Tensor:
        """The sum."""
        return (self.probabilities * values).sum(dim=1, keepdim=True)

    def lead(self, response: Tensor, moved: Tensor) -> Tensor:
        """The mean over the targets is rounded; the largest response of a class that has a share is not."""
        shares = response.masked_fill(self.probabilities == 0, -torch.inf)
        return response - shares.amax(dim=1, keepdim=True)

    def excess(self, probabilities: Tensor) -> Tensor:
        """Rows sum to zero: as for labels, the largest entry gets its digits from the others."""
        difference = probabilities.sub_(self.probabilities)
        return difference.sub_(self.probabilities * difference.sum(dim=1, keepdim=True))


def encode_targets(
    targets: Tensor,
    like: Tensor,
    label_smoothing: float = 0.0,
    *,
    class_weights: Tensor | None = None,
    check: bool = True,
) -> Targets:
    """Take any targets of ``F.cross_entropy``, (N,) or (N, C).

    With class indices the mean is over the class weights (C,) of the samples, with probabilities over N, as there.
    Without ``check``, which reads values, an index that is out of range or to be ignored fails where it is used.

    Returns:
        The targets, in dtype and on the device of the logits ``like`` (N, C).

    Raises:
        ValueError: if the shapes do not fit, a class index is out of range (checked where that needs no host
            synchronisation), or ``label_smoothing`` is outside [0, 1].
    """
    n, c = like.shape
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1]; got {label_smoothing}")
    if n == 0:
        raise ValueError("the mini-batch is empty: give it at least one sample")
    targets = class_targets(targets, c)
    hard = not targets.is_floating_point()
    check_targets(targets, n, c, class_weights, values=check)
    if hard:
        looks = check or class_weights is not None or targets.device.type != "cpu"
        counted = (targets != IGNORED).to(like.dtype) if looks and may_ignore(targets) else None
        targets = targets if counted is None else targets.clamp_min(0)
        labels = targets.unsqueeze(1)
        if not label_smoothing:
            of_samples = counted
            if class_weights is not None:
                weights = class_weights.to(like)[targets]
                of_samples = weights if counted is None else weights * counted
            return Labels(None if of_samples is None else _shares(of_samples), targets, labels)
        mass = torch.zeros_like(like).scatter_(1, labels, 1.0)
    else:
        mass = targets.to(like.dtype)
    if label_smoothing:
        mass = mass * (1.0 - label_smoothing) + label_smoothing / c
    class_weights = None if class_weights is None else class_weights.to(like)
    mass = mass if class_weights is None else mass * class_weights
    rows, total = mass.sum(dim=1), like.new_tensor(float(n))
    if hard and (counted is not None or class_weights is not None):
        ones = torch.ones_like(rows) if counted is None else counted
        total = (ones if class_weights is None else ones * class_weights[targets]).sum()
        rows = rows * ones
    tiny = torch.finfo(like.dtype).tiny
    return Soft(rows / total.clamp_min(tiny), mass / mass.sum(dim=1).clamp_min(tiny).unsqueeze(1))


def may_ignore(targets: Tensor) -> bool:
    """Whether a class index may be one to be ignored; an accelerator is not asked, which would synchronise the host."""
    if targets.device.type != "cpu":
        return True
    return targets.is_signed() and targets.numel() > 0 and int(targets.min()) < 0


def _shares(weights: Tensor) -> Tensor:
    """Weights (N,) as shares of their sum; all 0 where none counts."""
    return weights / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)


def check_targets(targets: Tensor, n: int, c: int, class_weights: Tensor | None, *, values: bool = True) -> None:
    """Refuse targets, or class weights, that do not fit logits (n, c); ``values`` are read where that is free."""
    if class_weights is not None and class_weights.shape != (c,):
        raise ValueError(f"class_weights must be ({c},), one per class; got shape {tuple(class_weights.shape)}")
    if targets.is_floating_point():
        if targets.shape != (n, c):
            raise ValueError(f"soft targets must have the logits' shape {(n, c)}; got {tuple(targets.shape)}")
        return
    if targets.shape != (n,):
        raise ValueError(
            f"targets must be ({n},) class indices or ({n}, {c}) probabilities; got {tuple(targets.shape)}"
        )
    if values and targets.device.type == "cpu":
        # -100, to be ignored, is as good as 0.
        low, high = (int(end) for end in torch.where(targets == IGNORED, 0, targets).aminmax())
        if low < 0 or high >= c:
            raise ValueError(f"class indices must be in [0, {c - 1}]; got values from {low} to {high}")


def cross_entropy(logits: Tensor, targets: Targets) -> Tensor:
    """Mean cross-entropy sum_n w_n (logsumexp z_n - P_n . z_n) of logits (N, C)."""
    if isinstance(targets, Labels) and targets.unequal is None:
        return F.cross_entropy(logits, targets.classes)
    return targets.mean(torch.logsumexp(logits - targets.expectation(logits), dim=1))


def logit_gradient(logits: Tensor, targets: Targets) -> Tensor:
    """Gradient (N, C) of the mean cross-entropy with respect to the logits (N, C): w_n (p_nc - P_nc)."""
    return targets.weigh(targets.excess(torch.softmax(logits, dim=1)))
