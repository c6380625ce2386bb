"""The losses of other tasks than one class per sample: independent labels, numbers, ordered classes, and any other.

Each is the mean over the samples of a mini-batch, and knows the loss of guessing, by which head ascent and SAM's
radius from the data measure a rise.  Targets that would be broadcast against the outputs are refused.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pof._support.batches import refuse_several, rows_of, samples_of, tensors_of
from pof._support.modules import version_of
from pof._support.precision import at_least_float32, widest, without_autocast
from pof._support.random import preserved
from pof.perturbation.broadcasting import without_broadcasting
from pof.perturbation.loss import CrossEntropy, Loss, LossFunction, unwrapped, weight_of


class BinaryCrossEntropy(Loss):
    """The mean over samples and outputs of the cross-entropy of independent labels: one logit, or several labels."""

    end = "sigmoid"

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            outputs: (N, C) logits.
            targets: (N, C) in [0, 1], integers or floating point; also (N,) for one logit.

        Returns:
            Scalar; NaN on an accelerator, where values are not read, for targets out of range.

        Raises:
            ValueError: if the shapes do not fit, or on a CPU a target is out of range.
        """
        targets = as_outputs(outputs, targets, "bce")
        with without_autocast(outputs.device):
            loss = F.binary_cross_entropy_with_logits(outputs, targets)
        return _in_range(loss, targets, (targets >= 0) & (targets <= 1), "bce needs targets in [0, 1]")

    def level(self, share: float, targets: Tensor, like: Tensor) -> Tensor | float:
        """From the entropy of the targets, 0 of hard ones, to log 2, the loss of logits that are all 0."""
        targets = as_outputs(like.new_empty(samples_of(targets), like.shape[-1]), targets, "bce")
        least: Tensor = (torch.special.entr(targets) + torch.special.entr(1 - targets)).mean()
        return least + share * (math.log(2) - least)


class SquaredError(Loss):
    """The mean over samples and outputs of the squared error: regression."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            outputs: (N, C).
            targets: (N, C) in the same units; also (N,) for one output.

        Returns:
            Scalar.

        Raises:
            ValueError: if the shapes do not fit, or on a CPU a target is NaN or infinite.
        """
        targets = as_outputs(outputs, targets, "mse")
        with without_autocast(outputs.device):
            loss = F.mse_loss(outputs, targets)
        return _in_range(loss, targets, targets.isfinite(), "mse needs finite targets")

    def level(self, share: float, targets: Tensor, like: Tensor) -> Tensor | float:
        """From 0 to the variance of the mini-batch's targets, the loss of their mean: a share is 1 - R^2."""
        targets = as_outputs(like.new_empty(samples_of(targets), like.shape[-1]), targets, "mse")
        return share * targets.var(dim=0, correction=0).mean()


