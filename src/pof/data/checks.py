"""Checks of data before they cost a training run; every message names the value and the remedy."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pof._support.batches import Inputs


class DataError(ValueError):
    """Data that cannot be found, read or used."""


def check_hard(name: str, part: str, labels: Tensor | None) -> None:
    """Refuse probabilities, (N, C) floating-point labels, in a part whose errors are counted."""
    if labels is not None and labels.is_floating_point() and labels.ndim == 2:
        where = "other data (validation 0 holds out none of these)" if part == "train" else "class indices there"
        raise DataError(
            f"{name} has probabilities as {part} labels, and errors are counted by classes: give {where}, or, for"
            " several labels per sample, --loss bce"
        )


def check_labels(labels: Tensor, *, num_classes: int, name: str) -> None:
    """Check that labels are class indices.

    Args:
        labels: (N,) integers, or floating-point targets (N,) or (N, C) of another task, which are finite.
        num_classes: number of classes C.
        name: what the labels belong to, for the message.

    Raises:
        DataError: if one lies outside [0, C); the first is named with its index.
    """
    if labels.is_floating_point():
        unknown = (~labels.isfinite()).nonzero()
        if len(unknown):
            raise DataError(f"{name}: the target of sample {int(unknown[0, 0])} is NaN or infinite")
        return
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(wrong):
        index = int(wrong[0])
        raise DataError(
            f"{name}: label {int(labels[index])} of sample {index} is out of range for {num_classes} classes; "
            f"labels are 0 to {num_classes - 1} (count classes from 0)"
        )


def check_splits(
    name: str, train_labels: Tensor, test_labels: Tensor, *, num_classes: int, validation: Tensor | None = None
) -> None:
    """Check that all labels are in range, and that training has some samples, of at least two classes."""
    if not len(train_labels):
        raise DataError(f"{name} (train): no samples")
    check_labels(train_labels, num_classes=num_classes, name=f"{name} (train)")
    if not train_labels.is_floating_point() and bool((train_labels == train_labels[0]).all()):
        raise DataError(
            f"{name} (train): all {len(train_labels)} samples are of one class ({int(train_labels[0])}); "
            "a classifier needs at least two classes"
        )
    check_labels(test_labels, num_classes=num_classes, name=f"{name} (test)")
    if validation is not None:
        check_labels(validation, num_classes=num_classes, name=f"{name} (validation)")


def check_batch(inputs: Inputs, targets: Tensor, *, num_classes: int | None = None) -> None:
    """Check a batch of a custom data set.

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
    """Check the normalisation: one mean and one positive deviation per channel."""
    if len(mean) != channels or len(std) != channels:
        raise DataError(
            f"images of {channels} channels need {channels} values each for mean and std; "
            f"got {len(mean)} and {len(std)}, from --mean and --std or from the network in --weights"
        )
    if min(std) <= 0:
        raise DataError(f"std must be positive; got {std}")
