"""The mini-batches of an epoch, each with its reference mini-batch, from any position on, bitwise identically.

The reference B of a step is the *next* mini-batch of the loader: independent of the one trained on, not yet seen
by the extractor in this epoch, and already loaded, so that it costs no second pass over the data.  The last step
of an epoch takes the epoch's first mini-batch.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from pof._support import distributed
from pof._support.batches import Inputs, for_training, is_plain, samples_of, tensors_of, to_device, unpack
from pof._support.modules import BATCH_NORMS
from pof._support.random import capture, derive_seed, isolated, loader_generators, preserved, restore
from pof.training.same_data import are_same, readable_again, sampled

T = TypeVar("T")
# In the place of None, which a loader may give.
END: Any = object()


@runtime_checkable
class StatelessLoader(Protocol):
    """A loader whose batch i of epoch e depends on (e, i) alone, such as :class:`pof.data.TensorLoader`."""

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Iterate over the batches of ``epoch`` from number ``start`` on."""


@dataclass(frozen=True)
class Micro:
    """One mini-batch and its reference."""

    inputs: Inputs
    targets: Tensor
    reference: tuple[Inputs, Tensor] | None

    @property
    def size(self) -> int:
        return samples_of(self.targets)


def with_next(batches: Iterator[T], first: T | None = None) -> Iterator[tuple[T, T]]:
    """Give each mini-batch of an epoch its reference: the next one, and the epoch's ``first`` to the last.

    ``first`` is that of ``batches``, unless they are the rest of an epoch.
    """
    current: Any = next(batches, END)
    if first is None:
        first = current
    while current is not END:
        following: Any = fetched(batches, [current, first])
        yield current, first if following is END else following
        current = following


def fetched(batches: Iterator[Any], held: list[Any]) -> Any:
    """The next mini-batch, or ``END``; refused where it was written over one of those held."""
    if not held:
        return next(batches, END)
    before = [(tensor, tensor._version) for tensor in _plain(held)]
    batch = next(batches, END)
    there = {tensor.data_ptr(): _storage(tensor) for tensor, _ in before if tensor.numel()}
    written = any(tensor._version != version for tensor, version in before)
    # Storages of their own on the memory of another one, as torch.from_numpy makes them.
    if written or any(there.get(t.data_ptr(), _storage(t)) != _storage(t) for t in _plain(batch)):
        raise ValueError(
            "the loader writes a mini-batch into the memory of one that is still needed (PoF's reference, or"
            " accumulation): let it give copies, such as tensor.clone()"
        )
    return batch


