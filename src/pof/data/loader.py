"""Loaders whose batch i of epoch e depends on (seed, e, i) alone, for tensors in memory and for any Dataset.

Both share the interface ``set_epoch(e)``, ``len``, iteration, and ``iterate(e, start)``, which begins at any batch
without computing the earlier ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from pof._support.batches import class_targets, unpack
from pof._support.random import derive_seed, isolated, seeded
from pof.data.augment import Augmentation, augment, draw_augmentation, normalise
from pof.data.batch_sampler import StatelessBatchSampler
from pof.data.checks import DataError, check_batch, check_statistics
from pof.data.mixing import Mixing


class EpochLoader(ABC):
    """What both loaders have in common.

    Plain iteration counts the epochs itself, so that a loop without ``set_epoch`` sees a new order each time.
    ``mixing`` changes whole batches; under several processes each mixes its own share.
    """

    def __init__(self, batch_sampler: StatelessBatchSampler, mixing: Mixing | None) -> None:
        self.batch_sampler = batch_sampler
        self.mixing = mixing
        self.epoch = 0

    @abstractmethod
    def iterate(self, epoch: int, start: int = 0) -> Generator[Any, None, None]:
        """Iterate over the batches of ``epoch`` from number ``start`` on."""

    def __iter__(self) -> Iterator[Any]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self.iterate(epoch)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next plain iteration."""
        self.epoch = epoch

    def _mixed(self, batch: Any, epoch: int, index: int) -> Any:
        if self.mixing is None:
            return batch
        return self.mixing(batch, derive_seed(self.batch_sampler.seed, "mix", epoch, index))


