"""Image folders: one subfolder per class, read from disk by the loader's workers (torchvision's conventions).

Folders for training, validation and testing are known by their usual names (``SPLITS``), in any case.  Validation
data of its own are validation data, never the test set: without a test folder a fifth of the training images, always
the same and stratified, is the test set.
Training images: random resized crop and flip; evaluation: as the network's preprocessing says, by default a resize to
8/7 of 224 pixels and the central crop.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pof._support.preprocessing import Preprocessing
from pof.data.builtin import IMAGENET_MEAN, IMAGENET_STD
from pof.data.checks import DataError, check_statistics
from pof.data.description import DataSplit, LazyData
from pof.data.files import torchvision_datasets
from pof.data.images import Prepare, is_image, opened
from pof.data.stratified import split_validation
from pof.data.walk import Walk, listed

IMAGENET = Preprocessing(224, IMAGENET_MEAN, IMAGENET_STD)
SPLITS: dict[DataSplit, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Names of folders, which may be followed by ``set``, ``data``, ``images`` or ``split``, and by a number."""
TEST_SHARE = 0.2
SPLIT_SEED = 0
Sample = tuple[str, int]


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Image files with their labels; ``transform`` makes a tensor of an opened image."""

    def __init__(self, samples: list[Sample], transform: Callable[[Any], Tensor]) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        with opened(path) as image:
            return self.transform(image), label


def folder_data(
    root: Path,
    *,
    preprocessing: Preprocessing = IMAGENET,
    augment: Literal["default", "none"] = "default",
) -> LazyData:
    """Describe an image folder by the names of its files; ``augment="none"`` treats training images like the others."""
    if not os.path.isdir(root):
        raise DataError(f"no such folder: {root}")
    if root.resolve() == Path(root.resolve().anchor):
        raise DataError(f"{root}: the root of the file system; give the folder that holds the class folders")
    check_statistics(preprocessing.mean, preprocessing.std, channels=3)
    torchvision_datasets()  # Pillow comes with it
    classes, train, validation, test = _samples(root)
    plain = Prepare(preprocessing, augment=False)
    return LazyData(
        name=root.resolve().name,
        train_set=ImageFiles(train, Prepare(preprocessing, augment=augment == "default")),
        plain_train_set=ImageFiles(train, plain),
        test_set=ImageFiles(test, plain),
        train_labels=_labels(train),
        test_labels=_labels(test),
        val_set=None if validation is None else ImageFiles(validation, plain),
        val_labels=None if validation is None else _labels(validation),
        classes=tuple(classes),
        image_shape=(3, preprocessing.size, preprocessing.size),
        mean=preprocessing.mean,
        std=preprocessing.std,
        source=str(root),
    )


def _samples(root: Path) -> tuple[list[str], list[Sample], list[Sample] | None, list[Sample]]:
    """Names of the classes, and the samples for training, validation (None: no data of its own) and testing."""
    places, notes = _splits(root)
    walk = Walk(root, is_image)
    classes, train = _classes(places.get("train", root), walk)
    validation, test = (
        _samples_of(places[split], classes, walk) if split in places else None for split in ("validation", "test")
    )
    if test is None:
        kept, taken = split_validation(_labels(train), TEST_SHARE, seed=SPLIT_SEED)
        train, test = ([train[i] for i in rows.tolist()] for rows in (kept, taken))
        if validation is not None:
            notes.append(
                f"no test folder: a fifth of the training images ({len(test)}, always the same) is the test set;"
                f" {places['validation'].name} is for validation"
            )
    for note in (*notes, walk.left_out()):
        if note:
            warnings.warn(f"{root}: {note}", stacklevel=2)
    return classes, train, validation, test


def _splits(root: Path) -> tuple[dict[DataSplit, Path], list[str]]:
    """The folders of the splits, none if the root holds the classes, and what is to be said about the others."""
    names = [entry.name for entry in listed(root)[0]]
    roles = {name: role for name in names if (role := _role(name)) is not None}
    # A class may be called "test" too: its folder has images in it, no folders.
    found = {name: role for name, role in roles.items() if listed(root / name)[0]}
    if not found:
        if len(roles) == len(names) > 1:
            raise DataError(f"{root}: {' and '.join(roles)} have no class folders in them, one per class")
        return {}, []
    for role, known in SPLITS.items():
        same = [name for name in found if found[name] == role]
        if len(same) > 1:
            raise DataError(f"{root}: {' and '.join(same)} are both for {role}: keep one of them")
        if role == "train" and not same:
            raise DataError(
                f"{root}: {next(iter(found))} has class folders, but there is no folder for training beside it:"
                f" call one {' or '.join(known)}"
            )
    unused = [name for name in names if name not in found and _has_images(root / name)]
    notes = [f"not used: {', '.join(unused)} (no class folders, or no usual name of a split)"] if unused else []
    return {role: root / name for name, role in found.items()}, notes


def _role(name: str) -> DataSplit | None:
    bare = re.sub(r"(?<=.)[-_ ]?(set|data|images|split)?[-_ ]?\d*$", "", name.lower())
    return next((role for role, names in SPLITS.items() if bare in names), None)


def _has_images(folder: Path) -> bool:
    folders, files = listed(folder)
    return any(is_image(file.name) for file in (*files, *(file for below in folders for file in listed(below)[1])))


def _classes(root: Path, walk: Walk) -> tuple[list[str], list[Sample]]:
    """Names of the class folders, and their samples."""
    names = [entry.name for entry in listed(root)[0]]
    if not names:
        raise DataError(f"{root}: no subfolders in it; an image folder has one subfolder of images per class")
    if len(names) == 1:
        inner = root / names[0]
        hint = f"; if {inner} is the data set, give that" if listed(inner)[0] else ""
        raise DataError(f"{root}: only one class ({names[0]}); a classifier needs at least two subfolders{hint}")
    samples = _samples_of(root, names, walk)
    if empty := sorted(set(range(len(names))) - {label for _, label in samples}):
        shown = ", ".join(names[label] for label in empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise DataError(f"{root}: no image in the folders {shown}; add images to these folders, or remove them")
    return names, samples


def _samples_of(root: Path, classes: list[str], walk: Walk) -> list[Sample]:
    # Labels of a test folder are those of the training folder, whichever classes it has.
    own = [entry.name for entry in listed(root)[0]]
    if unknown := sorted(set(own) - set(classes)):
        raise DataError(f"{root}: the class {unknown[0]!r} has no training images; there are {', '.join(classes)}")
    labels = {name: label for label, name in enumerate(classes)}
    samples = [(path, labels[name]) for name in own for path in walk.images_below(os.path.join(root, name))]
    if not samples:
        raise DataError(f"{root}: no image in it that can be read")
    return samples


def _labels(samples: list[Sample]) -> Tensor:
    return torch.tensor([label for _, label in samples], dtype=torch.int64)
