"""What a data set is to the rest of the package: images in memory, or Datasets that are read as they are needed."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from pof._support.batches import class_targets
from pof.data.augment import Augmentation
from pof.data.checks import DataError, check_splits, check_statistics
from pof.data.loader import DatasetLoader, TensorLoader
from pof.data.mixing import Mixing, class_weights
from pof.data.streaming import StreamData, StreamLoader

DataSplit = Literal["train", "validation", "test"]
Loader = TensorLoader | DatasetLoader | StreamLoader


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
    val_images: Tensor | None = None
    """(V, K, H, W) uint8: validation data of its own; None if there are none."""
    val_labels: Tensor | None = None
    """(V,) int64; None if there are none."""
    test_taken: bool = False
    """Whether the test set is a fifth of the training samples, as there are no test data."""

    def __post_init__(self) -> None:
        for labels in ("train_labels", "test_labels", "val_labels"):
            if getattr(self, labels) is not None:
                object.__setattr__(self, labels, class_targets(getattr(self, labels)))
        check_splits(
            self.name, self.train_labels, self.test_labels, num_classes=self.num_classes, validation=self.val_labels
        )
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
    """(N,) int64; of other tasks floating point, (N,) or (N, C)."""
    test_labels: Tensor
    """(M,) int64, or as those."""
    classes: tuple[str, ...]
    """Names of the C classes, or of the outputs that floating-point targets are for."""
    image_shape: tuple[int, ...]
    """Shape of one input: (K, H, W), or (D,) of a feature vector."""
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
    test_taken: bool = False
    """Whether the test set is a fifth of the training samples, as there are no test data."""

    def __post_init__(self) -> None:
        check_splits(
            self.name, self.train_labels, self.test_labels, num_classes=self.num_classes, validation=self.val_labels
        )

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        """Channels K of the inputs; of feature vectors their width."""
        return self.image_shape[0]

    def subset(self, indices: Tensor) -> LazyData:
        """The data set with some of the training items only, by their indices (int64); the test set stays."""
        return replace(
            self,
            train_set=Subset(self.train_set, indices.tolist()),
            plain_train_set=Subset(self.plain_train_set, indices.tolist()),
            train_labels=self.train_labels[indices],
        )


Data = ImageData | LazyData | StreamData


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
    balanced: bool = False,
    mixing: Mixing | None = None,
    steps: int | None = None,
) -> Loader:
    """Make the loader of the training set: shuffled and augmented.

    Args:
        data: the data set.
        batch_size: samples per batch, over all processes; cut to the size of the data, which is said.
        seed: of orders and augmentation.
        indices: of the training samples to use, int64; None: all.
        workers: processes that read a lazy data set; images in memory need none.
        device: where images in memory live; lazy batches are made on the CPU.
        drop_last: leave out the last batch of an epoch if it is smaller.
        rank: which process this is.
        world_size: number of processes.
        balanced: draw samples with replacement, each class as often as any other.
        mixing: mixup or cutmix of each batch.
        steps: batches per epoch, of a stream, which has no length; only of that.

    Returns:
        The loader.

    Raises:
        DataError: if the batch does not fit the processes, or ``steps`` the kind of data.
    """
    if mixing is not None and len(data.image_shape) != 3:
        raise DataError(
            f"{data.name}: mixup and cutmix are for images (K, H, W), and its inputs are {data.image_shape}: leave them"
            " out"
        )
    if isinstance(data, StreamData):
        return _stream_loader(data, batch_size, seed, workers, mixing, steps, plain=not balanced and world_size == 1)
    if steps is not None:
        raise DataError(f"{data.name} has a length: leave out steps_per_epoch ({steps}), which is for streams")
    part = data if indices is None else data.subset(indices)
    labels = part.train_labels
    if batch_size > len(labels):
        warnings.warn(
            f"batch_size {batch_size} is larger than the training data: mini-batches have all {len(labels)} samples",
            stacklevel=2,
        )
    weights = class_weights(labels, data.num_classes)[labels] if balanced else None
    batching: dict[str, Any] = {"seed": seed, "drop_last": drop_last, "rank": rank, "world_size": world_size}
    batching |= {"batch_size": min(batch_size, len(labels)), "weights": weights, "mixing": mixing}
    return _loader(part, "train", None, training=True, workers=workers, device=device, **batching)


def _stream_loader(
    data: StreamData, batch_size: int, seed: int, workers: int, mixing: Mixing | None, steps: int | None, *, plain: bool
) -> StreamLoader:
    if not plain:
        raise DataError(f"{data.name}: a stream is not balanced, nor shared by processes: give a Dataset with a length")
    if steps is None:
        raise DataError(f"{data.name}: the training data are a stream without a length: give --steps_per_epoch")
    options = {"batch_size": batch_size, "steps": steps, "seed": seed, "workers": workers}
    return StreamLoader(data.train_set, num_classes=data.num_classes, mixing=mixing, **options)


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
    available = (
        data.train_labels if split == "train" else {"validation": data.val_labels, "test": data.test_labels}[split]
    )
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
    if not isinstance(data, ImageData):
        train_set = None if isinstance(data, StreamData) else data.train_set if training else data.plain_train_set
        dataset = {"train": train_set, "validation": data.val_set, "test": data.test_set}[split]
        assert dataset is not None  # its labels were looked at
        part = dataset if indices is None else Subset(dataset, indices.tolist())
        return DatasetLoader(part, shuffle=training, num_classes=data.num_classes, workers=workers, **batching)
    images, labels = {
        "train": (data.train_images, data.train_labels),
        "validation": (data.val_images, data.val_labels),
        "test": (data.test_images, data.test_labels),
    }[split]
    assert images is not None  # its labels were looked at
    assert labels is not None
    if indices is not None:
        images, labels = images[indices], labels[indices]
    augment = data.augmentation if training else None
    options = {"shuffle": training, "augment": augment, "device": device, **batching}
    return TensorLoader(images, labels, mean=data.mean, std=data.std, **options)
