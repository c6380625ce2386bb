"""The mini-batches of an epoch, each with its reference mini-batch, from any position on to the bit.

The reference B of a step is the *next* mini-batch of the loader: independent of the one trained on, not yet seen
by the extractor in this epoch, and already loaded, so that it costs no second pass over the data.  The last step
of an epoch takes the epoch's first mini-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from pof._support.batches import Inputs, batch_size, to_device, unpack
from pof._support.random import capture, restore

T = TypeVar("T")


@runtime_checkable
class StatelessLoader(Protocol):
    """A loader whose batch i of epoch e depends on (e, i) alone, such as :class:`pof.data.TensorLoader`."""

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Iterate over the batches of ``epoch`` from number ``start`` on.

        Returns:
            The iterator.
        """


def with_next(batches: Iterator[T], first: T | None = None) -> Iterator[tuple[T, T]]:
    """Give each mini-batch of an epoch its reference: the next one, and the epoch's first to the last.

    Args:
        batches: of an epoch, or of its rest.
        first: the epoch's first, where ``batches`` begins later.

    Yields:
        Mini-batch and reference.
    """
    current = next(batches, None)
    if first is None:
        first = current
    while current is not None:
        following = next(batches, None)
        reference = first if following is None else following
        if reference is not None:
            yield current, reference
        current = following


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell loader and samplers the epoch, as far as they have ``set_epoch``."""
    for owner in (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
        setter = getattr(owner, "set_epoch", None)
        if callable(setter):
            setter(epoch)


def one_pass(loader: Iterable[Any], device: torch.device) -> Iterator[Inputs]:
    """Iterate over the inputs of a training set once, apart from the epochs.

    Yields:
        Inputs (N, ...) on the device.
    """
    # Always the same pass where that is possible: a resumed run must see it too.
    batches = loader.iterate(0) if isinstance(loader, StatelessLoader) else iter(loader)
    yield from (unpack(to_device(batch, device))[0] for batch in batches)


class Pairs(Generic[T]):
    """The mini-batches of somebody's loader, each with its reference, from any position of an epoch on.

    Args:
        loader: yields batches; iterated anew for each epoch.
        references: whether each mini-batch needs a reference; nothing is fetched ahead otherwise.
        convert: applied once to each batch.
    """

    def __init__(self, loader: Iterable[Any], references: bool, convert: Callable[[Any], T]) -> None:
        self._loader, self._references, self._convert = loader, references, convert
        self._epoch_random: Any = None
        self._ahead_random: Any = None

    def iterate(self, epoch: int, resume: dict[str, Any] | None = None) -> Iterator[tuple[T, T | None]]:
        """Iterate over an epoch.

        Args:
            epoch: from 0; sets the order of loaders and samplers that have ``set_epoch``.
            resume: a :meth:`state_dict` taken in this epoch; continues behind what had been consumed.

        Returns:
            The iterator over mini-batches and references; None where none are needed.
        """
        if isinstance(self._loader, StatelessLoader):
            return self._stateless(epoch, resume)
        return self._any(epoch, resume)

    def state_dict(self, consumed: int) -> dict[str, Any]:
        """Position and random states.

        Args:
            consumed: mini-batches of this epoch that training is done with.

        Returns:
            What ``torch.save`` writes and ``torch.load(weights_only=True)`` reads.
        """
        return {
            "consumed": consumed,
            "epoch_random": self._epoch_random,
            "ahead_random": self._ahead_random,
            "random": capture(),
            "generators": [g.get_state() for g in _generators(self._loader)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the generators back to where they were between two epochs."""
        restore(state["random"])
        for generator, saved in zip(_generators(self._loader), state["generators"], strict=True):
            generator.set_state(saved)

    def _stateless(self, epoch: int, resume: dict[str, Any] | None) -> Iterator[tuple[T, T | None]]:
        loader: Any = self._loader
        if resume:
            restore(resume["random"])
        batches = map(self._convert, loader.iterate(epoch, resume["consumed"] if resume else 0))
        if not self._references:
            return ((batch, None) for batch in batches)
        return with_next(batches, next(map(self._convert, loader.iterate(epoch)), None))

    def _any(self, epoch: int, resume: dict[str, Any] | None) -> Iterator[tuple[T, T | None]]:
        generators = _generators(self._loader)
        if resume:
            self._epoch_random = resume["epoch_random"]
            restore(self._epoch_random["global"])
            for generator, state in zip(generators, self._epoch_random["loader"], strict=True):
                generator.set_state(state)
        else:
            self._epoch_random = {"global": capture(), "loader": [g.get_state() for g in generators]}
        set_epoch(self._loader, epoch)
        batches = self._fetched(iter(self._loader))
        if not resume:
            return self._paired(batches)
        first, batches = self._replayed(batches, resume)
        return self._paired(batches, first)

    def _fetched(self, iterator: Iterator[Any]) -> Iterator[T]:
        while True:
            if self._references:
                self._ahead_random = capture()
            batch = next(iterator, None)
            if batch is None:
                return
            yield self._convert(batch)

    def _replayed(self, batches: Iterator[T], resume: dict[str, Any]) -> tuple[T | None, Iterator[T]]:
        """Fetch what the interrupted run had fetched; loaders of other people know no shorter way."""
        first = None
        for number in range(resume["consumed"]):
            batch = next(batches, None)
            first = batch if number == 0 else first
        ahead = []
        if self._references and resume["ahead_random"] is not None:
            restore(resume["ahead_random"])
            ahead = [batch for batch in [next(batches, None)] if batch is not None]
        self._ahead_random = resume["ahead_random"]
        restore(resume["random"])
        return first, chain(ahead, batches)

    def _paired(self, batches: Iterator[T], first: T | None = None) -> Iterator[tuple[T, T | None]]:
        return with_next(batches, first) if self._references else ((batch, None) for batch in batches)


