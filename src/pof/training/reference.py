"""The reference mini-batch for a custom training loop, out of the loader that is there already.

PoF takes direction and radius from a mini-batch B that is independent of the one trained on, B~ (Sato et al., ICML
2022, section 4).  :func:`with_reference` follows the rule of :func:`pof.fit`, so that both give the same steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

from pof._support.batches import unpack
from pof._support.checks import gives_batches
from pof.training.stream import set_epoch, with_next


class WithReference:
    """A loader whose mini-batches come with their references; made by :func:`with_reference`."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return with_next(map(_as_pair, iter(self.loader)))

    def __len__(self) -> int:
        """Count the mini-batches, where the loader has a length."""
        loader: Any = self.loader
        return len(loader)

    def set_epoch(self, epoch: int) -> None:
        """Tell loader, samplers and data set the epoch, from 0, as far as they have ``set_epoch``."""
        set_epoch(self.loader, epoch)


def _as_pair(batch: Any) -> Any:
    """Inputs and targets of a mapping or dataclass, so that a loop takes them apart as it does a tuple."""
    return unpack(batch) if isinstance(batch, Mapping) or is_dataclass(batch) else batch


def with_reference(loader: Iterable[Any]) -> WithReference:
    """Give each mini-batch of a loader its reference: the next mini-batch, and the epoch's first to the last.

    One mini-batch is fetched ahead, and none twice, so each epoch costs what it cost before::

        for (inputs, targets), reference in pof.with_reference(loader):
            out = method(inputs, targets, *reference)

    Args:
        loader: yields batches of any kind; can be iterated anew for each epoch.

    Returns:
        An iterable over ``(batch, reference)``, with the loader's length where it has one, and ``set_epoch``.  A
        batch that is a mapping or a dataclass comes as ``(inputs, targets)``, its inputs a mapping.

    Raises:
        ValueError: if ``loader`` gives no mini-batches, or is an iterator: the second epoch would be empty.
    """
    gives_batches("loader", loader)
    if isinstance(loader, Iterator):
        raise ValueError(
            f"with_reference needs a loader that can be iterated anew for each epoch; got the iterator"
            f" {type(loader).__name__}: pass the loader itself"
        )
    return WithReference(loader)
