"""Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747) from its IDX files, wherever they came from.

Debian's package holds the same content recompressed, so its checksums are others than upstream's; the files are
therefore read directly and checked by their headers.
"""

from __future__ import annotations

from pathlib import Path

from pof.data.augment import Augmentation
from pof.data.checks import DataError
from pof.data.description import ImageData
from pof.data.files import not_found, root_folder, torchvision_datasets
from pof.data.idx import read_idx

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
PARTS = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
NAMES = "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"
CLASSES = tuple(NAMES.split(", "))
MEAN, STD = (0.2860,), (0.3530,)


def fashion_mnist(data_root: Path | None) -> ImageData:
    """The four IDX files, in a folder or in ``FashionMNIST/raw`` below it, ``.gz`` or not; pad-crop by 4 and flip."""
    folder = _folder(data_root)
    train_images, train_labels, test_images, test_labels = (read_idx(_file(folder, part)) for part in PARTS)
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise DataError(
                f"{folder}: images {tuple(images.shape)} and labels {tuple(labels.shape)} do not belong together"
            )
    return ImageData(
        name="fashion-mnist",
        train_images=train_images[:, None],
        train_labels=train_labels.long(),
        test_images=test_images[:, None],
        test_labels=test_labels.long(),
        classes=CLASSES,
        mean=MEAN,
        std=STD,
        augmentation=Augmentation(),
        source=str(folder),
    )


def _folder(data_root: Path | None) -> Path:
    root = root_folder(data_root)
    downloaded = root / "FashionMNIST" / "raw"
    folders = [root, downloaded] if data_root is not None else [downloaded, DEBIAN_FOLDER]
    for folder in folders:
        if all(_file(folder, part).is_file() for part in PARTS):
            return folder
    kind = torchvision_datasets().FashionMNIST
    files = [f"{part}.gz" for part in PARTS]
    remedy = f"copy the files from {kind.mirrors[0]} (or, on Debian: apt-get install dataset-fashion-mnist)"
    if data_root is not None:
        raise not_found("fashion-mnist", files, data_root=data_root, remedy=remedy, error=None)
    try:
        kind(root, download=True)
    except (OSError, RuntimeError) as error:
        raise not_found("fashion-mnist", files, data_root=None, remedy=remedy, error=error) from error
    return downloaded


def _file(folder: Path, part: str) -> Path:
    return next((f for f in (folder / part, folder / f"{part}.gz") if f.is_file()), folder / part)
