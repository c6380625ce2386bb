"""What every regulariser is, so that one training loop drives them all.

``penalty = regularizer(features, targets, inputs)`` is added to the loss of the same forward pass, already
multiplied by its strength; ``regularizer.update(features, targets)`` runs once after the optimizer's step, on
the detached features of that forward pass.  Only AdaRand adapts anything there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor, nn

from pof._support.batches import Inputs


class Regularizer(nn.Module, ABC):
    """A penalty for the fine-tuning loss, and what it adapts after each step.

    Under several processes a penalty is, like a mean cross-entropy, made to be averaged over the processes
    with the weights N_r / N, their shares of the global batch: then value and gradient are those of one
    process on all of it.

    Args:
        strength: weight of the penalty, finite and >= 0; fixed at construction.  At 0 the penalty is the
            constant 0 without a graph, and nothing is drawn, copied or adapted.

    Raises:
        ValueError: if ``strength`` is negative or not finite.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self._strength = nonnegative("strength", strength)

    @property
    def strength(self) -> float:
        """Weight that the penalty is already multiplied by."""
        return self._strength

    @abstractmethod
    def forward(self, features: Tensor, targets: Tensor, inputs: Inputs | None = None) -> Tensor:
        """Compute the penalty; each subclass makes optional what it does not read.

        Args:
            features: (N, D), the tensor that enters the head, with its graph.
            targets: (N,) class indices.
            inputs: the inputs (N, ...) that the features were computed from.

        Returns:
            The penalty, a scalar.
        """

    def update(self, features: Tensor, targets: Tensor) -> None:
        """Adapt the regulariser's own state, once after the optimizer's step; does nothing unless overridden.

        Args:
            features: (N, D) of the forward pass that the step was made from; detached here.  With gradient
                accumulation those of all its passes, concatenated.
            targets: (N,) class indices.
        """

    def extra_repr(self) -> str:
        """Name the strength when the module is printed.

        Returns:
            ``strength=...``.
        """
        return f"strength={self._strength}"


def nonnegative(name: str, value: float) -> float:
    """Check a weight.

    Returns:
        ``value`` as a float.

    Raises:
        ValueError: if it is negative or not finite.
    """
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and >= 0; got {value!r} (0 switches the penalty off)")
    return float(value)
