"""Data sets by name, by folder, or by ``package.module:factory``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from pof._support.preprocessing import Interpolation, Preprocessing
from pof.data.augment import Augmentation
from pof.data.builtin import cifar, digits, svhn
from pof.data.checks import DataError
from pof.data.custom import factory_data
from pof.data.description import Data, ImageData
from pof.data.fashion import fashion_mnist
from pof.data.folder import IMAGENET, folder_data

KNOWN: dict[str, Callable[[Path | None], ImageData]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "cifar10": partial(cifar, 10),
    "cifar100": partial(cifar, 100),
    "svhn": partial(svhn, False),
    "svhn-extra": partial(svhn, True),
}
Augment = Literal["default", "cutout", "none"]
CUTOUT_SIZE = 16
FOLDER = "folder"


def load_data(
    name: str,
    *,
    data_root: str | os.PathLike[str] | None = None,
    augment: Augment = "default",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
    interpolation: Interpolation | None = None,
    crop: float | None = None,
    preprocessing: Preprocessing | None = None,
) -> Data:
    """Load a data set.

    Args:
        name: ``digits``, ``fashion-mnist``, ``cifar10``, ``cifar100``, ``svhn``, ``svhn-extra``; an image folder,
            relative to ``data_root`` if that is given, or ``folder`` for ``data_root`` itself; or
            ``package.module:factory``.
        data_root: where the files are; nothing is downloaded then.  None: the cache folder, and a download if
            they are not there.
        augment: ``"default"``: what is usual for the data set; ``"cutout"``: that and a square of 16 pixels cut
            out (images in memory only); ``"none"``.
        mean: per channel, in units of the full intensity; None: of image files the network's, else the data set's (for
            CIFAR ImageNet's).
        std: per channel, in the same units; None: as for the mean.
        image_size: side of the inputs made of image files, in pixels; None: the network's.
        interpolation: of image files where they are resized; None: the network's.
        crop: share of a resized image file's shorter side that is kept in evaluation; None: the network's.
        preprocessing: the network's own (:func:`pof.models.preprocessing_of`), for image files; None: 224 pixels of a
            bilinear resize to 256, with the mean and deviation of ImageNet.

    Returns:
        The data set: :class:`ImageData` if its images are in memory, otherwise :class:`LazyData`.

    Raises:
        DataError: if the name is unknown, files are missing or damaged, or an option does not apply.
    """
    if augment not in get_args(Augment):
        raise DataError(f"augment is one of {', '.join(get_args(Augment))}; got {augment!r}")
    root = None if data_root is None else Path(data_root)
    given = {"size": image_size, "mean": mean, "std": std, "interpolation": interpolation, "crop": crop}
    of_files = {"image_size": image_size, "interpolation": interpolation, "crop": crop}
    if name in KNOWN:
        _refuse(name, of_files)
        data = KNOWN[name](root)
        return replace(
            data,
            augmentation=_chosen(data.augmentation, augment),
            mean=data.mean if mean is None else tuple(mean),
            std=data.std if std is None else tuple(std),
        )
    folder = root if name == FOLDER else Path(name) if root is None else root / name
    if folder is None:
        raise DataError("the data set 'folder' needs data_root, the folder with one subfolder per class")
    if name == FOLDER or os.path.isdir(folder):
        _refuse(name, {"augment": "cutout" if augment == "cutout" else None})
        return folder_data(
            folder,
            augment="none" if augment == "none" else "default",
            preprocessing=_changed(preprocessing or IMAGENET, given),
        )
    if ":" in name:
        changed = None if augment == "default" else augment
        _refuse(name, {"augment": changed, **of_files, "mean": mean, "std": std})
        return factory_data(name, root)
    known = f"{', '.join(KNOWN)}, image folders, and package.module:factory"
    raise DataError(f"unknown data set {name!r}, and no such folder: {folder}; known are {known}")


def _refuse(name: str, options: dict[str, Any]) -> None:
    for key, value in options.items():
        if value is not None:
            raise DataError(f"{key}={value} does not apply to the data set {name!r}; leave it out")


def _changed(own: Preprocessing, given: dict[str, Any]) -> Preprocessing:
    """The preprocessing with what the user gave in the place of the network's own."""
    try:
        return replace(own, **{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise DataError(str(error)) from error


def _chosen(usual: Augmentation | None, augment: Augment) -> Augmentation | None:
    if augment == "none":
        return None
    if augment == "cutout":
        return replace(usual or Augmentation(pad=0, flip=False), cutout=CUTOUT_SIZE)
    return usual
