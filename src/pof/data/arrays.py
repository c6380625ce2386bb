"""NumPy arrays: an ``.npz`` file, or a folder of ``.npy`` files, of images or of feature vectors, with labels.

A name says which part an array belongs to (``parts.SPLITS``) and what it holds: ``x_train``, ``y_train``,
``train_images``, ``test_labels``, ...  The files themselves are read in ``npy``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from pof._support.batches import class_targets
from pof.data.augment import Augmentation
from pof.data.checks import DataError, check_labels
from pof.data.custom import counted_classes
from pof.data.description import Data, DataSplit, ImageData, LazyData
from pof.data.images import Prepare
from pof.data.npy import array_names, array_shape, read_array
from pof.data.parts import Preparation, named_classes, no_test_set, role_of, say, taken_for_test

INPUTS, LABELS = ("x", "images", "image", "data", "inputs", "features"), ("y", "labels", "label", "targets", "target")
NAMES = ("classes", "class_names")
MOST_CHANNELS = 4
MOST_APART = 1e3
"""How many times larger the standard deviation of one feature may be than that of another without a word."""
Part = tuple[Tensor, Tensor]
"""Inputs (N, ...) and labels (N,)."""


def array_data(
    place: Path, augmentation: Augmentation | None, statistics: dict[str, Any], preparation: Preparation | None
) -> Data:
    """Describe images (N, H, W[, K]) of uint8, or feature vectors (N, D).

    Args:
        place: an .npz file, or a folder of .npy files.
        augmentation: of training images that are used as they are, batch by batch.
        statistics: the mean and std that were given; else those of the training images.
        preparation: if given, images are read like image files: resized, and as RGB.

    Returns:
        The data set.

    Raises:
        DataError: if arrays are missing, damaged, of another kind or do not belong together.
    """
    parts, classes, notes = _parts(place)
    train, test, said = _with_test(place, parts)
    say(str(place), [*notes, said])
    validation, shape = parts.get("validation"), tuple(train[0].shape[1:])
    if len(shape) == 1 or preparation is not None:
        if len(shape) == 1 and (statistics or augmentation is not None or preparation is not None):
            raise DataError(f"{place}: mean, std, image_size and augment are for images, and these are feature vectors")
        _look_at_scales(place, train[0])
        found = _lazy(place, train, validation, test, classes, preparation)
        return replace(found, test_taken="test" not in parts)
    return ImageData(
        name=place.stem,
        train_images=train[0],
        train_labels=train[1],
        val_images=None if validation is None else validation[0],
        val_labels=None if validation is None else validation[1],
        test_images=test[0],
        test_labels=test[1],
        classes=classes,
        augmentation=augmentation,
        source=str(place),
        test_taken="test" not in parts,
        **(statistics if len(statistics) == 2 else _statistics(place, train[0]) | statistics),
    )


def image_shape(place: Path) -> tuple[int, ...] | None:
    """The shape (K, H, W) that images for training have in their array, by its header; None where there are none."""
    name = next((name for name in array_names(place) if _key(name) == ("train", "inputs")), None)
    shape = () if name is None else array_shape(place, name)[1:]
    if len(shape) == 3 and shape[2] <= MOST_CHANNELS:
        return shape[2], *shape[:2]
    return (1, *shape) if len(shape) == 2 else shape if len(shape) == 3 else None


def _look_at_scales(place: Path, vectors: Tensor) -> None:
    """Say where features are of very different scales."""
    moving = vectors.std(dim=0) if vectors.ndim == 2 else vectors.new_empty(0)
    moving = moving[moving > 0]
    if len(moving) and float(moving.max() / moving.min()) > MOST_APART:
        low, high = float(moving.min()), float(moving.max())
        say(str(place), [f"standard deviations of the features run from {low:.2g} to {high:.2g}: standardise them"])


def _lazy(
    place: Path,
    train: Part,
    validation: Part | None,
    test: Part,
    classes: tuple[str, ...],
    preparation: Preparation | None,
) -> LazyData:
    """Vectors as they are, or images as they are prepared."""

    def made(part: Part, training: bool = False) -> Dataset[Any]:
        if preparation is None:
            return TensorDataset(*part)
        return _Prepared(*part, preparation.transform(training=training))

    if preparation is not None and train[0].shape[1] not in {1, 3}:
        raise DataError(f"{place}: images of {train[0].shape[1]} channels cannot be resized: leave out image_size")
    how = None if preparation is None else preparation.preprocessing
    return LazyData(
        name=place.stem,
        train_set=made(train, True),
        plain_train_set=made(train),
        test_set=made(test),
        train_labels=train[1],
        test_labels=test[1],
        val_set=None if validation is None else made(validation),
        val_labels=None if validation is None else validation[1],
        classes=classes,
        image_shape=tuple(train[0].shape[1:]) if how is None else (3, how.size, how.size),
        mean=None if how is None else how.mean,
        std=None if how is None else how.std,
        source=str(place),
    )


class _Prepared(Dataset[tuple[Tensor, int]]):
    """Images (N, K, H, W) uint8 and labels (N,), prepared like image files."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Prepare) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        pixels = self.images[index].permute(1, 2, 0).numpy()
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        return self.transform(image), int(self.labels[index])


