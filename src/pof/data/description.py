"""What a data set is to the rest of the package: images in memory, or Datasets that are read as they are needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from pof._support.batches import class_targets
from pof.data.augment import Augmentation
from pof.data.checks import DataError, check_labels, check_splits, check_statistics
from pof.data.loader import DatasetLoader, TensorLoader

DataSplit = Literal["train", "validation", "test"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageData:
    """Images small enough to live in memory as uint8."""

    name: str
    train_images: Tensor
    """(N, K, H, W) uint8."""
    train_labels: Tensor
    """(N,) int64."""
    test_images: Tensor
    """(M, K, H, W) uint8."""
    test_labels: Tensor
    """(M,) int64."""
    classes: tuple[str, ...]
    """Names of the C classes."""
    mean: tuple[float, ...]
    """Per channel, in units of the full intensity."""
    std: tuple[float, ...]
    """Per channel, in the same units."""
    augmentation: Augmentation | None
    """What happens to training images; None: nothing."""
    source: str
    """Where the files are."""
    val_labels: ClassVar[None] = None
    """No validation data of its own."""

    def __post_init__(self) -> None:
        for labels in ("train_labels", "test_labels"):
            object.__setattr__(self, labels, class_targets(getattr(self, labels)))
        check_splits(self.name, self.train_labels, self.test_labels, num_classes=self.num_classes)
        check_statistics(self.mean, self.std, channels=self.in_channels)

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        """Channels K of the images."""
        return int(self.train_images.shape[1])

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape (K, H, W) of one image."""
        return tuple(self.train_images.shape[1:])

    def subset(self, indices: Tensor) -> ImageData:
        """The data set with some of the training images only, by their indices (int64); the test set stays."""
        return replace(self, train_images=self.train_images[indices], train_labels=self.train_labels[indices])


@dataclass(frozen=True, kw_only=True, eq=False)
class LazyData:
    """Datasets that are read item by item: image folders, and custom ones."""

    name: str
    train_set: Dataset[Any]
    """Items (input tensor, label), augmented."""
    plain_train_set: Dataset[Any]
    """The same items as they are evaluated: without augmentation, as far as that is known."""
    test_set: Dataset[Any]
    """Items as they are evaluated."""
    train_labels: Tensor
    """(N,) int64."""
    test_labels: Tensor
    """(M,) int64."""
    classes: tuple[str, ...]
    """Names of the C classes."""
    image_shape: tuple[int, ...]
    """Shape (K, H, W) of one input."""
    mean: tuple[float, ...] | None
    """Per channel; None if the Datasets normalise, or do not, on their own."""
    std: tuple[float, ...] | None
    """Per channel; None if the Datasets normalise, or do not, on their own."""
    source: str
    """Where the items come from."""
    val_set: Dataset[Any] | None = None
    """Validation data of its own, as they are evaluated; None if there are none."""
    val_labels: Tensor | None = None
    """(V,) int64; None if there are none."""

    def __post_init__(self) -> None:
        check_splits(self.name, self.train_labels, self.test_labels, num_classes=self.num_classes)
        if self.val_labels is not None:
            check_labels(self.val_labels, num_classes=self.num_classes, name=f"{self.name} (validation)")

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        """Channels K of the inputs."""
        return self.image_shape[0]

    def subset(self, indices: Tensor) -> LazyData:
        """The data set with some of the training items only, by their indices (int64); the test set stays."""
        return replace(
            self,
            train_set=Subset(self.train_set, indices.tolist()),
            plain_train_set=Subset(self.plain_train_set, indices.tolist()),
            train_labels=self.train_labels[indices],
        )


Data = ImageData | LazyData


