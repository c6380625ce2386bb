"""What a loss asks of a data set: how many outputs a network needs, and whether the targets can be its own."""

from __future__ import annotations

from collections.abc import Collection

from pof.data.checks import DataError, check_hard
from pof.data.description import Data, DataSplit
from pof.data.streaming import StreamData


def outputs_of(data: Data, loss: str) -> int:
    """Count the outputs that a network needs.

    Args:
        data: the data set.
        loss: ``"cross-entropy"``, ``"bce"``, ``"mse"``, ``"ordinal"``; of any other a network has an output per class,
            or per floating-point target.

    Returns:
        C.

    Raises:
        DataError: if the targets are of another task.
    """
    targets = data.test_labels if isinstance(data, StreamData) else data.train_labels
    numbers, several = targets.is_floating_point(), targets.ndim == 2
    if loss == "cross-entropy" and numbers and not several:
        raise DataError(
            f"{data.name} has a number as target, no class: give --loss mse, bce or one of your own (pof improve has"
            " none: it compares classifiers)"
        )
    if loss == "ordinal" and numbers:
        raise DataError(f"{data.name} has floating-point targets; ordinal needs class indices, integers from 0")
    if loss == "bce" and not numbers and data.num_classes != 2:
        raise DataError(
            f"{data.name} has one of {data.num_classes} classes per sample, for which the loss is cross-entropy;"
            " bce is for two, or for several labels per sample in floating point, (C,)"
        )
    if loss == "ordinal":
        return data.num_classes - 1
    return 1 if loss in {"bce", "mse"} and not numbers else data.num_classes


def check_countable(data: Data, loss: str, parts: Collection[DataSplit]) -> None:
    """Refuse parts for evaluation whose labels are soft: errors cannot be counted on them."""
    names = {"train": "train_labels", "validation": "val_labels", "test": "test_labels"}  # a stream has not all of them
    for part in parts if loss == "cross-entropy" else ():
        check_hard(data.name, part, getattr(data, names[part]))