def _statistics(place: Path, images: Tensor) -> dict[str, tuple[float, ...]]:
    """Mean and deviation of each channel over the training images, in units of the full intensity."""
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = [torch.bincount(images[:, k].flatten(), minlength=256).double() for k in range(images.shape[1])]
    means = [float(values @ count / count.sum()) for count in counts]
    deviations = [
        math.sqrt(float((values - m).square() @ count / count.sum())) for m, count in zip(means, counts, strict=True)
    ]
    if not all(deviations):
        raise DataError(f"{place}: all pixels of a channel are the same in every training image; give std")
    return {"mean": tuple(means), "std": tuple(deviations)}


def _with_test(place: Path, parts: dict[DataSplit, Part]) -> tuple[Part, Part, str]:
    images, labels = train = parts["train"]
    if "test" in parts:
        return train, parts["test"], ""
    kept, taken = taken_for_test(str(place), labels)
    said = no_test_set(len(taken), "the part for validation" if "validation" in parts else None)
    return (images[kept], labels[kept]), (images[taken], labels[taken]), said


def _parts(place: Path) -> tuple[dict[DataSplit, Part], tuple[str, ...], list[str]]:
    """The parts, names of the classes, and what is to be said."""
    names = array_names(place)
    keys: dict[tuple[DataSplit, str], str] = {}
    unknown = []
    for name in names:
        key = _key(name)
        if key is None:
            unknown += [] if name.lower() in NAMES else [name]
        elif key in keys:
            raise DataError(f"{place}: {keys[key]} and {name} are both the {key[1]} for {key[0]}: keep one of them")
        else:
            keys[key] = name
    if ("train", "inputs") not in keys:
        raise DataError(
            f"{place}: no inputs for training; the arrays are {', '.join(names) or 'none'}: call them x_train and"
            " y_train, or train_images and train_labels"
        )
    notes = [f"arrays not used: {', '.join(unknown)}"] if unknown else []
    found: dict[DataSplit, tuple[str, Tensor, Any]] = {}
    for (role, kind), name in keys.items():
        other = keys.get((role, "labels" if kind == "inputs" else "inputs"))
        if other is None and (role == "train" or kind == "labels"):
            missing = "labels" if kind == "inputs" else "inputs"
            raise DataError(f"{place}: {name} has no {missing} beside it; the arrays are {', '.join(names)}")
        if other is None:
            notes.append(f"{name} has no labels: not used")
        elif kind == "inputs":
            found[role] = name, _inputs(f"{place}: {name}", read_array(place, name)), read_array(place, other)
            _, inputs, labels_of_them = found[role]
            if labels_of_them.shape[:1] != inputs.shape[:1]:
                shape = labels_of_them.shape
                raise DataError(f"{place}: {name} has {len(inputs)} samples, and its labels have the shape {shape}")
            if not len(inputs):
                raise DataError(f"{place}: {name} has no samples")
    given = next((read_array(place, name) for name in names if name.lower() in NAMES), None)
    classes, labels = _labels(place, {role: array for role, (_, _, array) in found.items()}, given)
    parts = {role: (inputs, labels[role]) for role, (_, inputs, _) in found.items()}
    for name, inputs, _ in found.values():
        if inputs.shape[1:] != parts["train"][0].shape[1:]:
            shapes = f"{tuple(inputs.shape[1:])}, and training {tuple(parts['train'][0].shape[1:])}"
            raise DataError(f"{place}: {name} has inputs of the shape {shapes}; bring them to one")
    return parts, classes, notes


