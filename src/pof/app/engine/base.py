"""The one interface of what runs trainings: an engine opens workers, which take tasks and give back how they end.

All workers make the same function of a call that is packed (:func:`packed`), and call it with each task.  Engines
differ in nothing that a result depends on: a task goes on from its own state on disk, with random states of its own,
and with the numerics that it is sent.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

LIBRARIES = ("OMP", "OPENBLAS", "MKL")
PATIENCE = 30.0
"""Seconds that a worker has to end its step after an interrupt."""


@dataclass(frozen=True)
class Numerics:
    """What the last bits depend on in a process."""

    threads: int
    dtype: torch.dtype = torch.float32
    products: str = "highest"

    @classmethod
    def here(cls) -> Numerics:
        """Those of this process."""
        return cls(torch.get_num_threads(), torch.get_default_dtype(), torch.get_float32_matmul_precision())

    @property
    def environment(self) -> dict[str, str]:
        """What the libraries beneath torch read when they are loaded."""
        return {f"{library}_NUM_THREADS": str(self.threads) for library in LIBRARIES}

    def apply(self) -> None:
        torch.set_num_threads(self.threads)
        torch.set_default_dtype(self.dtype)
        torch.set_float32_matmul_precision(self.products)


@dataclass(frozen=True)
class Ended:
    """A task ended."""

    task: Any
    seconds: float
    value: Any = None
    """What the function returned."""
    lost: str | None = None
    """Why there is no value: the worker died."""


def packed(make: Callable[..., Callable[[Any], Any]], *arguments: Any) -> bytes:
    """Pack the call that makes a worker's function; a ValueError if it cannot be pickled.

    Pickled here, and not by what carries it: multiprocessing would move tensors into memory that all processes share,
    Ray would unpack before its task is in the right folder, and give arrays that cannot be written to.
    """
    try:
        return pickle.dumps((make, arguments))
    except Exception as error:  # whatever a user's objects raise
        raise ValueError(
            "other processes get copies of what they work on, such as the network and its loaders, which cannot be"
            f" pickled: {error}; give jobs 1"
        ) from error


def unpacked(sent: bytes) -> Callable[[Any], Any]:
    """Make a worker's function of what :func:`packed` gave in the process that started it: never of a file."""
    make, arguments = pickle.loads(sent)
    function: Callable[[Any], Any] = make(*arguments)
    return function


class Workers(ABC):
    """Take tasks, each in a process of its own machine or another; one that dies costs its task."""

    room: float
    """Tasks that are taken at a time."""

    @abstractmethod
    def submit(self, task: Any) -> None:
        """Start a task."""

    @abstractmethod
    def wait(self) -> Ended:
        """Wait until one of them ends; raises what the function raised."""

    def run(self, take: Callable[[], Any]) -> Iterator[Ended]:
        """Take tasks while there is room until there is none (None), and give what ends on the way, in any order."""
        busy = 0
        while True:
            while busy < self.room and (task := take()) is not None:
                self.submit(task)
                busy += 1
            if not busy:
                return
            ended = self.wait()
            busy -= 1
            yield ended


class Engine(Protocol):
    """Opens workers; ``Processes`` and ``Cluster`` are engines."""

    def slots(self) -> int:
        """Count the tasks that can be run side by side now."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function where the workers' kind of device is found."""

    def workers(self, sent: bytes, numerics: Numerics, folder: Path) -> AbstractContextManager[Workers]:
        """Open workers, which write to a folder, for what :func:`packed` gave.

        What raises inside, Ctrl-C first of all, interrupts them: they save their states after the step.
        """
