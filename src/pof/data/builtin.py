"""Digits, CIFAR-10, CIFAR-100 and SVHN, the last three through torchvision.

With ``data_root`` the files are read from there and nothing is downloaded; without it they are looked for in, and
downloaded to, the cache folder ``$XDG_CACHE_HOME/pof`` (``~/.cache/pof``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pof._support.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from pof.data.augment import Augmentation
from pof.data.checks import DataError
from pof.data.description import ImageData
from pof.data.files import not_found, root_folder, torchvision_datasets
from pof.data.stratified import split_validation

SVHN_MEAN, SVHN_STD = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
DIGITS = tuple("0123456789")
DIGITS_TEST_SIZE = 797
SPLIT_SEED = 0


def digits(data_root: Path | None) -> ImageData:
    """The 1,797 8x8 digits of scikit-learn, not augmented; 797 of them, always the same, are the test set."""
    if data_root is not None:
        raise DataError(f"digits are part of scikit-learn: leave out data_root (got {data_root})")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("digits are part of scikit-learn: pip install scikit-learn") from error
    bunch = load_digits()
    # Intensities are 0 to 16.
    images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    train, test = split_validation(labels, DIGITS_TEST_SIZE, seed=SPLIT_SEED)
    scaled = images[train].double() / 255
    return ImageData(
        name="digits",
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        classes=DIGITS,
        mean=(float(scaled.mean()),),
        std=(float(scaled.std()),),
        augmentation=None,
        source="scikit-learn",
    )


def cifar(classes: Literal[10, 100], data_root: Path | None) -> ImageData:
    """CIFAR-10 or -100, normalised by ImageNet's mean and deviation; pad-crop by 4 and flip."""
    name, kind = f"cifar{classes}", getattr(torchvision_datasets(), f"CIFAR{classes}")
    if data_root is not None and data_root.name == kind.base_folder:
        data_root = data_root.parent
    members = [member for member, _ in (*kind.train_list, *kind.test_list)] + [kind.meta["filename"]]
    files = [f"{kind.base_folder}/{member}" for member in members]
    train, test = (_read(name, kind, {"train": part}, data_root, files, f"unpack {kind.url}") for part in (True, False))
    return ImageData(
        name=name,
        train_images=_channels_first(train.data),
        train_labels=torch.tensor(train.targets),
        test_images=_channels_first(test.data),
        test_labels=torch.tensor(test.targets),
        classes=tuple(train.classes),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        augmentation=Augmentation(),
        source=str(Path(train.root) / kind.base_folder),
    )


def svhn(extra: bool, data_root: Path | None) -> ImageData:
    """SVHN's 73,257 training images, or 604,388 with its extra ones (1.9 GB in memory); pad-crop by 4."""
    name, kind = "svhn-extra" if extra else "svhn", torchvision_datasets().SVHN
    loaded = []
    for part in ("train", "extra", "test") if extra else ("train", "test"):
        url, file, _ = kind.split_list[part]
        loaded.append(_read(name, kind, {"split": part}, data_root, [file], f"copy {url}"))
    images = [torch.from_numpy(part.data) for part in loaded]
    labels = [torch.from_numpy(part.labels) for part in loaded]
    return ImageData(
        name=name,
        train_images=torch.cat(images[:-1]).contiguous(),
        train_labels=torch.cat(labels[:-1]),
        test_images=images[-1].contiguous(),
        test_labels=labels[-1],
        classes=DIGITS,
        mean=SVHN_MEAN,
        std=SVHN_STD,
        augmentation=Augmentation(flip=False),  # a mirrored digit is another sign
        source=str(loaded[0].root),
    )


def _read(
    name: str, kind: Any, options: dict[str, Any], data_root: Path | None, files: Sequence[str], remedy: str
) -> Any:
    # Torchvision compares the md5 of every file before it reads one.
    root = root_folder(data_root)
    for file in files:
        if (root / file).exists() and not (root / file).is_file():
            raise DataError(f"{name}: {root / file} is no regular file; {remedy}")
    try:
        return kind(root, download=data_root is None, **options)
    except ImportError as error:
        raise DataError(f"{name} needs another package: {error}") from error
    except (OSError, RuntimeError) as error:
        raise not_found(name, files, data_root=data_root, remedy=remedy, error=error) from error


def _channels_first(images: Any) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