def _key(name: str) -> tuple[DataSplit, str] | None:
    """What an array is: ``x_train``, ``trainX``, ``train_images``, or ``x`` alone, which is for training."""
    words = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower().replace("-", "_").split("_")
    kinds = [("inputs" if word in INPUTS else "labels") for word in words if word in (*INPUTS, *LABELS)]
    roles = [role for word in words if (role := role_of(word)) is not None]
    if len(kinds) != 1 or len(kinds) + len(roles) != len(words) or len(roles) > 1:
        return None
    return (roles[0] if roles else "train"), kinds[0]


def _inputs(name: str, array: Any) -> Tensor:
    """Images (N, K, H, W) of uint8, or vectors (N, D) of float32."""
    if array.ndim == 2 and array.dtype.kind in "biuf":
        vectors = torch.from_numpy(array.astype("float32"))
        wrong = ~vectors.isfinite().all(dim=1)
        if bool(wrong.any()):
            raise DataError(f"{name}: row {int(wrong.nonzero()[0])} has NaN or infinity; mend or remove such samples")
        return vectors
    if array.dtype != "uint8" or array.ndim not in {3, 4}:
        raise DataError(
            f"{name}: {array.dtype} {array.shape}; images are uint8 (N, H, W) or (N, H, W, K), feature vectors (N, D)"
        )
    images = torch.from_numpy(array)
    if images.ndim == 3:
        return images[:, None]
    if images.shape[3] <= MOST_CHANNELS:
        return images.permute(0, 3, 1, 2).contiguous()
    if images.shape[1] <= MOST_CHANNELS:
        return images.contiguous()
    raise DataError(f"{name}: {array.shape} has no axis of channels, 1 to {MOST_CHANNELS}, at its end or in front")


def _labels(
    place: Path, arrays: Mapping[DataSplit, Any], given: Any
) -> tuple[tuple[str, ...], dict[DataSplit, Tensor]]:
    """Names of the classes, and labels (N,) int64."""
    named = () if given is None else tuple(_texts(f"{place}: classes", given.ravel()))
    if any(array.dtype.kind in "US" for array in arrays.values()):
        texts = {role: _texts(f"{place}: labels for {role}", array) for role, array in arrays.items()}
        names = named or tuple(named_classes(texts["train"]))
        numbers = {name: number for number, name in enumerate(names)}
        if unknown := sorted({text for each in texts.values() for text in each} - set(names)):
            lacks = "is not among the classes" if named else "has no training samples"
            raise DataError(f"{place}: the class {unknown[0]!r} {lacks}; there are {', '.join(names)}")
        return names, {role: torch.tensor([numbers[text] for text in each]) for role, each in texts.items()}
    labels = {}
    for role, array in arrays.items():
        whole = array.dtype.kind in "biu"
        indices = class_targets(array, array.shape[1] if array.ndim == 2 else None) if whole else array
        if not whole or indices.ndim != 1:
            raise DataError(
                f"{place}: labels for {role} are {array.dtype} {array.shape}; give class indices (N,), integers from 0,"
                " or texts"
            )
        labels[role] = indices
    if not named:
        return counted_classes(str(place), labels["train"], torch.cat(list(labels.values()))), labels
    for role, indices in labels.items():
        check_labels(indices, num_classes=len(named), name=f"{place} ({role})")
    return named, labels


def _texts(name: str, array: Any) -> list[str]:
    """An array (N,) or (N, 1) as texts; bytes are UTF-8."""
    if array.shape not in {(len(array),), (len(array), 1)}:
        raise DataError(f"{name} are texts {array.shape}; give one for each (N,)")
    found = array.ravel().tolist()
    try:
        return [text.decode() if isinstance(text, bytes) else str(text) for text in found]
    except UnicodeDecodeError as error:
        raise DataError(f"{name} are bytes that are no text in UTF-8 ({error}): save them as texts") from error
