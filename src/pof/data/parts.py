"""The parts of a data set of image files: training, validation, testing, by their usual names.

Validation data of its own are validation data, never the test set: without test data a fifth of the training images,
always the same and stratified, is the test set.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pof._support.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from pof.data.checks import DataError, check_statistics
from pof.data.description import DataSplit, LazyData
from pof.data.files import torchvision_datasets
from pof.data.images import Prepare, Source, opened
from pof.data.stratified import split_validation

IMAGENET = Preprocessing(224, IMAGENET_MEAN, IMAGENET_STD)
SPLITS: dict[DataSplit, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Names of parts, which may be followed by ``set``, ``data``, ``images`` or ``split``, and by a number."""
TEST_SHARE = 0.2
SPLIT_SEED = 0
Sample = tuple[Source, int]


def role_of(name: str) -> DataSplit | None:
    """What a part is for, by its name in any case; None if that is no usual one."""
    bare = re.sub(r"(?<=.)[-_ ]?(set|data|images|split)?[-_ ]?\d*$", "", name.lower())
    return next((role for role, names in SPLITS.items() if bare in names), None)


@dataclass(frozen=True)
class Preparation:
    """How images of any size become tensors."""

    preprocessing: Preprocessing = IMAGENET
    augment: Literal["default", "randaugment", "none"] = "default"
    """Of training images; none treats them like the others."""

    def __post_init__(self) -> None:
        check_statistics(self.preprocessing.mean, self.preprocessing.std, channels=3)
        torchvision_datasets()  # Pillow comes with it

    def transform(self, *, training: bool) -> Prepare:
        """What makes a tensor of an opened image."""
        augment = training and self.augment != "none"
        policy = training and self.augment == "randaugment"
        return Prepare(self.preprocessing, augment, randaugment=policy)


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Image files with their labels; ``transform`` makes a tensor of an opened image."""

    def __init__(self, samples: list[Sample], transform: Prepare) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        source, label = self.samples[index]
        with opened(source) as image:
            return self.transform(image), label


def image_data(
    name: str,
    source: str,
    classes: Sequence[str],
    parts: Mapping[DataSplit, list[Sample]],
    preparation: Preparation,
    *,
    notes: Sequence[str] = (),
    names: Mapping[DataSplit, str] | None = None,
) -> LazyData:
    """Describe images by their samples in each part.

    Args:
        name: of the data set.
        source: where it is.
        classes: names of the C classes.
        parts: (image, label) of the parts; a test set is taken out of training where there is none.
        preparation: size, normalisation and augmentation.
        notes: what is to be said of the data, as warnings.
        names: what the parts are called there.

    Returns:
        The data set.
    """
    train, test, said = with_test_part(source, parts, names or {})
    say(source, [*notes, said])
    validation = parts.get("validation")
    plain = preparation.transform(training=False)
    return LazyData(
        name=name,
        train_set=ImageFiles(train, preparation.transform(training=True)),
        plain_train_set=ImageFiles(train, plain),
        test_set=ImageFiles(test, plain),
        train_labels=labels_in(train),
        test_labels=labels_in(test),
        val_set=None if validation is None else ImageFiles(validation, plain),
        val_labels=None if validation is None else labels_in(validation),
        classes=tuple(classes),
        image_shape=(3, preparation.preprocessing.size, preparation.preprocessing.size),
        mean=preparation.preprocessing.mean,
        std=preparation.preprocessing.std,
        source=source,
        test_taken="test" not in parts,
    )


def with_test_part(
    source: str, parts: Mapping[DataSplit, list[Sample]], names: Mapping[DataSplit, str]
) -> tuple[list[Sample], list[Sample], str]:
    """Samples for training and testing, and what is to be said of it."""
    train = parts["train"]
    if "test" in parts:
        return train, parts["test"], ""
    kept, taken = taken_for_test(source, labels_in(train))
    said = no_test_set(len(taken), names.get("validation", "validation") if "validation" in parts else None)
    return [train[i] for i in kept.tolist()], [train[i] for i in taken.tolist()], said


def taken_for_test(source: str, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the samples that stay for training, and of the fifth for testing."""
    try:
        return split_validation(labels, TEST_SHARE, seed=SPLIT_SEED)
    except DataError as error:
        raise DataError(
            f"{source}: there are no test data, and a fifth of the training samples cannot be ({error}): give a part"
            " for testing"
        ) from error


def no_test_set(taken: int, validation: str | None) -> str:
    """What is said where there are validation data, under this name, and the test set is taken out of training."""
    said = f"no test data: a fifth of the training samples ({taken}, always the same) is the test set"
    return "" if validation is None else f"{said}; {validation} is for validation"


def say(source: str, notes: Sequence[str]) -> None:
    """Warn of what a user should know of his data."""
    for note in filter(None, notes):
        warnings.warn(f"{source}: {note}", stacklevel=3)


def named_classes(labels: Sequence[str]) -> list[str]:
    """Names of the classes among labels as they are written: sorted, numbers by their value."""
    found = sorted(set(labels))
    return sorted(found, key=Decimal) if all(re.fullmatch(r"-?\d{1,18}(\.\d+)?", label) for label in found) else found


def labels_in(samples: Sequence[tuple[Any, int]]) -> Tensor:
    """Labels of samples, (N,) int64."""
    return torch.tensor([label for _, label in samples], dtype=torch.int64)
