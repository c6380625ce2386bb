"""Custom data sets: ``package.module:factory`` returns a training and a test Dataset, or one for validation between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from pof._support.batches import class_targets, unpack_item
from pof._support.factory import call_factory
from pof._support.random import preserved
from pof._support.text import first_of
from pof.data.checks import DataError, check_hard
from pof.data.description import LazyData
from pof.data.streaming import StreamData, first_input

T = TypeVar("T")
LOOKED_AT = 100
"""Items whose labels are compared with those that a Dataset says it has."""


def factory_data(name: str, data_root: Path | None) -> LazyData | StreamData:
    """Call the factory ``name``, with ``data_root`` if it takes that, and describe the Datasets that it returns."""
    made = call_factory(name, offered={} if data_root is None else {"data_root": data_root})
    if not isinstance(made, tuple | list) or len(made) not in {2, 3}:
        got = f"{len(made)} values" if isinstance(made, tuple | list) else f"a {type(made).__name__}"
        raise DataError(f"{name!r} must return (training, test) or (training, validation, test) Datasets; got {got}")
    train, test, validation = made[0], made[-1], made[1] if len(made) == 3 else None
    if isinstance(train, IterableDataset):
        return _stream_data(name, train, validation, test)
    parts = {"train": train, "test": test} | ({} if validation is None else {"validation": validation})
    shape, *_ = [_input_shape(part, f"{name} ({which})") for which, part in parts.items()]
    labels = {which: labels_of(part, f"{name} ({which})") for which, part in parts.items()}
    own = _names(train)
    for which, part in parts.items():
        if own and (other := _names(part)) and own != other:
            raise DataError(f"{name}: the classes of the Datasets train ({own}) and {which} ({other}) differ")
    return LazyData(
        name=name,
        train_set=train,
        # Augmentation is the Dataset's own: a part held out is read with that of the training set.
        plain_train_set=train,
        test_set=test,
        train_labels=labels["train"],
        test_labels=labels["test"],
        classes=own or _outputs(labels["train"]) or counted_classes(name, labels["train"], labels["test"]),
        image_shape=shape,
        mean=None,
        std=None,
        source=name,
        val_set=validation,
        val_labels=labels.get("validation"),
    )


def _stream_data(name: str, train: IterableDataset[Any], validation: Any, test: Any) -> StreamData:
    """A stream for training; its classes are named by an attribute, of itself or of the test data."""
    for which, part in (("test", test), ("validation", validation)):
        if part is not None:
            _input_shape(part, f"{name} ({which})")
    classes = _names(train) or _names(test)
    if not classes:
        raise DataError(
            f"{name}: a stream does not say how many classes there are: give it the attribute classes, a name for each"
        )
    inputs, _ = unpack_item(first_input(train, f"{name} (train)"))
    return StreamData(
        name=name,
        train_set=train,
        test_set=test,
        test_labels=labels_of(test, f"{name} (test)"),
        classes=classes,
        image_shape=_shape(inputs, f"{name} (train)"),
        source=name,
        val_set=validation,
        val_labels=None if validation is None else labels_of(validation, f"{name} (validation)"),
    )


def _names(dataset: Any) -> tuple[str, ...]:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    return tuple(str(name) for name in names) if isinstance(names, Iterable) else ()


def _outputs(targets: Tensor) -> tuple[str, ...]:
    """Floating-point targets have no classes: a name for each output."""
    if not targets.is_floating_point():
        return ()
    return tuple(str(number) for number in range(targets.shape[1] if targets.ndim == 2 else 1))


def counted_classes(name: str, train: Tensor, test: Tensor) -> tuple[str, ...]:
    """Without names there are as many classes as the largest label says, and each of them has a sample."""
    check_hard(name, "test", test)
    found, largest = sorted({*train.tolist(), *test.tolist()}), int(train.max())
    if found[0] >= 0 and len(found) <= largest:
        shown = first_of(found)
        raise DataError(
            f"{name}: labels are {shown}, which would make {largest + 1} classes, {largest + 1 - len(found)} of them"
            " empty: count classes from 0 without gaps (torch.unique(labels, return_inverse=True) does), or give the"
            " training Dataset the attribute classes, a name for each"
        )
    return tuple(str(label) for label in range(largest + 1))


def labels_of(dataset: Dataset[Any], name: str = "the data") -> Tensor:
    """Labels of a map-style Dataset, (N,) int64; of other tasks floating point, (N,) or (N, C).

    Returns:
        Its ``targets`` or ``labels``, if some items say the same; else every item is read.

    Raises:
        DataError: if items cannot be read, by their numbers, or have no label.
    """
    size = len(cast(Sized, dataset))
    for found in _said_labels(dataset):
        if type(dataset) is TensorDataset:
            return found
        # A target_transform, or a custom __getitem__, changes what the items say, and leaves these alone.
        places = torch.linspace(0, size - 1, min(size, LOOKED_AT), dtype=torch.float64).round().long()
        if torch.equal(_read(dataset, places, name), found[places]):
            return found
    return _read(dataset, torch.arange(size), name)


def _said_labels(dataset: Dataset[Any]) -> Iterator[Tensor]:
    """The labels that a Dataset has stored, of a Subset those of its part."""
    if isinstance(dataset, Subset):
        part = torch.as_tensor(list(dataset.indices), dtype=torch.int64)
        yield from (found[part] for found in _said_labels(dataset.dataset))
    stored = (dataset.tensors[-1],) if isinstance(dataset, TensorDataset) else ()
    for each in (*stored, getattr(dataset, "targets", None), getattr(dataset, "labels", None)):
        if isinstance(each, Sized) and len(each) == len(cast(Sized, dataset)):
            yield _indices(each)


def _read(dataset: Dataset[Any], places: Tensor, name: str) -> Tensor:
    """The labels that some of the items have."""
    return _indices(_items(dataset, places.tolist(), name, lambda item: _label(unpack_item(item)[1])))


def _items(dataset: Dataset[Any], places: Sequence[int], name: str, part: Callable[[Any], T]) -> list[T]:
    """A part of some of the items; those that do not have it are named together."""
    found, failed, first = [], [], None
    with preserved():
        for index in places:
            try:
                found.append(part(dataset[index]))
            except Exception as error:
                said = f"{type(error).__name__}: " if not isinstance(error, ValueError) else ""
                failed.append(f"sample {index}: {said}{error}")
                first = first or error
    if failed:
        raise DataError(f"{name}: {first_of(failed)}") from first
    return found


def _label(target: Any) -> Tensor:
    target = torch.tensor(target) if isinstance(target, float) else target
    if not isinstance(target, Tensor):
        raise DataError(f"targets must be a tensor of class indices, or an integer; got {type(target).__name__}")
    return target.squeeze()


def _indices(labels: Any) -> Tensor:
    """Class indices, (N,) int64, of labels as a Dataset may have them; floating-point targets as they are."""
    if isinstance(labels, list) and labels and isinstance(labels[0], Tensor):
        labels = torch.stack(labels)
    found: Tensor = torch.as_tensor(class_targets(labels))
    if found.is_floating_point() and found.ndim in {1, 2}:
        return found[:, 0] if found.shape[1:] == (1,) else found
    found = class_targets(found, found.shape[1] if found.ndim == 2 else None)
    if found.dtype != torch.int64 or found.ndim != 1:
        raise DataError(
            f"labels must be class indices, integers from 0, one per sample; got {found.dtype} {tuple(found.shape)}"
        )
    return found


def _input_shape(dataset: Any, name: str) -> tuple[int, ...]:
    """Shape of the first input, after checks of the Dataset."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise DataError(f"{name}: needs a Dataset with a length and items by number; got {type(dataset).__name__}")
    if not len(dataset):
        raise DataError(f"{name}: no samples")
    (inputs,) = _items(dataset, [0], name, lambda item: unpack_item(item)[0])
    if isinstance(inputs, Mapping) and inputs:  # of texts: the first of them, such as input_ids
        inputs = next(iter(inputs.values()))
    return _shape(inputs, name)


def _shape(inputs: Any, name: str) -> tuple[int, ...]:
    if not isinstance(inputs, Tensor):
        raise DataError(
            f"{name}: items must be (tensor, label), or dicts of tensors with 'labels'; the input of item 0 is a"
            f" {type(inputs).__name__} (for images: torchvision.transforms.v2.ToImage and ToDtype)"
        )
    return tuple(inputs.shape)
