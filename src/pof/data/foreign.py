"""Data sets of other people: ``package.module:factory`` returns a training and a test Dataset."""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from pof._support.batches import unpack
from pof._support.factory import call_factory
from pof._support.random import capture, restore
from pof.data.checks import DataError
from pof.data.description import LazyData


def factory_data(name: str, data_root: Path | None) -> LazyData:
    """Call a factory and describe what it returns.

    Augmentation and normalisation are the Datasets' own; a validation set is therefore read with the augmentation
    of the training Dataset.

    Args:
        name: ``package.module:factory``; returns (training Dataset, test Dataset) of (input tensor, label) and is
            called with ``data_root`` if it takes that.
        data_root: passed on.

    Returns:
        The data set.  The classes are the training Dataset's ``classes`` if it has them, otherwise as many as the
        largest label says.

    Raises:
        DataError: if it returns something else.
        ValueError: if the factory cannot be imported or called.
    """
    offered = {} if data_root is None else {"data_root": data_root}
    made = call_factory(name, offered=offered)
    if not isinstance(made, tuple | list) or len(made) != 2:
        raise DataError(f"{name!r} must return (training Dataset, test Dataset); got a {type(made).__name__}")
    train, test = made
    shape = _check_dataset(train, f"{name} (train)")
    _check_dataset(test, f"{name} (test)")
    train_labels, test_labels = labels_of(train), labels_of(test)
    classes = getattr(train, "classes", None) or range(int(train_labels.max()) + 1)
    return LazyData(
        name=name,
        train_set=train,
        plain_train_set=train,
        test_set=test,
        train_labels=train_labels,
        test_labels=test_labels,
        classes=tuple(str(c) for c in classes),
        image_shape=shape,
        mean=None,
        std=None,
        source=name,
    )


def labels_of(dataset: Dataset[Any]) -> Tensor:
    """Find the labels of a Dataset: its ``targets`` or ``labels``; without them every item is read once.

    Args:
        dataset: map-style, items (input, label) or dicts.

    Returns:
        (N,) int64.
    """
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset)[torch.as_tensor(list(dataset.indices), dtype=torch.int64)]
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[-1].long()
    size = len(cast(Sized, dataset))
    # A target_transform changes what the items say and leaves the attribute as it was.
    if getattr(dataset, "target_transform", None) is None:
        for attribute in ("targets", "labels"):
            stored = getattr(dataset, attribute, None)
            if isinstance(stored, Sized) and len(stored) == size:
                return torch.as_tensor(stored).long()
    before = capture()
    labels = torch.tensor([int(unpack(dataset[i])[1]) for i in range(size)], dtype=torch.int64)
    restore(before)
    return labels


def _check_dataset(dataset: Any, name: str) -> tuple[int, ...]:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise DataError(f"{name}: needs a Dataset with a length and items by number; got {type(dataset).__name__}")
    if not len(dataset):
        raise DataError(f"{name}: no samples")
    before = capture()
    inputs, _ = unpack(dataset[0])
    restore(before)
    if not isinstance(inputs, Tensor):
        raise DataError(
            f"{name}: items must be (tensor, label); the input of item 0 is a {type(inputs).__name__} "
            "(for images: torchvision.transforms.v2.ToImage and ToDtype)"
        )
    return tuple(inputs.shape)
