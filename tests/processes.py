"""Commands and groups of ranks in processes of their own, started warm: one server imports everything and forks."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from pof.app import cli

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "tests.processes",
        "accelerate",
        "jsonargparse",
        "sklearn.datasets",
        "torch.utils.tensorboard",
        "pof.app.cli._demo",
        "pof.app.cli._evaluate",
        "pof.app.cli._train",
    ]
)
# A parser is made once.
for command in ("train", "post-train", "experiment"):
    cli.parse([command, "--out", "run"])
# Torch puts off a third of its imports until the first optimizer is made.
torch.optim.SGD([torch.zeros(1)], lr=1.0)
PATIENCE = 300.0
"""Seconds after which a process counts as hanging; many times what any of them takes."""


@dataclass(frozen=True)
class Finished:
    """How a command ended; the code is negative for a signal."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Stop:
    """A command sends itself a signal: right after a row of its log was written, or at its n-th ``fsync``."""

    number: signal.Signals
    event: str
    """``"step"``, ``"epoch"`` or ``"fsync"``."""
    at: int


class Process:
    """A function in a process of its own; its exit code is what the function returns."""

    def __init__(self, function: Callable[..., int], *arguments: Any) -> None:
        self._folder = tempfile.TemporaryDirectory()
        target: Any = CONTEXT.Process
        self.process = target(target=_call, args=(function, arguments, os.getcwd(), self._folder.name))
        self.process.start()

    def wait(self) -> Finished:
        """Wait for the end; a process that hangs is killed and fails the test."""
        self.process.join(PATIENCE)
        hangs = self.process.exitcode is None
        if hangs:
            self.process.kill()
            self.process.join()
        with self._folder:
            texts = [Path(self._folder.name, name).read_text(encoding="utf-8") for name in ("1", "2")]
        assert not hangs, f"hangs: {texts}"
        return Finished(self.process.exitcode, *texts)


def start(*arguments: str, stop: Stop | None = None) -> Process:
    """Start ``pof ARGUMENTS``."""
    return Process(_command, arguments, stop)


def pof(*arguments: str, stop: Stop | None = None) -> Finished:
    """Run ``pof ARGUMENTS`` to its end."""
    return start(*arguments, stop=stop).wait()


def pof_ranks(size: int, *arguments: str, of_last: Sequence[str] = ()) -> list[Finished]:
    """Run ``pof ARGUMENTS`` in several processes that find each other as they do under torchrun.

    The last process gets the arguments ``of_last`` too.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    commands = [*[arguments] * (size - 1), (*arguments, *of_last)]
    processes = [Process(_command, command, None, (rank, size, port)) for rank, command in enumerate(commands)]
    return [process.wait() for process in processes]


def ranks(function: Callable[..., Any], size: int, folder: Path, *arguments: Any) -> list[Any]:
    """Call ``function(rank, *arguments)`` in a process group (gloo) of ``size``; returns what each rank returns."""
    target: Any = CONTEXT.Process
    processes = [target(target=_rank, args=(function, rank, size, str(folder), arguments)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * size, f"exit codes {codes} (None: hangs)"
    results = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]
    for file in (*(f"{rank}.pt" for rank in range(size)), "rendezvous"):
        (folder / file).unlink(missing_ok=True)
    return results


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this Python anew, cold; if it hangs, the processes that it started are killed with it."""
    command = [sys.executable, *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _call(function: Callable[..., int], arguments: tuple[Any, ...], cwd: str, folder: str) -> None:
    # A suite in the background of a shell ignores Ctrl-C, and its children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    for number in (1, 2):
        os.dup2(os.open(Path(folder, str(number)), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.exit(function(*arguments))


def _command(arguments: Sequence[str], stop: Stop | None, place: tuple[int, int, int] | None = None) -> int:
    if place is not None:
        rank, size, port = map(str, place)
        os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=size, MASTER_ADDR="localhost", MASTER_PORT=port)
    from pof.app.cli import main

    if stop is not None:
        _arm(stop)
    return main(arguments)


def _arm(stop: Stop) -> None:
    from pof.app.run_folder import Run

    log, sync, calls = Run.log, os.fsync, itertools.count(1)

    def logging(self: Run, row: Any) -> None:
        log(self, row)
        if row["event"] == stop.event and row[stop.event] == stop.at:
            os.kill(os.getpid(), stop.number)

    def syncing(descriptor: int) -> None:
        sync(descriptor)
        if next(calls) == stop.at:
            os.kill(os.getpid(), stop.number)

    if stop.event == "fsync":
        os.fsync = syncing
    else:
        Run.log = logging  # type: ignore[method-assign]


def _rank(function: Callable[..., Any], rank: int, size: int, folder: str, arguments: tuple[Any, ...]) -> None:
    distributed.init_process_group(
        "gloo", f"file://{folder}/rendezvous", rank=rank, world_size=size, timeout=timedelta(seconds=PATIENCE / 2)
    )
    try:
        torch.save(function(rank, *arguments), f"{folder}/{rank}.pt")
    finally:
        distributed.destroy_process_group()
