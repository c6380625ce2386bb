"""The engine for more than one machine: every task is a task of Ray, with cores and GPUs of its own.

Ray starts a task again, on another machine if need be, when its process or machine is lost; it goes on from its own
state, so the folder that the tasks write to must be on a file system that all machines share.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pof._support.checks import finite
from pof.app.engine.base import PATIENCE, Ended, Numerics, Workers, packed, unpacked
from pof.app.errors import shortened

RETRIES = 3
"""Times that a task is started again when its process or machine is lost."""


@contextmanager
def connected(
    address: str | None = None, *, jobs: int | None = None, num_cpus: float | None = None, num_gpus: float | None = None
) -> Iterator[Cluster]:
    """Connect to a Ray cluster, or start one on this machine, and leave it at the end.

    Args:
        address: ``"auto"``, ``"HOST:PORT"``; None takes RAY_ADDRESS, the cluster of this machine, or starts one.
        jobs: tasks at a time; None: all that are ready, which wait in the cluster's queue.
        num_cpus: cores of a task; None: one for each of its threads.
        num_gpus: GPUs of a task, also a share such as 0.5; None: one if the cluster has any.

    Yields:
        The engine.

    Raises:
        ImportError: if Ray is not installed.
        ValueError: for a number out of range, or if there is no cluster at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("the engine ray needs Ray: pip install 'pof[ray]'") from error
    if num_cpus is not None:
        finite("num_cpus", num_cpus, above=0)
    if num_gpus is not None:
        finite("num_gpus", num_gpus, 0)
    joins = not ray.is_initialized()
    if joins:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            _knock(address or os.environ.get("RAY_ADDRESS", ""))
            ray.init(address=address, logging_level=logging.ERROR, include_dashboard=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"no Ray cluster at {address or 'RAY_ADDRESS'}: {shortened(str(error))}") from error
    try:
        if num_gpus is None:
            num_gpus = float(_resources().get("GPU", 0.0) >= 1)
        yield Cluster(jobs, num_cpus, num_gpus)
    finally:
        if joins:
            ray.shutdown()


def _knock(address: str) -> None:
    """Find out at once that nobody is there; Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.rpartition("/")[2], int(port)), timeout=10).close()


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that this process is connected to; made by :func:`connected`."""

    jobs: int | None
    num_cpus: float | None
    num_gpus: float

    def slots(self) -> int:
        have, wanted = _resources(), {"CPU": self.num_cpus or 1.0, "GPU": self.num_gpus}
        rooms = [int(have.get(name, 0) / number) for name, number in wanted.items() if number]
        return max(1, min([*rooms, *([] if self.jobs is None else [self.jobs])]))

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        with self.workers(packed(_caller), Numerics(1)) as workers:
            workers.submit((function, arguments))
            ended = workers.wait()
        if ended.lost is not None:
            raise RuntimeError(ended.lost)
        return ended.value

    @contextmanager
    def workers(self, sent: bytes, numerics: Numerics, folder: Path | None = None) -> Iterator[Workers]:
        mark = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            mark = folder.resolve() / f".{uuid.uuid4().hex}"
            mark.touch()
        tasks = _Tasks(self, sent, _Place(os.getcwd(), mark, numerics))
        try:
            yield tasks
        finally:
            tasks.cancel()
            if mark is not None:
                mark.unlink(missing_ok=True)


def _resources() -> dict[str, float]:
    import ray

    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return found


def _caller() -> Callable[[tuple[Callable[..., Any], tuple[Any, ...]]], Any]:
    return lambda task: task[0](*task[1])


@dataclass(frozen=True)
class _Place:
    """What a task finds on its machine as on the one that it comes from."""

    cwd: str
    mark: Path | None
    """A file in the shared folder."""
    numerics: Numerics

    def enter(self) -> None:
        try:
            os.chdir(self.cwd)
        except OSError:
            raise ValueError(_not_shared("the current folder", Path(self.cwd))) from None
        if self.mark is not None and not self.mark.exists():
            raise ValueError(_not_shared("the folder of the runs", self.mark.parent))
        self.numerics.apply()


def _not_shared(what: str, path: Path) -> str:
    return f"{platform.node()} does not see {what} {path}: it must be on a file system that all machines share"


class _Tasks(Workers):
    def __init__(self, cluster: Cluster, sent: bytes, place: _Place) -> None:
        import ray

        self.room = cluster.jobs or math.inf
        self._sent, self._place = ray.put(sent), place
        # Workers import what this process would, from the same folders.
        variables = {**place.numerics.environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._run = ray.remote(_run).options(
            num_cpus=place.numerics.threads if cluster.num_cpus is None else cluster.num_cpus,
            num_gpus=cluster.num_gpus,
            max_retries=RETRIES,
            runtime_env={"env_vars": variables},
        )
        self._running: dict[Any, Any] = {}

    def submit(self, task: Any) -> None:
        self._running[self._run.remote(self._sent, self._place, task)] = task

    def wait(self) -> Ended:
        import ray
        from ray.exceptions import RayError, RayTaskError

        (ended,), _ = ray.wait(list(self._running), num_returns=1)
        task = self._running.pop(ended)
        try:
            value, seconds = ray.get(ended)
        except RayTaskError as error:
            raise error.cause or error from None
        except RayError as error:
            return Ended(task, 0.0, lost=f"lost {RETRIES + 1} times (out of memory?): {shortened(str(error))}")
        return Ended(task, seconds, value)

    def cancel(self) -> None:
        """Interrupt what still runs: it saves its state after the step, or is killed when its time is up."""
        import ray

        left = list(self._running)
        for task in left:
            ray.cancel(task)
        try:
            if left:
                _, left = ray.wait(left, num_returns=len(left), timeout=PATIENCE)
        finally:
            for task in left:
                ray.cancel(task, force=True)


def _run(sent: bytes, place: _Place, task: Any) -> tuple[Any, float]:
    """What a worker does with a task; gives its value and seconds."""
    since = time.monotonic()
    place.enter()
    return unpacked(sent)(task), time.monotonic() - since
