"""The four kinds of runs that are killed and damaged: how to start one, and what must be the same after a resume."""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.hostile import world
from scripts.hostile.trial import Child, Ended, pof

from pof.app.experiment.table import INCIDENTAL

OUT = "new"
LONGER = ("--epochs", "12", "--checkpoint_every", "3")
LONG_RECIPE = world.RECIPE.replace("epochs: 2", "epochs: 6").replace("budget: 2", "budget: 6")


@dataclass(frozen=True)
class Kind:
    """A command that writes to the folder ``new``."""

    command: tuple[str, ...]
    resume: tuple[str, ...]
    """What goes on with it; also where there is nothing yet."""
    figures: Callable[[Path], Any]
    """What must be bitwise the same however often it was interrupted."""
    state: str
    """Where a state of it may be, as a pattern."""


def _of_a_run(out: Path) -> Any:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return (out / "model.safetensors").read_bytes(), kept, {k: v for k, v in result.items() if k != "seconds"}


def _of_a_search(out: Path) -> Any:
    return [(out / name).read_bytes() for name in ("model.safetensors", "result.json", "test.json")]


def _of_an_experiment(out: Path) -> Any:
    with (out / "tiny" / "results.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in INCIDENTAL} for row in csv.DictReader(file)]


EXPERIMENT = ("experiment", "long.yaml", "--out", OUT, "--jobs", "1")
KINDS = {
    "post-train": Kind(
        (*world.POST_TRAIN, "--method", "pof", *LONGER),
        (*world.POST_TRAIN, "--method", "pof", *LONGER, "--resume"),
        _of_a_run,
        "state/state.pt",
    ),
    "finetune": Kind(
        (*world.POST_TRAIN, "--method", "ema", *LONGER),
        (*world.POST_TRAIN, "--method", "ema", *LONGER, "--resume"),
        _of_a_run,
        "state/state.pt",
    ),
    "improve": Kind(world.IMPROVE, (*world.IMPROVE, "--resume"), _of_a_search, "**/state.pt"),
    "experiment": Kind(EXPERIMENT, EXPERIMENT, _of_an_experiment, "**/state.pt"),
}


@dataclass(frozen=True)
class Undisturbed:
    """What a run gives if it is left alone, and how long it takes."""

    figures: Any
    seconds: float


def undisturbed(place: Path, kind: Kind) -> Undisturbed:
    """Run it once, and remove what it has written."""
    (place / "long.yaml").write_text(LONG_RECIPE, encoding="utf-8")
    since = time.monotonic()
    done = Child(place, pof, *kind.command).ended(300)
    if done.code != 0:
        raise RuntimeError(f"{kind.command} does not run: {done.err or done.out}")
    found = Undisturbed(kind.figures(place / OUT), time.monotonic() - since)
    shutil.rmtree(place / OUT)
    return found


def killed(place: Path, kind: Kind, after: float, command: tuple[str, ...] | None = None) -> bool:
    """Start it, and kill it after so many seconds, with all that it started; whether it was still running."""
    child = Child(place, pof, *(command or kind.command))
    child.process.join(after)
    alive = child.process.is_alive()
    child.kill()
    child.ended()
    return alive


def resumed(place: Path, kind: Kind) -> Ended:
    """Go on with what is there."""
    return Child(place, pof, *kind.resume).ended()


def differs(place: Path, kind: Kind, whole: Undisturbed, *, log: bool = True) -> str | None:
    """Say that a run that has ended well is not the undisturbed one; without ``log`` its rows may be others."""
    try:
        found, wanted = kind.figures(place / OUT), whole.figures
        same = found == wanted if log else (found[0], found[2]) == (wanted[0], wanted[2])
    except (OSError, ValueError, KeyError) as error:
        return f"its files are not there: {error}"
    return None if same else "it went on to another result"


def clean(place: Path) -> None:
    """Remove what a run wrote, be it a folder, a link or a FIFO."""
    with suppress(FileNotFoundError, NotADirectoryError):
        shutil.rmtree(place / OUT)
    with suppress(FileNotFoundError):
        os.unlink(place / OUT)
