"""What runs in a worker process: one stage after the other, until the parent closes the connection or is gone."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import traceback
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from pof.app import job
from pof.app.errors import one_line
from pof.app.experiment.plan import Stage
from pof.app.options import RunOptions
from pof.training.fit import DivergenceWarning

INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Outcome:
    """How a stage ended in a worker."""

    reason: str | None = None
    """Why it failed, in a line; None if it did not."""
    details: str = ""
    """The traceback."""


def work(connection: Connection, runs: Path, threads: int) -> None:
    """Run the stages that come through the connection, and answer each with its outcome."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent then tells us
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore", DivergenceWarning)  # told with the results
    warnings.formatwarning = _line
    with suppress(EOFError, OSError):
        while True:
            outcome = _outcome(connection.recv(), runs)
            connection.send(outcome)
            if outcome.reason == INTERRUPTED:
                return


def run_stage(stage: Stage, runs: Path) -> bool:
    """Run a stage, or go on with it; nothing is done if it is finished."""
    folder = runs / stage.name
    with _locked(runs, stage.name):
        if is_finished(folder):
            return True
        model = stage.model
        if stage.parent is not None:
            model = replace(model, weights=str((runs / stage.parent).resolve()))
        result = job.train(model, stage.data, stage.training, RunOptions(str(folder), resume=True), _nowhere)
        if result.after is None:
            return False
        discard_state(folder)
    return True


def discard_state(folder: Path) -> None:
    """Remove the state of a finished stage: several times the size of the network, and of no use any more."""
    shutil.rmtree(folder / "state", ignore_errors=True)


def is_finished(folder: Path) -> bool:
    """Tell whether a stage is finished: its figures are written last."""
    return (folder / "result.json").exists()


def _outcome(stage: Stage, runs: Path) -> Outcome:
    try:
        return Outcome() if run_stage(stage, runs) else Outcome(INTERRUPTED)
    except KeyboardInterrupt:
        return Outcome(INTERRUPTED)
    except Exception as error:  # anything that a user's model or data raise
        return Outcome(one_line(error), traceback.format_exc())


def _locked(runs: Path, name: str) -> AbstractContextManager[object]:
    """Wait until no other process, of this experiment or another, writes to this run folder; the system unlocks."""
    folder = runs / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / name)


def end_with_parent() -> None:
    """Wait until the process that started this one is gone, and end this one at once."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _line(message: Warning | str, *_: Any, **__: Any) -> str:
    return f"warning: {message}\n"


def _nowhere(row: Mapping[str, Any]) -> None:
    """The run folder's own log is enough."""
