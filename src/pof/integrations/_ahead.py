"""A training loader that a trainer iterates as usual, while the reference of each mini-batch waits beside it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pof._support import distributed
from pof._support.random import capture, restore
from pof.training.stream import Stream


class AheadLoader:
    """A loader that yields what it yielded before, one mini-batch of look-ahead later, if there are ``references``.

    They queue up in the order of the mini-batches, since some trainers fetch more than they train on.  Position and
    random states are in the state dict, so that a run goes on in the middle of an epoch, bitwise identically.
    ``epoch`` gives the epoch that begins, from 0, and ``length`` the number of mini-batches that it trains on.
    """

    def __init__(
        self, loader: Iterable[Any], references: bool, epoch: Callable[[], int], length: Callable[[], float]
    ) -> None:
        self.loader: Any = loader
        self._stream: Stream[Any] = Stream(loader, references, lambda batch: batch)
        self._epoch, self._length = epoch, length
        self._waiting: deque[Any] = deque()
        self._resume: dict[str, Any] | None = None
        self._left: dict[str, Any] | None = None
        self.ended = False
        """Whether what is loaded is known to be an epoch's end, which the length alone does not always say."""

    def __iter__(self) -> Iterator[Any]:
        # A generator: nothing is drawn before the first mini-batch is asked for, when a resumed run is in place.
        self._come_back()
        if self._resume is not None and (self.ended or self._resume["consumed"] >= self._length()):
            self.begin_epoch()
        self.ended = False
        resume, self._resume = self._resume, None
        self._waiting.clear()
        for batch, reference in self._stream.iterate(self._epoch(), resume, self._length()):
            self._waiting.append(reference)
            yield batch
            self._come_back()

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def worker_init_fn(self) -> Any:
        """That of the loader; trainers set it to seed its workers."""
        return self.loader.worker_init_fn

    @worker_init_fn.setter
    def worker_init_fn(self, function: Any) -> None:
        self.loader.worker_init_fn = function

    def __getattr__(self, name: str) -> Any:
        # Trainers look at data sets and samplers.
        if name == "loader" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.loader, name)

    @property
    def consumed(self) -> int:
        """Mini-batches of this epoch that were trained on."""
        return self._stream.consumed

    def take(self) -> Any:
        """Take the reference of the next mini-batch that is trained on; None where none are needed."""
        self._stream.consumed += 1
        return self._waiting.popleft()

    def leave(self) -> None:
        """Say that the trainer turns to something else (validation), whose random draws are not to count here."""
        self._left = capture()

    def _come_back(self) -> None:
        if self._left is not None:
            restore(self._left)
            self._left = None

    def begin_epoch(self) -> None:
        """Say that an epoch begins: what was loaded is a position at an epoch's end, so random states count alone."""
        if self._resume is not None:
            self._stream.load_state_dict(self._resume)
            self._resume = None

    def state_dict(self) -> dict[str, Any]:
        """Position and random states of each process; a collective call."""
        left = {} if self._left is None else {"random": self._left}
        return {"processes": distributed.gather_objects({**self._stream.state_dict(), **left})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind the position of a :meth:`state_dict`, at the next iteration."""
        saved, now = len(state["processes"]), distributed.world_size()
        if saved != now:
            raise ValueError(f"the checkpoint holds the data order of {saved} processes, and there are {now} now")
        own = state["processes"][distributed.rank()]
        found = [other for other in distributed.gather_objects(self._stream.other_than(own)) if other is not None]
        if found:
            raise ValueError(f"{found[0]}: give the same to go on, or load its weights alone, without ckpt_path")
        self._resume = own
