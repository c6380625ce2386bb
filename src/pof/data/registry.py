"""Data sets by name, by folder, or by ``package.module:factory``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pof._support.preprocessing import Interpolation, Preprocessing
from pof.data.arrays import array_data
from pof.data.augment import Augmentation
from pof.data.builtin import cifar, digits, svhn
from pof.data.checks import DataError
from pof.data.custom import factory_data
from pof.data.description import Data, ImageData
from pof.data.fashion import fashion_mnist
from pof.data.folder import folder_data
from pof.data.hub import PREFIX, hub_data, is_hub
from pof.data.index import INDEX_ENDS, index_data
from pof.data.npy import is_arrays
from pof.data.parts import IMAGENET, Preparation
from pof.data.shards import is_shards, shard_data

KNOWN: dict[str, Callable[[Path | None], ImageData]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "cifar10": partial(cifar, 10),
    "cifar100": partial(cifar, 100),
    "svhn": partial(svhn, False),
    "svhn-extra": partial(svhn, True),
}
Augment = Literal["default", "cutout", "randaugment", "none"]
CUTOUT_SIZE = 16
FOLDER = "folder"
NAMED = f"{', '.join(KNOWN)}, image folders, .csv, .parquet and .npz files, and package.module:factory"


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
        name: ``digits``, ``fashion-mnist``, ``cifar10``, ``cifar100``, ``svhn``, ``svhn-extra``; relative to
            ``data_root`` if that is given, an image folder (or ``folder`` for ``data_root`` itself), an index
            (``.csv``, ``.tsv``, ``.parquet``), arrays (``.npz``, a folder of ``.npy``), a folder of Hugging Face's
            datasets (``hf:FOLDER``), WebDataset shards (``NAME-{000..009}.tar``, a folder of ``.tar``); or
            ``package.module:factory``.
        data_root: where the files are, and nothing is downloaded.  None: the cache folder, or a download.
        augment: ``"default"``: what is usual for the data set; ``"cutout"``: that and a square of 16 pixels cut
            out (images in memory only); ``"randaugment"``: that and RandAugment; ``"none"``.
        mean: per channel, of full intensity 1; None: of image files the network's, else the data set's.
        std: per channel, in the same units; None: as for the mean.
        image_size: side of the inputs made of image files, in pixels; None: the network's.
        interpolation: of image files where they are resized; None: the network's.
        crop: share of a resized image file's shorter side that is kept in evaluation; None: the network's.
        preprocessing: the network's own, for image files (:func:`pof.models.preprocessing_of`); None: ImageNet's.

    Returns:
        :class:`ImageData` (in memory), :class:`LazyData`, or :class:`StreamData` (without length).

    Raises:
        DataError: if the name is unknown, files are missing or damaged, or an option does not apply.
    """
    if augment not in get_args(Augment):
        raise DataError(f"augment is one of {', '.join(get_args(Augment))}; got {augment!r}")
    root = None if data_root is None else Path(data_root)
    of_files = {"image_size": image_size, "interpolation": interpolation, "crop": crop}
    if name in KNOWN:
        _refuse(name, of_files)
        data, said = KNOWN[name](root), _statistics(mean, std)
        chosen = _chosen(data.augmentation, augment)
        return replace(data, augmentation=chosen, mean=said.get("mean", data.mean), std=said.get("std", data.std))
    reader = _reader(place := _place(name, root), name)
    if reader is array_data and image_size is None:
        _refuse(name, of_files)
        return array_data(place, _chosen(None, augment), _statistics(mean, std), None)
    if reader is not None:
        _refuse(name, {"augment": "cutout" if augment == "cutout" else None})
        preparation = Preparation(
            _changed(preprocessing or IMAGENET, {**of_files, "mean": mean, "std": std}), cast(Any, augment)
        )
        return array_data(place, None, {}, preparation) if reader is array_data else reader(place, preparation)
    if ":" in name:
        changed = {} if augment == "default" else {"augment": augment}
        _refuse(name, {**changed, **of_files, "mean": mean, "std": std})
        return factory_data(name, root)
    raise DataError(_unknown(name, place))


def check_known(name: str, data_root: str | os.PathLike[str] | None = None) -> None:
    """Refuse a name that is no data set's, no folder's, no file's and no factory's; nothing is read."""
    if name in KNOWN:
        return
    place = _place(name, None if data_root is None else Path(data_root))
    if ":" not in name and _reader(place, name) is None:
        raise DataError(_unknown(name, place))


def _unknown(name: str, place: Path) -> str:
    return f"unknown data set {name!r}, and no such folder or file: {place}; known are {NAMED}"


def _statistics(mean: Sequence[float] | None, std: Sequence[float] | None) -> dict[str, tuple[float, ...]]:
    """Those that are given."""
    said = {"mean": mean, "std": std}
    return {key: tuple(values) for key, values in said.items() if values is not None}


def _place(name: str, root: Path | None) -> Path:
    """Where the files are."""
    folder = name.removeprefix(PREFIX)
    place = root if name == FOLDER else Path(folder) if root is None else root / folder
    if place is None:
        raise DataError("the data set 'folder' needs data_root, the folder with one subfolder per class")
    if name.startswith(PREFIX) and not is_hub(place):
        raise DataError(
            f"{name}: {place} is no folder that datasets wrote: give one of save_to_disk or of Parquet shards"
            " (datasets.load_dataset(NAME).save_to_disk(FOLDER) makes one)"
        )
    return place


def _reader(place: Path, name: str) -> Callable[..., Data] | None:
    """What reads a file or folder."""
    if name == FOLDER:
        return folder_data
    if is_arrays(place):
        return array_data
    if is_hub(place):
        return hub_data
    if is_shards(place):
        return shard_data
    if os.path.isdir(place):
        return folder_data
    return index_data if place.suffix.lower() in INDEX_ENDS and place.exists() else None


def _refuse(name: str, options: dict[str, Any]) -> None:
    for key, value in options.items():
        if value is not None:
            raise DataError(f"{key}={value} does not apply to the data set {name!r}; leave it out")


def _changed(own: Preprocessing, given: dict[str, Any]) -> Preprocessing:
    """The preprocessing with what the user gave instead of the network's own."""
    said = {"size" if name == "image_size" else name: value for name, value in given.items() if value is not None}
    try:
        return replace(own, **said)
    except ValueError as error:
        raise DataError(str(error)) from error


def _chosen(usual: Augmentation | None, augment: Augment) -> Augmentation | None:
    if augment == "none":
        return None
    if augment == "cutout":
        return replace(usual or Augmentation(pad=0, flip=False), cutout=CUTOUT_SIZE)
    if augment == "randaugment":
        return replace(usual or Augmentation(pad=0, flip=False), randaugment=True)
    return usual