def _plain(batch: Any) -> list[Tensor]:
    return [t for t in tensors_of(batch) if is_plain(t) and not t.is_inference()]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def samplers_of(loader: Any) -> list[Any]:
    """What a loader takes its samples by: of a batch sampler that it was given, the sampler inside too."""
    batches = getattr(loader, "batch_sampler", None)
    found = (getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
    return list({id(each): each for each in found if each is not None}.values())


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell loader, samplers and data set the epoch, as far as they have ``set_epoch``."""
    for owner in (loader, *samplers_of(loader), getattr(loader, "dataset", None)):
        setter = getattr(owner, "set_epoch", None)
        if callable(setter):
            setter(epoch)


def one_pass(loader: Iterable[Any]) -> Iterator[Any]:
    """Iterate over the mini-batches of a training set once, as they come, apart from the epochs."""
    # Always the same pass where that is possible: a resumed run must see it too.
    return iter(loader.iterate(0) if isinstance(loader, StatelessLoader) else loader)


def one_pass_on(loader: Iterable[Any], device: torch.device) -> Iterator[tuple[Inputs, Tensor]]:
    """The same as inputs (N, ...) and targets, on the device."""
    return (unpack(to_device(batch, device)) for batch in one_pass(loader))


@contextmanager
def same_draws(loader: Iterable[Any], device: torch.device) -> Iterator[Iterable[Any]]:
    """Give a loader for one pass that draws the same random numbers each time, and moves no generator.

    Epochs are compared on the same draws where validation data are augmented, and a resumed run sees them too.
    """
    seed = derive_seed("validation")
    with preserved(loader), isolated(seed, device):
        for generator in loader_generators(loader):
            generator.manual_seed(seed)
        yield loader.iterate(0) if isinstance(loader, StatelessLoader) else loader


def other_validation(loader: Iterable[Any] | None, saved: Any, device: torch.device) -> str | None:
    """Say that validation data are not those of which a state kept ``saved``, the first mini-batch of each pass."""
    if (loader is None) != (saved is None):
        return f"the interrupted run had {'no ' if saved is None else ''}validation data"
    if loader is None or not readable_again(loader) or are_same(saved, found := _first_drawn(loader, device)):
        return None
    if not are_same(found, _first_drawn(loader, device)):  # draws that nobody has seeded
        return None
    return "the validation data are not those of the interrupted run"


def _first_drawn(loader: Iterable[Any], device: torch.device) -> list[dict[str, Any]]:
    with same_draws(loader, device) as batches:
        return sampled(next(iter(batches)))


class Stream(Generic[T]):
    """The mini-batches of a loader, each with its reference if ``references``, from any position of an epoch on.

    ``convert`` is applied once to each batch; nothing is fetched ahead without references.
    """

    def __init__(self, loader: Iterable[Any], references: bool, convert: Callable[[Any], T]) -> None:
        self.loader, self.references, self._convert = loader, references, convert
        # Mini-batches of this epoch that training is done with; whoever trains counts.
        self.consumed = 0
        self._epoch_random: Any = None
        self._ahead_random: Any = None
        self._first: Any = None

    def iterate(
        self, epoch: int, resume: dict[str, Any] | None = None, length: float = math.inf
    ) -> Iterator[tuple[T, T | None]]:
        """Iterate over mini-batches and references (None where none are needed) of an epoch, from 0.

        ``resume`` is a :meth:`state_dict` taken in this epoch: go on behind what had been consumed.  ``length`` is that
        of an epoch that ends before the loader does.
        """
        self.consumed = resume["consumed"] if resume else 0
        start = self._stateless if isinstance(self.loader, StatelessLoader) else self._replayed
        batches, first = start(epoch, resume)
        if length < math.inf:
            batches = islice(batches, max(int(length) - self.consumed, 0))
        if resume:
            self._first = resume.get("first")
        else:
            batches = self._noted(batches, epoch)
        return with_next(batches, first) if self.references else zip(batches, repeat(None))

    def state_dict(self) -> dict[str, Any]:
        """Position and random states: what ``torch.save`` writes and ``torch.load(weights_only=True)`` reads."""
        return {
            "consumed": self.consumed,
            "epoch_random": self._epoch_random,
            "ahead_random": self._ahead_random,
            "random": capture(),
            "generators": [g.get_state() for g in loader_generators(self.loader)],
            "first": self._first,
        }

    def _noted(self, batches: Iterator[T], epoch: int) -> Iterator[T]:
        """Keep what a resume can know the data by."""
        first = next(batches, END)
        if first is END:
            return batches
        self._first = {"epoch": epoch, "values": sampled(first)}
        return chain([first], batches)

    def other_than(self, state: dict[str, Any]) -> str | None:
        """Say what is wrong with the loader if it is not that of a :meth:`state_dict`; no generator moves."""
        saved, stateless = state.get("first"), isinstance(self.loader, StatelessLoader)
        if saved is None:  # of an older version, or before the first step
            return None
        own, before = len(loader_generators(self.loader)), len(state["generators"])
        if own != before or (state["epoch_random"] is None) != stateless:
            return "the training loader is of another kind than that of the interrupted run"
        if not readable_again(self.loader) or are_same(saved["values"], found := self._begun(saved["epoch"], state)):
            return None
        if not are_same(found, self._begun(saved["epoch"], state)):  # draws that nobody has seeded
            return None
        return (
            f"the training data are not those of the interrupted run: the first mini-batch of epoch"
            f" {saved['epoch'] + 1} is another one"
        )

    def _begun(self, epoch: int, state: dict[str, Any]) -> list[dict[str, Any]]:
        """What is known of an epoch's first mini-batch, read again."""
        loader: Any = self.loader
        with preserved(loader):
            if isinstance(loader, StatelessLoader):
                batches = loader.iterate(epoch)
            else:
                restore(state["epoch_random"]["global"])
                self._put_back(state["epoch_random"]["loader"])
                set_epoch(loader, epoch)
                batches = iter(loader)
            return sampled(self._convert(next(batches)))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the generators back to where they were between two epochs."""
        restore(state["random"])
        self._put_back(state["generators"])

    def _put_back(self, states: list[Tensor]) -> None:
        for generator, state in zip(loader_generators(self.loader), states, strict=True):
            generator.set_state(state)

    def _stateless(self, epoch: int, resume: dict[str, Any] | None) -> tuple[Iterator[T], T | None]:
        """The batches from the position on, and the epoch's first where it lies behind."""
        loader: Any = self.loader
        if resume:
            restore(resume["random"])
        batches = map(self._convert, loader.iterate(epoch, self.consumed))
        behind = self.references and self.consumed > 0
        return batches, next(map(self._convert, loader.iterate(epoch)), None) if behind else None

    def _replayed(self, epoch: int, resume: dict[str, Any] | None) -> tuple[Iterator[T], T | None]:
        """The same for any loader: fetch again what the interrupted run had fetched; there is no shorter way."""
        if not resume:
            states = [g.get_state() for g in loader_generators(self.loader)]
            self._epoch_random = {"global": capture(), "loader": states}
            set_epoch(self.loader, epoch)
            return self._fetched(iter(self.loader)), None
        self._epoch_random = resume["epoch_random"]
        restore(self._epoch_random["global"])
        self._put_back(self._epoch_random["loader"])
        set_epoch(self.loader, epoch)
        batches = self._fetched(iter(self.loader))
        done = islice(batches, self.consumed)
        first, _ = next(done, None), deque(done, maxlen=0)
        self._warn_of_other(first, resume, epoch)
        ahead = []
        if self.references and resume["ahead_random"] is not None:
            restore(resume["ahead_random"])
            ahead = list(islice(batches, 1))
        self._ahead_random = resume["ahead_random"]
        restore(resume["random"])
        return chain(ahead, batches), first

    def _warn_of_other(self, first: Any, resume: dict[str, Any], epoch: int) -> None:
        """Notice other data in a loader that could not be asked beforehand."""
        saved = resume.get("first")
        if readable_again(self.loader) or saved is None or saved["epoch"] != epoch:
            return
        if not are_same(saved["values"], sampled(first)):
            warnings.warn(
                f"the first mini-batch of epoch {epoch + 1} is another one than in the interrupted run: these are other"
                " data, or draws of a generator that the loader, its data set and sampler do not hold in an attribute;"
                " the run goes on, but not as it would have without the interruption",
                stacklevel=9,
            )

    def _fetched(self, iterator: Iterator[Any]) -> Iterator[T]:
        while True:
            if self.references:
                self._ahead_random = capture()
            batch = next(iterator, END)
            if batch is END:
                return
            yield self._convert(batch)


def micro_batches(loader: Iterable[Any], references: bool, device: torch.device) -> Stream[tuple[Inputs, Tensor]]:
    """Stream the mini-batches of a loader, taken apart, on the device."""

    def convert(batch: Any) -> tuple[Inputs, Tensor]:
        inputs, targets = unpack(batch)
        return for_training(inputs, device), for_training(targets, device)

    return Stream(loader, references, convert)


def windows(
    stream: Stream[tuple[Inputs, Tensor]], accumulation: int, epoch: int, resume: dict[str, Any] | None = None
) -> Iterator[list[Micro]]:
    """Iterate over the mini-batches of each optimizer step of an epoch; the last window may be shorter."""
    micros = (Micro(*batch, reference) for batch, reference in stream.iterate(epoch, resume))
    while window := _window(micros, accumulation):
        if epoch == 0 and stream.consumed == 0:
            _warn_of_copies(window)
        stream.consumed += len(window)
        yield window


def _window(micros: Iterator[Micro], size: int) -> list[Micro]:
    window: list[Micro] = []
    while len(window) < size and (micro := fetched(micros, window)) is not END:
        window.append(micro)
    return window


def _warn_of_copies(window: list[Micro]) -> None:
    """Warn where all processes train on the same mini-batches; a collective call, for a run's first step."""
    if not distributed.active():
        return
    found = distributed.gather_objects(sampled((window[0].inputs, window[0].targets)))
    if all(are_same(found[0], other) for other in found[1:]):
        warnings.warn(
            f"all {len(found)} processes have the same first mini-batch: if they have all of them in common, each does"
            " what one would do alone; share the samples out, by a DistributedSampler, or for streams by"
            " datasets.distributed.split_dataset_by_node",
            stacklevel=8,
        )


def warn_of_incomplete(model: nn.Module, full: int, last: int) -> None:
    """Warn of a last step with few samples, where there are batch norms."""
    if 0 < last < full / 4 and any(isinstance(module, BATCH_NORMS) for module in model.modules()):
        warnings.warn(
            f"the last step of an epoch has {last} samples, a full mini-batch {full}: batch norm takes its statistics"
            " from these few, and the step counts as much as any; it can undo a network that fits its data. Give the"
            " loader drop_last=True",
            stacklevel=6,
        )
