"""A try in a process of its own, with a time limit: what it said, how it ended, and what that means."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE = 60.0
"""Seconds after which a try counts as hanging."""
MEMORY = 4 * 2**30
"""Bytes that no try may take: all of them are about tiny networks and data."""
LONGEST = 700
"""Characters of an error's line."""
ACCEPTED, SOME_FAILED, REFUSED, FOREIGN = 0, 1, 2, 70
"""Exit codes: all went well, runs of an experiment failed, one line said why not, an exception not of pof."""
VERDICTS = ("fine", "traceback", "unexplained", "hang", "memory", "silent")
"""``unexplained``: words of torch or Python where pof should have its own; ``silent``: a wrong result, or a wrong
input taken, without a word; also a file of the user's that was changed."""

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *(
            "scripts.hostile.trial",
            "torch",
            "torch.utils.tensorboard",
            "accelerate",
            "jsonargparse",
            "sklearn.datasets",
        ),
        *(
            "torchvision.transforms.v2",
            "PIL.Image",
            "pof.app.cli._train",
            "pof.app.cli._evaluate",
            "pof.app.improve.job",
        ),
    ]
)


@dataclass(frozen=True)
class Ended:
    """How a process ended; the code is negative for a signal, None if it hung and was killed."""

    code: int | None
    out: str
    err: str
    peak: int
    """Bytes of memory it had at most."""


@dataclass(frozen=True)
class Try:
    """A try and its verdict."""

    kind: str
    name: str
    verdict: str
    said: str
    seconds: float


class Child:
    """A function in a process, and a process group, of its own, in a folder; its exit code is what it returns."""

    def __init__(self, cwd: Path, function: Callable[..., int], *arguments: Any, **environment: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        target: Any = CONTEXT.Process
        given = (function, arguments, str(cwd), self._folder.name, environment)
        self.process = target(target=_run, args=given)
        self.process.start()

    def kill(self) -> None:
        """Kill it, and not what it has started."""
        self.process.kill()

    def ended(self, patience: float = PATIENCE) -> Ended:
        """Wait for the end; whatever it has started is killed with it."""
        self.process.join(patience)
        code = self.process.exitcode
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
        with self._folder:
            out, err, peak = (_text(Path(self._folder.name, name)) for name in ("1", "2", "peak"))
        return Ended(code, out, err, int(peak or 0))


def pof(*arguments: str) -> int:
    """The command line, in a child."""
    from pof.app.cli import main

    return main(arguments)


def judged(kind: str, name: str, since: float, ended: Ended, wrong: str | None = None) -> Try:
    """A try that must be refused in one line, or have done what ``wrong`` finds no fault with (None: never)."""
    said = " ".join((ended.err or ended.out).split())
    return Try(kind, name, _verdict(ended, wrong), wrong or said[-LONGEST:], round(time.monotonic() - since, 2))


def _verdict(ended: Ended, wrong: str | None) -> str:
    if ended.code is None:
        return "hang"
    if ended.peak > MEMORY or ended.code == -signal.SIGKILL:
        return "memory"
    if "Traceback (most recent" in ended.out + ended.err or ended.code < 0:
        return "traceback"
    if wrong is not None:
        return "silent"
    if ended.code == FOREIGN or "POF_TRACEBACK=1" in ended.err + ended.out:
        return "unexplained"
    if ended.code == SOME_FAILED:  # an experiment says in a line each which runs failed, and why
        return "fine" if re.search(r"^failed: \S+: .{20}", ended.out, re.MULTILINE) else "unexplained"
    lines = [line for line in ended.err.splitlines() if line.startswith("pof: error: ")]
    one = len(lines) == 1 and len(lines[0]) <= LONGEST
    return "fine" if ended.code == ACCEPTED or one else "unexplained"


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder, by its content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = os.readlink(path)
        elif path.is_file():
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def changed(before: Mapping[str, str], folder: Path) -> str | None:
    """Say which file of a folder is not what it was."""
    now = contents(folder)
    name = next((name for name, content in before.items() if now.get(name) != content), None)
    return None if name is None else f"{name} was changed"


def copied(world: Path, into: Path) -> Path:
    """A copy of a folder to break things in."""
    shutil.copytree(world, into, symlinks=True)
    return into


def _run(function: Any, arguments: Any, cwd: str, folder: str, environment: dict[str, str]) -> None:
    os.setsid()
    os.chdir(cwd)
    os.environ.update(environment)
    resource.setrlimit(resource.RLIMIT_DATA, (4 * MEMORY, 4 * MEMORY))
    for number in (1, 2):
        os.dup2(os.open(Path(folder, str(number)), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.path.insert(0, cwd)
    try:
        sys.exit(function(*arguments))
    finally:
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        Path(folder, "peak").write_text(str(peak), encoding="utf-8")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
