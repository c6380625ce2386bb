"""Data without a length: an ``IterableDataset``, such as a ``webdataset`` pipeline, that a factory returns.

An epoch is a number of mini-batches.  The next one goes on where it ended; a stream that ends starts anew.  Batch i of
epoch e is always the same, so a run resumes bitwise; to get there everything before is read again, for which there is
no shorter way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pof._support.random import derive_seed, isolated, seeded
from pof.data.checks import DataError, check_labels
from pof.data.loader import CheckedCollate
from pof.data.mixing import Mixing


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamData:
    """Training data as a stream; validation and test data have a length."""

    name: str
    train_set: IterableDataset[Any]
    """Items (input tensor, label)."""
    test_set: Dataset[Any]
    """Items as they are evaluated."""
    test_labels: Tensor
    """(M,) int64."""
    classes: tuple[str, ...]
    """Names of the C classes."""
    image_shape: tuple[int, ...]
    """Shape of one input."""
    source: str
    """Where the items come from."""
    val_set: Dataset[Any] | None = None
    """Validation data; None if there are none."""
    val_labels: Tensor | None = None
    """(V,) int64; None if there are none."""
    test_taken: bool = False
    """Never: a stream has test data of its own."""
    mean: None = None
    """The Datasets normalise, or do not, on their own."""
    std: None = None
    """As the mean."""

    def __post_init__(self) -> None:
        for part, labels in (("test", self.test_labels), ("validation", self.val_labels)):
            if labels is not None:
                check_labels(labels, num_classes=self.num_classes, name=f"{self.name} ({part})")

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        """Channels K of the inputs; of feature vectors their width."""
        return self.image_shape[0]

    @property
    def train_labels(self) -> Tensor:
        """Nobody knows them before the end: a DataError that says what to do."""
        raise DataError(
            f"{self.name}: the training data are a stream (IterableDataset), of which no part can be held out, chosen"
            " or balanced: let the factory return (training, validation, test), or give --validation 0"
        )

    def subset(self, indices: Tensor) -> StreamData:
        """There is none: a DataError that says what to do."""
        raise DataError(f"{self.name}: a stream has no {len(indices)} chosen samples; give a Dataset with a length")


class StreamLoader:
    """Mini-batches of a stream, ``steps`` of them an epoch.

    Args:
        dataset: items (input tensor, label); where workers read it, it shares the items out among them itself.
        batch_size: samples per batch.
        steps: batches per epoch.
        seed: of what the stream draws from the generators of torch, Python and NumPy.
        num_classes: labels are checked against it.
        workers: processes that read; 0: none but this one.
        mixing: mixup or cutmix of each batch.

    Raises:
        DataError: if a number is below 1.
    """

    def __init__(
        self,
        dataset: IterableDataset[Any],
        *,
        batch_size: int,
        steps: int,
        seed: int,
        num_classes: int,
        workers: int = 0,
        mixing: Mixing | None = None,
    ) -> None:
        for name, number in (("batch_size", batch_size), ("steps_per_epoch", steps)):
            if number < 1:
                raise DataError(f"{name} must be at least 1; got {number}")
        self.dataset, self.batch_size, self.steps, self.seed = dataset, batch_size, steps, seed
        self.num_classes, self.workers, self.mixing = num_classes, workers, mixing
        self.epoch = 0
        self._ahead: tuple[int, Iterator[Any]] | None = None

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self.iterate(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next plain iteration."""
        self.epoch = epoch

    def iterate(self, epoch: int, start: int = 0) -> Generator[Any, None, None]:
        """Iterate over the batches of ``epoch`` from number ``start`` on.

        Args:
            epoch: from 0.
            start: number of the first batch.

        Yields:
            Inputs, (N, ...), and targets, (N,), or what mixing makes of them.

        Raises:
            DataError: if the stream has not one full batch, or a batch is not as it must be.
        """
        first = epoch * self.steps + start
        end = (epoch + 1) * self.steps
        if self._ahead is not None and self._ahead[0] == first:
            (_, batches), self._ahead = self._ahead, None
        else:
            batches = self._batches()
            deque(islice(batches, first), maxlen=0)
        for number in range(first, end):
            batch = next(batches)
            yield batch if self.mixing is None else self.mixing(batch, derive_seed(self.seed, "mix", number))
        if self._ahead is None or self._ahead[0] < end:
            self._ahead = end, batches

    def _batches(self) -> Iterator[Any]:
        """All batches, without end; each is made on a seed of its own."""
        number = passes = 0
        while True:
            began, seed = number, derive_seed(self.seed, "pass", passes)
            loader = DataLoader(
                self.dataset,
                batch_size=self.batch_size,
                drop_last=True,
                num_workers=self.workers,
                collate_fn=CheckedCollate(self.num_classes),
                pin_memory=torch.cuda.is_available(),
                generator=seeded(seed),
            )
            with isolated(seed):
                batches = iter(loader)
            while True:
                with isolated(derive_seed(self.seed, "stream", number)):
                    batch = next(batches, None)
                if batch is None:
                    break
                if isinstance(batch, DataError):
                    raise batch
                yield batch
                number += 1
            if number == began:
                raise DataError(f"the stream has not {self.batch_size} samples, a full mini-batch: lower batch_size")
            passes += 1


def first_input(dataset: IterableDataset[Any], name: str) -> Any:
    """The first item of a stream; the global generators stay."""
    with isolated(0), closing(_items(dataset)) as items:
        for item in items:
            return item
    raise DataError(f"{name}: no samples")


def _items(dataset: IterableDataset[Any]) -> Generator[Any, None, None]:
    yield from dataset