def train_loader(
    data: Data,
    *,
    batch_size: int,
    seed: int,
    indices: Tensor | None = None,
    workers: int = 0,
    device: torch.device | str = "cpu",
    drop_last: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> TensorLoader | DatasetLoader:
    """Make the loader of the training set: shuffled and augmented.

    Args:
        data: the data set.
        batch_size: samples per batch, over all processes.
        seed: of orders and augmentation.
        indices: of the training samples to use, int64; None: all.
        workers: processes that read a lazy data set; images in memory need none.
        device: where images in memory live; lazy batches are made on the CPU.
        drop_last: leave out the last batch of an epoch if it is smaller.
        rank: which process this is.
        world_size: number of processes.

    Returns:
        The loader.

    Raises:
        DataError: if the batch does not fit the data or the processes.
    """
    part = data if indices is None else data.subset(indices)
    batching = {"batch_size": batch_size, "seed": seed, "drop_last": drop_last, "rank": rank, "world_size": world_size}
    return _loader(part, "train", None, training=True, workers=workers, device=device, **batching)


def eval_loader(
    data: Data,
    split: DataSplit,
    *,
    batch_size: int,
    indices: Tensor | None = None,
    workers: int = 0,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
) -> TensorLoader | DatasetLoader:
    """Make a loader for evaluation: in the order of the data, without augmentation.

    Args:
        data: the data set.
        split: ``"test"``, ``"validation"`` (of its own), or ``"train"`` (of which another validation set is a part).
        batch_size: samples per batch, over all processes; cut to the size of the data.
        indices: of the samples of that split to use, int64; None: all.
        workers: processes that read a lazy data set; images in memory need none.
        device: where images in memory live; lazy batches are made on the CPU.
        rank: which process this is.
        world_size: number of processes.

    Returns:
        The loader.

    Raises:
        DataError: if the split is unknown or not there, or a batch has fewer samples than there are processes.
    """
    if split not in get_args(DataSplit):
        raise DataError(f"split is one of {get_args(DataSplit)}; got {split!r}")
    available = {"train": data.train_labels, "validation": data.val_labels, "test": data.test_labels}[split]
    if available is None:
        raise DataError(f"{data.name} has no validation data of its own: hold some out (pof.data.split_validation)")
    size = min(batch_size, len(available if indices is None else indices))
    batching = {"batch_size": size, "seed": 0, "rank": rank, "world_size": world_size}
    return _loader(data, split, indices, training=False, workers=workers, device=device, **batching)


def path_of(data: Data, split: DataSplit, index: int) -> str | None:
    """Find the file of a sample, by its number in the split.

    Args:
        data: the data set.
        split: which samples.
        index: from 0, in the order of :func:`eval_loader`.

    Returns:
        The path as the Dataset has it in ``samples`` (as torchvision's ``ImageFolder``); None if it has no such list.
    """
    if not isinstance(data, LazyData):
        return None
    dataset = {"train": data.plain_train_set, "validation": data.val_set, "test": data.test_set}[split]
    while isinstance(dataset, Subset):
        index = dataset.indices[index]
        dataset = dataset.dataset
    sample = getattr(dataset, "samples", {index: None})[index]
    return str(sample[0]) if isinstance(sample, tuple) and isinstance(sample[0], str | os.PathLike) else None


def _loader(
    data: Data,
    split: DataSplit,
    indices: Tensor | None,
    *,
    training: bool,
    workers: int,
    device: torch.device | str,
    **batching: Any,
) -> TensorLoader | DatasetLoader:
    """The loader of (some samples of) a split: shuffled and augmented for training, in order and plain otherwise."""
    if isinstance(data, LazyData):
        train_set = data.train_set if training else data.plain_train_set
        dataset = {"train": train_set, "validation": data.val_set, "test": data.test_set}[split]
        assert dataset is not None  # its labels were looked at
        part = dataset if indices is None else Subset(dataset, indices.tolist())
        return DatasetLoader(part, shuffle=training, num_classes=data.num_classes, workers=workers, **batching)
    images, labels = data.test_images, data.test_labels
    if split == "train":
        images, labels = data.train_images, data.train_labels
    if indices is not None:
        images, labels = images[indices], labels[indices]
    augment = data.augmentation if training else None
    options = {"shuffle": training, "augment": augment, "device": device, **batching}
    return TensorLoader(images, labels, mean=data.mean, std=data.std, **options)


def summary(data: Data) -> dict[str, str]:
    """Describe a data set for people.

    Args:
        data: the data set.

    Returns:
        Texts by what they describe: counts, classes, shapes, normalisation, where the files are.
    """
    per_class = torch.bincount(data.train_labels, minlength=data.num_classes)
    names = ", ".join(data.classes[:10]) + (", ..." if data.num_classes > 10 else "")
    smallest, largest = int(per_class.min()), int(per_class.max())
    lines = {
        "name": data.name,
        "training samples": f"{len(data.train_labels)}",
        "validation samples": "none of their own" if data.val_labels is None else f"{len(data.val_labels)}",
        "test samples": f"{len(data.test_labels)}",
        "classes": f"{data.num_classes} ({names})",
        "training samples per class": str(smallest) if smallest == largest else f"{smallest} to {largest}",
        "shape of an input": " x ".join(str(n) for n in data.image_shape),
        "mean": _numbers(data.mean),
        "std": _numbers(data.std),
        "source": data.source,
    }
    if isinstance(data, ImageData):
        lines["augmentation"] = str(data.augmentation) if data.augmentation else "none"
    return lines


def _numbers(values: Sequence[float] | None) -> str:
    return ", ".join(f"{v:.4g}" for v in values) if values else "as the data set has it"
