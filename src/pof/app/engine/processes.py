"""The engine that needs nothing else: processes of this machine.

They are started anew (``spawn``) as tasks come, with the number of threads set before they import torch, and live as
long as there is work, or this process.  One that dies, for example for lack of memory, costs its task and is replaced.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from pof.app.engine.base import PATIENCE, Ended, Numerics, Workers, unpacked
from pof.app.errors import one_line


@dataclass(frozen=True)
class Processes:
    """Local processes, ``jobs`` at a time."""

    jobs: int

    def slots(self) -> int:
        return self.jobs

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    @contextmanager
    def workers(self, sent: bytes, numerics: Numerics, folder: Path) -> Iterator[Workers]:
        pool = _Pool(sent, numerics, self.jobs)
        try:
            yield pool
        except BaseException:
            pool.interrupt()
            raise
        finally:
            pool.stop()


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    task: Any = None
    since: float = 0.0


class _Pool(Workers):
    def __init__(self, sent: bytes, numerics: Numerics, jobs: int) -> None:
        self.room = jobs
        self._sent, self._numerics = sent, numerics
        self._workers: list[_Worker] = []

    def submit(self, task: Any) -> None:
        worker = next((worker for worker in self._workers if worker.task is None), None) or self._start()
        worker.task, worker.since = task, time.monotonic()
        with suppress(OSError):  # it is dead already, which its sentinel tells
            worker.connection.send(task)

    def wait(self) -> Ended:
        busy = [worker for worker in self._workers if worker.task is not None]
        ready = wait([worker.connection for worker in busy] + [worker.process.sentinel for worker in busy])
        worker = next(w for w in busy if w.connection in ready or w.process.sentinel in ready)
        task, worker.task = worker.task, None
        seconds = time.monotonic() - worker.since
        try:
            value, error = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            worker.connection.close()
            self._workers.remove(worker)
            return Ended(task, seconds, lost=_death(worker.process.exitcode))
        if error is not None:
            raise error
        return Ended(task, seconds, value)

    def interrupt(self) -> None:
        """Ask all to save their states after the step."""
        for worker in self._workers:
            worker.process.terminate()

    def stop(self) -> None:
        """Wait until all have ended; those that do not within their time, or after another Ctrl-C, are killed."""
        deadline = time.monotonic() + PATIENCE
        for worker in self._workers:
            worker.connection.close()
        try:
            for worker in self._workers:
                worker.process.join(max(0.0, deadline - time.monotonic()))
        finally:
            for worker in self._workers:
                if worker.process.is_alive():
                    worker.process.kill()
                    worker.process.join()

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, self._sent, self._numerics), name="pof worker")
        with _environment(self._numerics.environment), _ignoring_interrupts():
            process.start()
        there.close()
        self._workers.append(_Worker(process, here))
        return self._workers[-1]


def _work(connection: Connection, sent: bytes, numerics: Numerics) -> None:
    """What runs in a worker: one task after the other, until the parent closes the connection or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent then tells us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    numerics.apply()
    warnings.formatwarning = _line
    function: Callable[[Any], Any] | None = None
    with suppress(EOFError, OSError):
        while True:
            task = connection.recv()
            value, error = None, None
            try:
                if function is None:
                    function = unpacked(sent)
                value = function(task)
            except BaseException as raised:
                error = _sendable(raised)
            connection.send((value, error))


def _sendable(error: BaseException) -> BaseException:
    """An error that reaches the parent, and tells where it was raised."""
    error.add_note(traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))  # as the connection will
    except Exception:  # whatever a user's error does
        return RuntimeError(one_line(error))
    return error


def _end_with_parent() -> None:
    """Wait until the process that started this one is gone, and end this one at once."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _death(code: int | None) -> str:
    if code == -getattr(signal, "SIGKILL", 9):
        return "its process was killed (SIGKILL): out of memory?"
    if code is not None and code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with exit code {code}"


@contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """A process inherits what it ignores: a worker must not die of Ctrl-C while it still imports."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Any = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _line(message: Warning | str, *_: Any, **__: Any) -> str:
    return f"warning: {message}\n"