@dataclass(frozen=True)
class Micro:
    """One mini-batch and its reference."""

    inputs: Inputs
    targets: Tensor
    reference: tuple[Inputs, Tensor] | None

    @property
    def size(self) -> int:
        """Number of samples N."""
        return batch_size(self.inputs)


class Stream:
    """Windows of mini-batches, one window per optimizer step.

    Args:
        loader: yields batches for :func:`pof._support.batches.unpack`; iterated anew for each epoch.
        accumulation: mini-batches per window, >= 1.
        references: whether each mini-batch needs a reference.
        device: where the batches go.
    """

    def __init__(self, loader: Iterable[Any], accumulation: int, references: bool, device: torch.device) -> None:
        self._loader, self._accumulation, self._device = loader, accumulation, device
        self._pairs = Pairs(loader, references, lambda batch: unpack(to_device(batch, device)))
        self._consumed = 0

    def windows(self, epoch: int, resume: dict[str, Any] | None = None) -> Iterator[list[Micro]]:
        """Iterate over the windows of an epoch.

        Args:
            epoch: from 0; sets the order of loaders and samplers that have ``set_epoch``.
            resume: a :meth:`state_dict` taken in this epoch; continues behind its last window.

        Yields:
            The mini-batches of one optimizer step; the last window may be shorter.
        """
        self._consumed = resume["consumed"] if resume else 0
        micros = (Micro(*batch, reference) for batch, reference in self._pairs.iterate(epoch, resume))
        while window := list(islice(micros, self._accumulation)):
            self._consumed += len(window)
            yield window

    def inputs(self) -> Iterator[Inputs]:
        """Iterate over the inputs of the training set once, apart from the epochs.

        Returns:
            The iterator over inputs (N, ...) on the device.
        """
        return one_pass(self._loader, self._device)

    def state_dict(self) -> dict[str, Any]:
        """Position and random states behind the window that was yielded last.

        Returns:
            What ``torch.save`` writes and ``torch.load(weights_only=True)`` reads.
        """
        return self._pairs.state_dict(self._consumed)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the generators back to where they were between two epochs."""
        self._pairs.load_state_dict(state)


def _generators(loader: Any) -> list[torch.Generator]:
    """The generators of a DataLoader and its samplers, each once."""
    owners = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
    owners.append(getattr(owners[-1], "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())
