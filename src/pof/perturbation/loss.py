"""The cross-entropy and its options, said once: methods, perturbation and calibration all take this one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pof._support.batches import class_targets
from pof._support.precision import without_autocast
from pof.perturbation.targets import Targets, cross_entropy, encode_targets

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""``loss(logits, targets)`` -> scalar: the mean over a mini-batch."""


class CrossEntropy(nn.Module):
    """The mean cross-entropy of a mini-batch, outside of autocast.

    A module, so that the class weights go where the method goes; they are no part of the state.

    Args:
        label_smoothing: mass moved to the uniform distribution, in [0, 1).
        class_weights: (C,) non-negative, or None.

    Raises:
        ValueError: if an option is out of range.
    """

    def __init__(self, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1); got {label_smoothing}")
        if class_weights is not None and bool((class_weights < 0).any()):
            raise ValueError(f"class_weights must not be negative; got {class_weights.tolist()}")
        self.label_smoothing = label_smoothing
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            logits: (N, C).
            targets: (N,) class indices or (N, C) probabilities.

        Returns:
            Scalar.

        Raises:
            ValueError: if floating-point targets are no probabilities.
        """
        targets = class_targets(targets, logits.shape[1])
        _check_probabilities(targets)
        with without_autocast(logits.device):
            loss: Tensor = F.cross_entropy(
                logits, targets, weight=self.class_weights, label_smoothing=self.label_smoothing
            )
        return loss

    def encode(self, targets: Tensor, like: Tensor, *, check: bool = True) -> Targets:
        """Write targets, (N,) or (N, C), as what this loss makes of them; ``like``: logits (N, C)."""
        return encode_targets(targets, like, self.label_smoothing, class_weights=self.class_weights, check=check)

    def excess(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss less the least that it can be, the entropy of soft or smoothed targets; arguments as of a call."""
        encoded = self.encode(targets, logits)
        least: Tensor = encoded.mean(torch.special.entr(encoded.distribution(logits)).sum(dim=1))
        return cross_entropy(logits, encoded) - least


def _check_probabilities(targets: Tensor) -> None:
    """Refuse floating-point targets that are no distributions: several labels per sample would pass unnoticed."""
    if not targets.is_floating_point() or targets.ndim != 2:
        return
    # Half precision rounds a sum of many classes by this much.
    apart = (targets.detach().float().sum(dim=1) - 1).abs().amax()
    if not bool(apart < 0.02):
        raise ValueError(
            f"rows of floating-point targets must sum to 1, as probabilities do; got a row that is {apart:.2g} off."
            " For several labels per sample, or another loss, use pof.PoF(model, loss=...)"
        )
