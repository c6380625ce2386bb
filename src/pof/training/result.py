"""What a run of ``fit`` gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


class DivergenceWarning(UserWarning):
    """A run diverged, was stopped, and handed back the best network before."""


class InterruptionWarning(UserWarning):
    """A run was stopped by a signal, and the network is not the one that it would have given; or it came too late."""


@dataclass(frozen=True)
class FitResult:
    """What a run did.

    The method's model holds the weights of ``best_epoch``; of a run that was paused, or interrupted without validation,
    those of the last step.
    """

    model: nn.Module
    best_epoch: int
    """0 is the incoming network: no epoch was better on validation."""
    epochs: int
    """Epochs completed."""
    steps: int
    """Optimizer steps taken."""
    stopped: str | None
    """Why the run ended early: None, ``"diverged"``, ``"interrupted"`` or ``"paused"``."""
    message: str
    """What happened, in a sentence."""
    history: list[dict[str, Any]]
    """One row per epoch, epoch 0 first: losses, validation figures, the method's metrics."""
