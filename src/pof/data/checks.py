"""Checks of data before they cost a training run; every message names the value and the remedy."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pof._support.batches import Inputs


class DataError(ValueError):
    """Data that cannot be found, read or used."""


def check_labels(labels: Tensor, *, num_classes: int, name: str) -> None:
    """Check that labels are class indices.

    Args:
        labels: (N,) integers.
        num_classes: number of classes C.
        name: what the labels belong to, for the message.

    Raises:
        DataError: if one lies outside [0, C); the first is named with its index.
    """
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(wrong):
        index = int(wrong[0])
        raise DataError(
            f"{name}: label {int(labels[index])} of sample {index} is out of range for {num_classes} classes; "
            f"labels are 0 to {num_classes - 1} (count classes from 0)"
        )


def check_training_labels(labels: Tensor, *, num_classes: int, name: str) -> None:
    """Check that labels can train a classifier: some samples, of at least two classes, all in range.

    Args:
        labels: (N,) integers.
        num_classes: number of classes C.
        name: what the labels belong to, for the message.

    Raises:
        DataError: if not.
    """
    if not len(labels):
        raise DataError(f"{name}: no samples")
    check_labels(labels, num_classes=num_classes, name=name)
    if bool((labels == labels[0]).all()):
        raise DataError(
            f"{name}: all {len(labels)} samples are of one class ({int(labels[0])}); "
            "a classifier needs at least two classes"
        )


def check_batch(inputs: Inputs, targets: Tensor, *, num_classes: int | None = None) -> None:
    """Check a batch of somebody's own data set.

    Args:
        inputs: (N, ...) or a mapping of such tensors.
        targets: (N,) class indices; probabilities (N, C) are not checked.
        num_classes: number of classes C; None if it is not known.

    Raises:
        DataError: if an input is NaN or infinite, or a target outside [0, C).
    """
    tensors = inputs if isinstance(inputs, Mapping) else {"inputs": inputs}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            continue
        finite = torch.isfinite(tensor)
        if not bool(finite.all()):
            place = (~finite).nonzero()[0].tolist()
            raise DataError(
                f"{name} contain {float(tensor[tuple(place)])} (sample {place[0]} of the batch, "
                f"position {place[1:]}); remove such samples or replace the values"
            )
    if num_classes is not None and targets.ndim == 1 and not targets.is_floating_point():
        check_labels(targets, num_classes=num_classes, name="batch")


def check_statistics(mean: tuple[float, ...], std: tuple[float, ...], *, channels: int) -> None:
    """Check the normalisation: one mean and one positive deviation per channel.

    Args:
        mean: in units of the full intensity, so usually in [0, 1].
        std: in the same units.
        channels: of the images.

    Raises:
        DataError: if not.
    """
    if len(mean) != channels or len(std) != channels:
        raise DataError(
            f"images of {channels} channels need {channels} values each for mean and std; "
            f"got {len(mean)} and {len(std)}"
        )
    if min(std) <= 0:
        raise DataError(f"std must be positive; got {std}")
