"""Image folders: one subfolder per class, read from disk by the loader's workers (torchvision's conventions).

``train/`` and ``test/`` (or, without one, ``val/``) below it are used if they are there.  Otherwise a fifth of the
images, always the same and stratified, is the test set.
Training images: random resized crop and flip; evaluation: resize to 8/7 of the size, centre crop.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pof.data.builtin import IMAGENET_MEAN, IMAGENET_STD
from pof.data.checks import DataError
from pof.data.description import LazyData
from pof.data.files import torchvision_datasets
from pof.data.stratified import split_validation

IMAGE_SIZE = 224
TEST_FOLDERS = ("test", "val")
TEST_SHARE = 0.2
SPLIT_SEED = 0
Sample = tuple[str, int]


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Image files with their labels; ``transform`` makes a tensor of an RGB image."""

    def __init__(self, samples: list[Sample], transform: Callable[[Any], Tensor]) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from torchvision.datasets.folder import default_loader

        path, label = self.samples[index]
        try:
            image = default_loader(path)
        except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for some damaged files
            raise DataError(f"{path}: not a readable image ({error}); replace or remove it") from error
        return self.transform(image), label


def folder_data(
    root: Path,
    *,
    image_size: int = IMAGE_SIZE,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    augment: Literal["default", "none"] = "default",
) -> LazyData:
    """Describe an image folder by the names of its files; ``augment="none"`` treats training images like the others."""
    if image_size < 1:
        raise DataError(f"image_size is a number of pixels; got {image_size}")
    if not root.is_dir():
        raise DataError(f"no such folder: {root}")
    # A class may be called "train" too: its folder has images in it, no folders.
    train_root = root / "train" if _has_subfolders(root / "train") else root
    test_root = next((root / name for name in TEST_FOLDERS if _has_subfolders(root / name)), None)
    classes, samples = _samples(train_root)
    if train_root != root and test_root is not None:
        train, (_, test) = samples, _samples(test_root, classes)
    else:
        if len(classes) < 2:
            raise DataError(f"{train_root}: only one class ({classes[0]}); a classifier needs at least two subfolders")
        kept, taken = split_validation(_labels(samples), TEST_SHARE, seed=SPLIT_SEED)
        train, test = ([samples[i] for i in rows.tolist()] for rows in (kept, taken))
    plain = _transform(image_size, mean, std, augment=False)
    return LazyData(
        name=root.resolve().name,
        train_set=ImageFiles(train, _transform(image_size, mean, std, augment=augment == "default")),
        plain_train_set=ImageFiles(train, plain),
        test_set=ImageFiles(test, plain),
        train_labels=_labels(train),
        test_labels=_labels(test),
        classes=tuple(classes),
        image_shape=(3, image_size, image_size),
        mean=mean,
        std=std,
        source=str(root),
    )


def _samples(root: Path, classes: list[str] | None = None) -> tuple[list[str], list[Sample]]:
    # Labels of a test folder are those of the training folder, whichever classes it has.
    folder = torchvision_datasets().folder
    try:
        own, _ = folder.find_classes(root)
    except FileNotFoundError as error:
        raise DataError(
            f"{root}: no subfolders in it; an image folder has one subfolder of images per class"
        ) from error
    known = own if classes is None else classes
    if unknown := sorted(set(own) - set(known)):
        raise DataError(f"{root}: the class {unknown[0]!r} has no training images; there are {', '.join(known)}")
    indices = {name: known.index(name) for name in own}
    try:
        samples: list[Sample] = folder.make_dataset(str(root), indices, extensions=folder.IMG_EXTENSIONS)
    except FileNotFoundError as error:
        raise DataError(f"{root}: {error}; add images to these folders, or remove them") from error
    return known, samples


def _has_subfolders(folder: Path) -> bool:
    return folder.is_dir() and any(entry.is_dir() for entry in folder.iterdir())


def _labels(samples: list[Sample]) -> Tensor:
    return torch.tensor([label for _, label in samples], dtype=torch.int64)


def _transform(size: int, mean: tuple[float, ...], std: tuple[float, ...], *, augment: bool) -> Callable[[Any], Tensor]:
    from torchvision.transforms import v2

    geometry = (
        [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
        if augment
        else [v2.Resize(round(size * 8 / 7), antialias=True), v2.CenterCrop(size)]
    )
    values = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std), v2.ToPureTensor()]
    composed: Callable[[Any], Tensor] = v2.Compose([*geometry, *values])
    return composed
