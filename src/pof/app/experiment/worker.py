"""What a worker does with a stage, wherever it runs."""

from __future__ import annotations

import shutil
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from filelock import FileLock

from pof.app import job
from pof.app.errors import one_line
from pof.app.experiment.plan import Stage
from pof.app.options import RunOptions
from pof.training.fit import DivergenceWarning, InterruptionWarning

INTERRUPTED = "interrupted"
LATE = 60.0
"""Seconds after which a shared file system shows on every machine what one has written (NFS keeps names so long)."""


@dataclass(frozen=True)
class Outcome:
    """How a stage ended in a worker."""

    reason: str | None = None
    """Why it failed, in a line; None if it did not."""
    details: str = ""
    """The traceback."""


def stage_runner(runs: Path) -> Callable[[Stage], Outcome]:
    """What a worker does: run stages, each into its folder in ``runs``."""
    for category in (DivergenceWarning, InterruptionWarning):
        warnings.simplefilter("ignore", category)  # told with the results
    return partial(_outcome, runs=runs)


def run_stage(stage: Stage, runs: Path) -> bool:
    """Run a stage, or go on with it; nothing is done if it is finished."""
    folder = runs / stage.name
    with _locked(runs, stage.name):
        if is_finished(folder):
            return True
        model = stage.model
        if stage.parent is not None:
            appears(runs / stage.parent)
            model = replace(model, weights=str((runs / stage.parent).resolve()))
        result = job.train(model, stage.data, stage.training, RunOptions(str(folder), resume=True), lambda row: None)
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


def appears(folder: Path) -> bool:
    """Wait until a stage that was finished, on another machine perhaps, is seen here."""
    end = time.monotonic() + LATE
    while not is_finished(folder) and time.monotonic() < end:
        time.sleep(0.5)
    return is_finished(folder)


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