class TensorLoader(EpochLoader):
    """Batches of images in memory, augmented and normalised a whole batch at a time.

    Args:
        images: (N, K, H, W) uint8.
        labels: (N,) int64.
        batch_size: samples per global batch.
        mean: per channel, in units of the full intensity.
        std: per channel, in the same units.
        shuffle: whether each epoch has an order of its own.
        seed: of orders and augmentation.
        augment: what happens to the images; None: they are only normalised.
        drop_last: leave out the last batch if it is smaller.
        device: where images live and batches are made.
        rank: which process this is.
        world_size: number of processes; each yields a contiguous part of the same global batch.
        weights: (N,) chances of the samples, which are then drawn with replacement; None: each once an epoch.
        mixing: mixup or cutmix of each batch; labels are probabilities (N, C) then.

    Raises:
        DataError: if the tensors are not of these kinds, the batch is larger than the data, or a batch has
            fewer samples than there are processes.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        shuffle: bool,
        seed: int,
        augment: Augmentation | None = None,
        drop_last: bool = False,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        weights: Tensor | None = None,
        mixing: Mixing | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise DataError(f"images must be uint8 (N, K, H, W); got {images.dtype} {tuple(images.shape)}")
        labels = class_targets(labels)
        if labels.shape != images.shape[:1]:
            raise DataError(f"{len(images)} images need as many labels; got {tuple(labels.shape)}")
        check_statistics(tuple(mean), tuple(std), channels=images.shape[1])
        super().__init__(
            StatelessBatchSampler(
                size=len(images),
                batch_size=batch_size,
                shuffle=shuffle,
                seed=seed,
                drop_last=drop_last,
                rank=rank,
                world_size=world_size,
                weights=weights,
            ),
            mixing,
        )
        self.device = torch.device(device)
        self.images, self.labels = images.to(self.device), labels.to(self.device)
        self.augmentation = augment
        self._mean = torch.tensor(mean, dtype=torch.float32, device=self.device)
        self._std = torch.tensor(std, dtype=torch.float32, device=self.device)

    def iterate(self, epoch: int, start: int = 0) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Iterate over the batches of ``epoch`` from number ``start`` on.

        Args:
            epoch: from 0.
            start: number of the first batch.

        Yields:
            Images, (N, K, H, W) float32, and labels, (N,) int64.
        """
        order = self.batch_sampler.order(epoch)
        for index in range(start, len(self)):
            yield self._mixed(self._make(order, epoch, index), epoch, index)

    def _make(self, order: Tensor, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        sampler = self.batch_sampler
        rows = sampler.rows(order, index).to(self.device)
        images, labels = self.images[rows], self.labels[rows]
        if self.augmentation is None:
            return normalise(images, self._mean, self._std), labels
        # Drawn for the global batch: several processes see together what one would see.
        shape = torch.Size([sampler.global_size(index), *images.shape[1:]])
        generator = seeded(derive_seed(sampler.seed, "augment", epoch, index))
        draws = draw_augmentation(self.augmentation, shape, generator).part(sampler.share(index), self.device)
        return augment(images, draws, self.augmentation, mean=self._mean, std=self._std), labels


class DatasetLoader(EpochLoader):
    """Batches of any map-style Dataset, read by worker processes.

    Every sample is read with random numbers of its own, seeded from (seed, epoch, sample): augmentation inside the
    Dataset is the same for any number of workers, and after a resume.

    Args:
        dataset: items (input tensor, label), or dicts.
        batch_size: samples per global batch.
        shuffle: whether each epoch has an order of its own.
        seed: of orders and augmentation.
        num_classes: if given, labels are checked against it.
        workers: processes that read; 0: none but this one.
        drop_last: leave out the last batch if it is smaller.
        rank: which process this is.
        world_size: number of processes; each yields a contiguous part of the same global batch.
        weights: (N,) chances of the samples, which are then drawn with replacement; None: each once an epoch.
        mixing: mixup or cutmix of each batch; labels are probabilities (N, C) then.

    Raises:
        DataError: if the batch is larger than the data, or a batch has fewer samples than there are processes.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
        num_classes: int | None = None,
        workers: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        weights: Tensor | None = None,
        mixing: Mixing | None = None,
    ) -> None:
        super().__init__(
            StatelessBatchSampler(
                size=len(cast(Sized, dataset)),
                batch_size=batch_size,
                shuffle=shuffle,
                seed=seed,
                drop_last=drop_last,
                rank=rank,
                world_size=world_size,
                weights=weights,
            ),
            mixing,
        )
        self.dataset = dataset
        self.num_classes = num_classes
        self.workers = workers

    def iterate(self, epoch: int, start: int = 0) -> Generator[Any, None, None]:
        """Iterate over the batches of ``epoch`` from number ``start`` on.

        Args:
            epoch: from 0.
            start: number of the first batch.

        Yields:
            What ``default_collate`` makes of the items: inputs, (N, ...), and targets, (N,), or a dict.

        Raises:
            DataError: if a file cannot be read, an input is not finite, or a label is out of range.
        """
        order = self.batch_sampler.order(epoch)
        stored = _stored(self.dataset)
        batches = self._read(order, epoch, start) if stored is None else self._indexed(*stored, order, start)
        for index, batch in enumerate(batches, start):
            yield self._mixed(batch, epoch, index)

    def _indexed(
        self, tensors: tuple[Tensor, ...], chosen: Tensor | None, order: Tensor, start: int
    ) -> Iterator[list[Tensor]]:
        """Batches of tensors in memory."""
        for index in range(start, len(self)):
            rows = self.batch_sampler.rows(order, index)
            batch = [tensor[rows if chosen is None else chosen[rows]] for tensor in tensors]
            check_batch(*unpack(batch), num_classes=self.num_classes)
            yield batch

    def _read(self, order: Tensor, epoch: int, start: int) -> Iterator[Any]:
        """Batches read item by item, each on a seed of its own; of a sample that is drawn twice by its place too."""
        sampler = self.batch_sampler
        rows = [sampler.rows(order, index).tolist() for index in range(start, len(self))]
        again = sampler.weights is not None
        keyed = [
            [
                (row, derive_seed(sampler.seed, "item", epoch, row, *((index, sampler.rank, place) if again else ())))
                for place, row in enumerate(batch)
            ]
            for index, batch in enumerate(rows, start)
        ]
        loader = DataLoader(
            _SeededItems(self.dataset),
            batch_sampler=keyed,
            num_workers=self.workers,
            collate_fn=CheckedCollate(self.num_classes),
            pin_memory=torch.cuda.is_available(),
            generator=seeded(derive_seed(sampler.seed, "workers", epoch)),
        )
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch


def _stored(dataset: Dataset[Any]) -> tuple[tuple[Tensor, ...], Tensor | None] | None:
    """The tensors of a data set that is nothing else, and which of its rows; they are indexed by whole batches."""
    if type(dataset) is Subset:
        found = _stored(dataset.dataset)
        rows = torch.tensor(list(dataset.indices), dtype=torch.int64)
        return found and (found[0], rows if found[1] is None else found[1][rows])
    return (dataset.tensors, None) if type(dataset) is TensorDataset else None


class _SeededItems(Dataset[Any]):
    """Items by (index, seed).  A DataError is handed on as a value: raised in a worker, a traceback joins its text."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> Any:
        index, seed = key
        # Custom data sets draw from the global generators of torch, Python and NumPy.
        with isolated(seed):
            try:
                return self.dataset[index]
            except DataError as error:
                return error


@dataclass(frozen=True)
class CheckedCollate:
    """Makes a batch of items and checks it; a DataError is handed on as a value."""

    num_classes: int | None

    def __call__(self, items: list[Any]) -> Any:
        """The batch, or the DataError."""
        unreadable = next((item for item in items if isinstance(item, DataError)), None)
        if unreadable is not None:
            return unreadable
        try:
            batch = default_collate(items)
        except (RuntimeError, TypeError) as error:
            return DataError(f"the items of a batch cannot be stacked: {error}; resize them to one shape")
        try:
            check_batch(*unpack(batch), num_classes=self.num_classes)
        except DataError as error:
            return error
        return batch