class Ordinal(Loss):
    """Ordered classes by K binary questions "is the class above k?" (Niu et al., CVPR 2016; Cao et al., 2020).

    mean_n sum_{k < K} BCE(z_nk, [y_n > k]), for K + 1 classes; the class predicted is the number of positive logits.
    With one weight vector shared by all logits of the head it is the loss of CORAL (arXiv 1901.07884, Eq. 4 with equal
    importance); an ordinary head learns K of them.
    """

    end = "sigmoid"

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            outputs: (N, K) logits.
            targets: (N,) class indices from 0 to K.

        Returns:
            Scalar; NaN on an accelerator, where values are not read, for targets out of range.

        Raises:
            ValueError: if the shapes do not fit, or on a CPU a target is out of range.
        """
        refuse_several(targets, "ordinal")
        classes = outputs.shape[1]
        if targets.shape != outputs.shape[:1] or targets.is_floating_point():
            raise ValueError(
                f"ordinal needs class indices ({len(outputs)},), integers from 0 to {classes} for {classes} outputs;"
                f" got {tuple(targets.shape)} of {targets.dtype}"
            )
        above = (targets.unsqueeze(1) > torch.arange(classes, device=targets.device)).to(outputs.dtype)
        with without_autocast(outputs.device):
            loss = classes * F.binary_cross_entropy_with_logits(outputs, above)
        valid = (targets >= 0) & (targets <= classes)
        return _in_range(loss, targets, valid, f"ordinal with {classes} outputs needs classes from 0 to {classes}")

    def level(self, share: float, targets: Tensor, like: Tensor) -> Tensor | float:
        """From 0 to K log 2, the loss of logits that are all 0."""
        return share * math.log(2) * like.shape[-1]


class Custom(Loss):
    """A loss of the user's own, ``function(outputs, targets)``: the scalar mean, or one value per sample.

    Args:
        function: takes the network's outputs (N, C) and whatever the targets are.

    Raises:
        ValueError: if it is a loss of torch that sums.
    """

    def __init__(self, function: LossFunction) -> None:
        super().__init__()
        inner, options = unwrapped(function)
        if getattr(inner, "reduction", options.get("reduction")) == "sum":
            raise ValueError("the loss sums over the mini-batch (reduction='sum'): a loss is a mean, reduction='mean'")
        self.function = function
        self._checked = self._guessed = self._compared = False

    def settings(self) -> Any:
        """What a resumed run must find unchanged: the function alone."""
        from pof._support.described import described

        return described(self.function)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            outputs: (N, C).
            targets: whatever the function takes.

        Returns:
            Scalar; of values (N,) their mean, of a cross-entropy with ``reduction="none"`` as its weights say.  0 where
            no target counts, with gradients of 0.

        Raises:
            ValueError: if the function returns something else, writes into what it is given, or would broadcast targets
                (N,) against outputs (N, 1).
        """
        given = [] if self._checked else [(tensor, version_of(tensor)) for tensor in (outputs, *tensors_of(targets))]
        compute = self.function if self._checked else partial(without_broadcasting, self.function)
        loss = compute(outputs, targets)
        if any(version_of(tensor) != version for tensor, version in given):
            raise ValueError(
                "the loss writes into its outputs or targets (as mul_ and clamp_ do), which are used again: let it work"
                " on copies, such as targets.clone()"
            )
        samples = samples_of(targets)
        if not isinstance(loss, Tensor) or (loss.ndim and loss.shape != (samples,)):
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(
                f"a loss is a scalar, the mean over the mini-batch, or one value per sample ({samples},); the one given"
                f" returned {got}"
            )
        self._checked |= samples > 1  # nothing of one sample is seen to be broadcast
        value = loss.sum() / weight_of(self, targets).to(loss.dtype) if loss.ndim else loss
        if outputs.device.type == "cpu" and not math.isnan(value.item()):
            return value
        counts = weight_of(self, targets) > 0
        if outputs.device.type == "cpu":
            return value if counts else 0 * outputs.sum()
        return torch.where(counts, value, torch.zeros_like(value))

    def warn_of_other_mean(self, outputs: Tensor, targets: Any) -> None:
        """Warn, the first time, where mini-batches do not make the whole one, weighed as :meth:`weight_of` says.

        A lambda, or a module of the user's own, hides the class weights that it divides by.

        Args:
            outputs: (N, C).
            targets: as the function takes them.
        """
        if self._compared or samples_of(targets) < 2 or len(outputs) != samples_of(targets):
            return
        self._compared, means = True, None
        with preserved(), suppress(Exception):  # a loss that takes no part of a mini-batch
            means = self._means(outputs, targets)
        if means is not None and abs(means[1] - means[0]) > 1e-3 * abs(means[0]):
            warnings.warn(
                f"the loss is no mean over the samples of a mini-batch ({means[0]:.4g}; of its halves {means[1]:.4g}),"
                " so the mini-batches of a step (accumulation, several processes) do not make the loss of all of them."
                " Give class weights where they are seen (class_weights=, torch's own loss, functools.partial), or your"
                " loss a method weight_of(targets) that returns what it divides by",
                stacklevel=2,
            )

    @torch.no_grad()
    def _means(self, outputs: Tensor, targets: Any) -> tuple[float, float] | None:
        """The loss of a mini-batch, and what its halves make of it; None where it is another one in each call."""
        own = Custom(copy.deepcopy(self.function))  # which may count its calls
        own._checked, samples, outputs = True, samples_of(targets), at_least_float32(outputs)
        halves = slice(samples // 2), slice(samples // 2, None)
        parts = [(outputs[rows], rows_of(targets, rows, samples)) for rows in halves]
        whole, again = own(outputs, targets), own(outputs, targets)
        values = widest(torch.stack([own(*part) for part in parts]))
        weights = torch.stack([own.weight_of(part[1]) for part in parts])
        same = torch.equal(whole, again) and not _holds_others(targets)
        return (float(whole), float((values * weights).sum() / weights.sum())) if same else None

    def level(self, share: float, targets: Tensor, like: Tensor) -> Tensor | float:
        """From 0 to the loss of outputs that are all 0, which for the cross-entropy is log C.

        Returns:
            Scalar.

        Raises:
            ValueError: if that is not above 0: there is no scale then.
        """
        guess: Tensor = self(like.new_zeros(samples_of(targets), like.shape[-1]), targets)
        if not self._guessed and bool(self.weight_of(targets) > 0):
            if not bool(guess > 0):
                raise ValueError(
                    f"the loss of outputs that are all 0 is {float(guess):.3g}, so a share of it is no level: this"
                    " needs a loss that is least at 0 and larger where the network only guesses; use a method without a"
                    " level, such as pof.PoF, or pof.SharpnessAware with a radius rho of its own"
                )
            self._guessed = True
        return share * guess


LOSSES: dict[str, Callable[[], Loss]] = {
    "cross-entropy": CrossEntropy,
    "bce": BinaryCrossEntropy,
    "mse": SquaredError,
    "ordinal": Ordinal,
}
"""By the names that ``loss=`` takes."""


def as_outputs(outputs: Tensor, targets: Tensor, name: str) -> Tensor:
    """Targets in the shape (N, C) and dtype of the outputs; (N,) for one output only, so that nothing is broadcast."""
    refuse_several(targets, name)
    if targets.shape == outputs.shape[: targets.ndim] and targets.numel() == outputs.numel():
        targets = targets.reshape(outputs.shape)
    if targets.shape != outputs.shape:
        hint = "; one class out of several is a case for 'cross-entropy'" if name == "bce" and targets.ndim == 1 else ""
        raise ValueError(
            f"{name} needs a target for each output, {tuple(outputs.shape)}; got {tuple(targets.shape)} of"
            f" {targets.dtype}{hint}"
        )
    return targets.to(outputs.dtype)


def _holds_others(targets: Any) -> bool:
    """Whether there is something besides tensors, which nobody can cut into parts."""
    several = targets.values() if isinstance(targets, Mapping) else targets
    return not isinstance(targets, Tensor) and not all(isinstance(each, Tensor) for each in several)


def _in_range(loss: Tensor, targets: Tensor, valid: Tensor, what: str) -> Tensor:
    """The loss, refused or (where values are not read) NaN if a target is not valid."""
    valid_all = valid.all()
    if targets.device.type != "cpu":
        return torch.where(valid_all, loss, torch.nan)
    if not bool(valid_all):
        raise ValueError(f"{what}; got {targets[~valid][0].item():g}")
    return loss


__all__ = ["LOSSES", "BinaryCrossEntropy", "Custom", "Ordinal", "SquaredError", "as_outputs"]
