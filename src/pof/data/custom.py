"""Custom data sets: ``package.module:factory`` returns a training and a test Dataset."""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from pof._support.batches import unpack
from pof._support.factory import call_factory
from pof._support.random import preserved
from pof.data.checks import DataError
from pof.data.description import LazyData


def factory_data(name: str, data_root: Path | None) -> LazyData:
    """Call the factory ``name``, with ``data_root`` if it takes that, and describe the two Datasets it returns."""
    made = call_factory(name, offered={} if data_root is None else {"data_root": data_root})
    if not isinstance(made, tuple | list) or len(made) != 2:
        raise DataError(f"{name!r} must return (training Dataset, test Dataset); got a {type(made).__name__}")
    train, test = made
    shape = _input_shape(train, f"{name} (train)")
    _input_shape(test, f"{name} (test)")
    train_labels, test_labels = labels_of(train), labels_of(test)
    # Without names there are as many classes as the largest label says.
    classes = getattr(train, "classes", None) or range(int(train_labels.max()) + 1)
    return LazyData(
        name=name,
        train_set=train,
        # Augmentation is the Dataset's own: a validation set is read with that of the training set.
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
    """Labels of a map-style Dataset, (N,) int64: its ``targets`` or ``labels``; without them every item is read."""
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
    with preserved():
        return torch.tensor([int(unpack(dataset[i])[1]) for i in range(size)], dtype=torch.int64)


def _input_shape(dataset: Any, name: str) -> tuple[int, ...]:
    """Shape of the first input, after checks of the Dataset."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise DataError(f"{name}: needs a Dataset with a length and items by number; got {type(dataset).__name__}")
    if not len(dataset):
        raise DataError(f"{name}: no samples")
    with preserved():
        inputs, _ = unpack(dataset[0])
    if not isinstance(inputs, Tensor):
        raise DataError(
            f"{name}: items must be (tensor, label); the input of item 0 is a {type(inputs).__name__} "
            "(for images: torchvision.transforms.v2.ToImage and ToDtype)"
        )
    return tuple(inputs.shape)
