"""Checks of features (N, D) and targets (N,)."""

from __future__ import annotations

import torch
from torch import Tensor


def zero(features: Tensor | None) -> Tensor:
    """Make the penalty of strength 0: a constant, so that it adds no work to the backward pass.

    Returns:
        A float32 zero on the device of ``features`` (or the CPU), without a graph.
    """
    return torch.zeros((), device=None if features is None else features.device)


def check_features(features: Tensor, dim: int | None = None) -> None:
    """Check that features are (N, D) with N >= 1.

    Raises:
        ValueError: if not, or if D differs from ``dim``.
    """
    if features.ndim != 2 or features.shape[0] == 0:
        raise ValueError(
            f"features must be (N, D) with N >= 1, the tensor that enters the head; got {tuple(features.shape)}"
        )
    if dim is not None and features.shape[1] != dim:
        raise ValueError(
            f"features have dimension {features.shape[1]}, the regulariser's statistics {dim}: "
            "compute the statistics with the model that is fine-tuned"
        )


def check_targets(targets: Tensor, features: Tensor, num_classes: int) -> None:
    """Check that targets are one class index per row of features.

    Values are looked at on the CPU only: on an accelerator that would wait for the device in every step, and
    the cross-entropy beside it refuses them there.

    Raises:
        ValueError: if the shape or dtype is wrong, or an index is outside [0, ``num_classes``).
    """
    if targets.shape != features.shape[:1] or targets.is_floating_point() or targets.dtype == torch.bool:
        raise ValueError(
            f"targets must be class indices of shape ({features.shape[0]},), one per row of features; "
            f"got {targets.dtype} of shape {tuple(targets.shape)} (mixed or soft targets have no single class)"
        )
    if targets.device.type == "cpu":
        check_range(targets, num_classes)


def check_range(targets: Tensor, num_classes: int) -> None:
    """Check that every class index (N,) lies in [0, ``num_classes``).

    Raises:
        ValueError: if one does not.
    """
    low, high = (int(v) for v in torch.aminmax(targets))
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise ValueError(f"label {wrong} is out of range for {num_classes} classes (0 to {num_classes - 1})")
