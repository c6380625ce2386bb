"""Which samples make up which batch: a pure function of (seed, epoch, number of the batch).

Nothing is remembered from one batch to the next, so a resumed run starts at any batch without replaying the
earlier ones.  The batch is global: under several processes each takes its share of the same batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pof._support.random import derive_seed, seeded
from pof.data.checks import DataError


@dataclass(frozen=True, kw_only=True)
class StatelessBatchSampler:
    """Batches of ``batch_size`` out of ``size`` samples, shared by ``world_size`` processes."""

    size: int
    """Number of samples N."""
    batch_size: int
    """Samples per global batch."""
    shuffle: bool
    """A new order in every epoch; otherwise the order of the data."""
    seed: int
    """Of the order."""
    drop_last: bool = False
    """Leave out the last batch if it is smaller."""
    rank: int = 0
    """Which process this is."""
    world_size: int = 1
    """How many processes share each batch."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise DataError(f"batch_size must be at least 1; got {self.batch_size}")
        if self.batch_size > self.size:
            raise DataError(
                f"batch_size {self.batch_size} is larger than the data ({self.size} samples); "
                f"choose a batch_size of at most {self.size}"
            )
        if not 0 <= self.rank < self.world_size:
            raise DataError(f"rank must be in [0, {self.world_size}); got {self.rank}")
        smallest = min(self.global_size(index) for index in (0, len(self) - 1))
        if smallest < self.world_size:
            raise DataError(
                f"a batch of {smallest} samples cannot be shared by {self.world_size} processes "
                f"({self.size} samples in batches of {self.batch_size}); drop the last batch or change batch_size"
            )

    def __len__(self) -> int:
        """Count the batches of an epoch.

        Returns:
            Their number.
        """
        return self.size // self.batch_size if self.drop_last else -(-self.size // self.batch_size)

    def global_size(self, index: int) -> int:
        """Count the samples of batch ``index`` over all processes.

        Returns:
            ``batch_size``, or less for the last batch.
        """
        return min(self.batch_size, self.size - index * self.batch_size)

    def order(self, epoch: int) -> Tensor:
        """Order the samples for an epoch.

        Returns:
            Indices, (N,) int64.
        """
        if not self.shuffle:
            return torch.arange(self.size)
        return torch.randperm(self.size, generator=seeded(derive_seed(self.seed, "order", epoch)))

    def share(self, index: int) -> slice:
        """Find the part of batch ``index`` that this process takes; sizes differ by at most one between processes.

        Returns:
            Positions in the batch.
        """
        count = self.global_size(index)
        return slice(self.rank * count // self.world_size, (self.rank + 1) * count // self.world_size)

    def rows(self, order: Tensor, index: int) -> Tensor:
        """Find the samples that this process takes from batch ``index``.

        Args:
            order: of the epoch, from :meth:`order`.
            index: number of the batch, from 0.

        Returns:
            Indices of samples, int64.
        """
        first = index * self.batch_size
        return order[first : first + self.global_size(index)][self.share(index)]
