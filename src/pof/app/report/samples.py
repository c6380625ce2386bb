"""The samples that the networks of a report are measured on: the same ones in the same order for all of them.

Bounded by a number of mini-batches, and drawn at random, since image folders are ordered by class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from pof._support.checks import whole_number
from pof._support.random import seeded
from pof.app import job
from pof.app.options import DataOptions
from pof.app.splits import split
from pof.data import Data, eval_loader, train_loader
from pof.data.description import DataSplit, Loader

MOST_SAMPLES = 10**6
"""Of each kind: they are held in memory together."""


@dataclass(frozen=True)
class Bounds:
    """How much is measured, and where."""

    batches: int
    """Mini-batches of each kind; those of the calibration have 500 samples."""
    batch_size: int
    """Samples per mini-batch; the radius depends on it."""
    device: torch.device

    def __post_init__(self) -> None:
        whole_number("batches", self.batches, 1)
        whole_number("batch_size", self.batch_size, 1)


@dataclass(frozen=True)
class Samples:
    """Loaders of bounded parts of a data set."""

    train: Loader
    """As they are evaluated: not augmented."""
    test: Loader
    drawn_train: Iterable[Any]
    """Mini-batches as the training sees them, augmented; without end."""
    drawn_test: Loader
    """Mini-batches of the same size."""
    drawn_validation: Loader | None
    """Mini-batches of validation samples; None if there are too few for one."""
    calibration: Loader
    """Of the test set, large batches."""
    validation: Loader | None
    """All validation samples; None without a validation split."""
    batches: int

    @property
    def plane_batches(self) -> int:
        """Mini-batches for what passes over the data a hundred times."""
        return math.ceil(self.batches / 10)


def samples_of(loaded: Data, options: DataOptions, bounds: Bounds) -> Samples:
    """Draw the samples."""
    splits = split(loaded, options)
    test = torch.arange(len(loaded.test_labels))
    size, most = min(bounds.batch_size, len(splits.train), len(test)), bounds.batches
    whole_number("batches times batch_size", most * size, 1, MOST_SAMPLES)
    workers, device = options.workers, bounds.device

    def plain(split: DataSplit, indices: Tensor, batch_size: int) -> Loader:
        return eval_loader(loaded, split, batch_size=batch_size, indices=indices, workers=workers, device=device)

    drawn = train_loader(
        loaded, batch_size=size, seed=0, indices=splits.train, workers=workers, device=device, drop_last=True
    )
    held = splits.validation
    return Samples(
        train=plain("train", _shuffled(splits.train, 0)[: most * size], size),
        test=plain("test", _shuffled(test, 0)[: most * size], size),
        drawn_train=_Epochs(drawn),
        drawn_test=plain("test", _full_batches(test, size, most), size),
        drawn_validation=None
        if held is None or len(held) < size
        else plain(splits.held_in, _full_batches(held, size, most), size),
        calibration=plain("test", _shuffled(test, 0)[: most * job.EVAL_BATCH], job.EVAL_BATCH),
        validation=None if held is None else plain(splits.held_in, held, job.EVAL_BATCH),
        batches=most,
    )


class _Epochs:
    """The batches of all epochs, from the first; going through it again gives the same ones."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Any]:
        for epoch in count():
            yield from self._loader.iterate(epoch)


def _full_batches(indices: Tensor, size: int, most: int) -> Tensor:
    # A small set is gone through several times, in another order each time.
    whole = len(indices) - len(indices) % size
    epochs = math.ceil(most * size / whole)
    return torch.cat([_shuffled(indices, epoch)[:whole] for epoch in range(epochs)])[: most * size]


def _shuffled(indices: Tensor, seed: int) -> Tensor:
    return indices[torch.randperm(len(indices), generator=seeded(seed))]
