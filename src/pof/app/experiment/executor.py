"""Run the stages of a plan in worker processes: each as soon as its parent is there; a failure stops its children only.

Workers are started anew (``spawn``), with the number of threads set before they import torch, and live as long as
there is work.  One that dies, for example for lack of memory, costs its stage and is replaced.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from pof.app.experiment.plan import RUNS, Plan, Stage
from pof.app.experiment.worker import INTERRUPTED, Outcome, discard_state, is_finished, work
from pof.app.run_files import read_result

PATIENCE = 30.0
"""Seconds that a worker has to end its step after an interrupt."""
LIBRARIES = ("OMP", "OPENBLAS", "MKL")


@dataclass(frozen=True)
class Ended:
    """A stage ended."""

    stage: Stage
    reason: str | None
    """Why it failed; None if it is finished."""
    seconds: float
    done: int
    total: int
    """Stages of the plan."""


Report = Callable[[Ended], None]


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    stage: Stage | None = None
    since: float = 0.0


@dataclass
class _Progress:
    """What is known of the stages."""

    plan: Plan
    runs: Path
    report: Report
    finished: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    waiting: list[Stage] = field(default_factory=list)

    def __post_init__(self) -> None:
        for stage in self.plan.stages.values():
            if not is_finished(self.runs / stage.name):
                self.waiting.append(stage)
                continue
            discard_state(self.runs / stage.name)  # a kill came between the result and that
            if (reason := unusable(self.runs, stage)) is not None:
                self.failed[stage.name] = reason
            else:
                self.finished.add(stage.name)

    def next(self) -> Stage | None:
        """Take the first stage whose parent is there; children of failed ones fail on the way."""
        for stage in list(self.waiting):
            if stage.parent in self.failed:
                self.waiting.remove(stage)
                self.end(stage, f"{stage.parent}, which it starts from, failed", 0.0)
            elif stage.parent is None or stage.parent in self.finished:
                self.waiting.remove(stage)
                return stage
        return None

    def end(self, stage: Stage, reason: str | None, seconds: float) -> None:
        """Note how a stage ended, and tell."""
        reason = unusable(self.runs, stage) if reason is None else reason
        if reason is None:
            self.finished.add(stage.name)
        else:
            self.failed[stage.name] = reason
        done = len(self.finished) + len(self.failed)
        self.report(Ended(stage, reason, seconds, done, len(self.plan.stages)))


def execute(plan: Plan, out: Path, *, jobs: int, report: Report = lambda ended: None) -> Mapping[str, str]:
    """Run what is not finished yet of a plan."""
    progress = _Progress(plan, out / RUNS, report)
    workers: list[_Worker] = []
    try:
        while True:
            _assign(progress, workers, jobs)
            busy = [worker for worker in workers if worker.stage is not None]
            if not busy:
                break
            ready = wait([w.connection for w in busy] + [w.process.sentinel for w in busy])
            for worker in busy:
                if worker.connection in ready or worker.process.sentinel in ready:
                    _take_back(worker, progress, out / "failed")
            workers = [worker for worker in workers if not worker.connection.closed]
    except KeyboardInterrupt:
        for worker in workers:
            worker.process.terminate()
        raise
    finally:
        _stop(workers)
    return progress.failed


def unusable(runs: Path, stage: Stage) -> str | None:
    """Tell what is wrong with a finished stage's network: one from scratch that diverged has learned nothing."""
    result = read_result(runs / stage.name)
    if (
        stage.parent is not None
        or stage.model.is_trained
        or result["stopped"] != "diverged"
        or result["best_epoch"] != 0
    ):
        return None
    return str(result["message"])


def _assign(progress: _Progress, workers: list[_Worker], jobs: int) -> None:
    while True:
        idle = next((worker for worker in workers if worker.stage is None), None)
        if idle is None and len(workers) >= jobs:
            return
        stage = progress.next()
        if stage is None:
            return
        if idle is None:
            idle = _start(progress)
            workers.append(idle)
        idle.stage, idle.since = stage, time.monotonic()
        with suppress(OSError):  # it is dead already, which its sentinel tells
            idle.connection.send(stage)


def _take_back(worker: _Worker, progress: _Progress, failed: Path) -> None:
    """Read what a worker says about its stage, or find it dead."""
    stage, worker.stage = worker.stage, None
    if stage is None:
        return
    try:
        outcome: Outcome = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        worker.connection.close()
        outcome = Outcome(_death(worker.process.exitcode))
    log = failed / f"{stage.name}.txt"
    log.unlink(missing_ok=True)
    if outcome.reason is not None:
        failed.mkdir(parents=True, exist_ok=True)
        log.write_text(f"{outcome.reason}\n\n{outcome.details}", encoding="utf-8")
    if outcome.reason == INTERRUPTED:
        worker.process.join()
        worker.connection.close()
    progress.end(stage, outcome.reason, time.monotonic() - worker.since)


def _death(code: int | None) -> str:
    if code == -getattr(signal, "SIGKILL", 9):
        return "its process was killed (SIGKILL): out of memory?"
    if code is not None and code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with exit code {code}"


def _start(progress: _Progress) -> _Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    threads = progress.plan.threads
    process = context.Process(target=work, args=(there, progress.runs, threads), name="pof experiment")
    with _environment(threads), _ignoring_interrupts():
        process.start()
    there.close()
    return _Worker(process, here)


def _stop(workers: list[_Worker]) -> None:
    """Wait until all have ended; those that do not within their time, or after another Ctrl-C, are killed."""
    deadline = time.monotonic() + PATIENCE
    for worker in workers:
        worker.connection.close()
    try:
        for worker in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for worker in workers:
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """The libraries beneath torch read their number of threads when they are loaded."""
    wanted = {f"{library}_NUM_THREADS": str(threads) for library in LIBRARIES}
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
