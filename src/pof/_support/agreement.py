"""Detects processes that disagree or are lost, and raises the same error on every one that is left."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pof._support import distributed
from pof._support.described import flat

TIME_LIMIT = timedelta(minutes=10)
"""How long a process waits for the others, in the groups that pof opens."""
PATIENCE = 3.0
"""Seconds that a process, whose connections have closed, has to end."""
TOO_LATE = re.compile(r"timed out|timeout", re.IGNORECASE)
LOST = re.compile(r"gloo|nccl|pair closure|clients joined|socket", re.IGNORECASE)
_peers: list[tuple[str, int]] = []
"""Machine and number of each process, in the order of the ranks; known once they have agreed."""


def agree(settings: Mapping[str, Any]) -> None:
    """Refuse settings that differ between the processes, on all of them: one gather of names and values.

    Raises:
        ValueError: naming the first setting that differs, and its values by process.
    """
    if not distributed.active():
        return
    own = {name: repr(value) for name, value in flat(settings).items()}
    with naming_lost():
        found = distributed.gather_objects((socket.gethostname(), os.getpid(), own))
    _peers[:] = [(host, number) for host, number, _ in found]
    names = dict.fromkeys(name for *_, each in found for name in each)
    for name in names:
        values = [each.get(name, "not there") for *_, each in found]
        if len(set(values)) > 1:
            said = " and ".join(f"{_short(value)} in {_processes(values, value)}" for value in dict.fromkeys(values))
            raise ValueError(f"the processes disagree: {name} is {said}; give all of them the same")


@contextmanager
def naming_lost() -> Iterator[None]:
    """Say which process is gone where a backend says that a connection is closed, or that it has waited too long.

    Raises:
        ConnectionError: another process has ended.
        TimeoutError: all that are known of live, and do not come together.
    """
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        late = TOO_LATE.search(said) is not None
        if not (LOST.search(said) or (late and isinstance(error, dist.DistError))):
            raise
        ended = _ended(0.0 if late else PATIENCE)
        if late and not ended:
            raise TimeoutError(
                f"{_own()} has waited {TIME_LIMIT.total_seconds():g} s for the others: one of them hangs, was not"
                " started, or takes other steps (does its loader give as many mini-batches as it says?)"
            ) from error
        raise ConnectionError(
            f"{_named(ended)} has ended, and {_own()} cannot go on without: the output of that one says why"
        ) from error


def _own() -> str:
    return f"process {distributed.rank()}" if distributed.active() else "this process"


def _named(ended: list[int]) -> str:
    size = distributed.world_size()
    if not ended and size == 2:
        ended = [1 - distributed.rank()]
    numbers = ", ".join(map(str, ended))
    return f"process {numbers} of {size}" if ended else "another process"


def _ended(patience: float) -> list[int]:
    """The processes of this machine that have ended; waits for the first of them."""
    deadline = time.monotonic() + patience
    while True:
        here = socket.gethostname()
        ended = [rank for rank, (host, number) in enumerate(_peers) if host == here and not _lives(number)]
        if ended or not _peers or time.monotonic() >= deadline:
            return ended
        time.sleep(0.05)


def _lives(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    try:  # ended, and not yet asked for by who started it
        return Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return True


def _processes(values: list[str], value: str) -> str:
    numbers = [str(rank) for rank, each in enumerate(values) if each == value]
    return f"process{'es' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:60]} [...] {text[-30:]}"
