"""The results of an experiment as one tidy table: a row for each finished run of a method."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pof._support.files import replacing
from pof.app.budget import passes
from pof.app.errors import cell
from pof.app.experiment.plan import RUNS, Plan, Stage, Trial
from pof.app.experiment.worker import is_finished
from pof.app.run_files import read_environment, read_result


@dataclass(frozen=True)
class ResultRow:
    """A finished run; ``error``, ``nll`` and ``ece`` are those of the delivered network on the test set."""

    setting: str
    method: str
    seed: int
    epochs: int
    units: float
    """Forward-backward passes over the training set that the run was planned with."""
    error: float
    nll: float
    ece: float
    error_before: float | None
    """Of the incoming network, on the test set; None where it has a new head."""
    nll_before: float | None
    ece_before: float | None
    val_error: float | None
    """Of the delivered network, on validation; None without validation data."""
    val_error_before: float | None
    val_error_last: float | None
    """Of the network of the last epoch."""
    val_nll: float | None
    val_nll_before: float | None
    val_nll_last: float | None
    best_epoch: int
    stopped: str | None
    pretrain_stopped: str | None
    """Why the pre-training of the incoming network ended early; None where it did not, or there was none."""
    radius: float | None
    """Mean radius over the last epoch, of methods that have one."""
    seconds: float
    folder: str
    commit: str | None


COLUMNS = tuple(field.name for field in fields(ResultRow))
INCIDENTAL = ("seconds", "folder", "commit")
"""Columns that may differ when an experiment is repeated."""


def rows_of(plan: Plan, out: Path) -> list[ResultRow]:
    """Read what is finished of a plan."""
    named = [
        (trial, method, plan.stages[name])
        for trial in plan.trials
        for method, name in trial.methods.items()
        if is_finished(out / RUNS / name)
    ]
    return [_row(trial, method, stage, out) for trial, method, stage in named]


def planned(plan: Plan) -> int:
    """Count the rows that the complete table has."""
    return sum(len(trial.methods) for trial in plan.trials)


def write_csv(rows: Sequence[ResultRow], path: Path) -> None:
    """Write the table; numbers are written so that reading gives the same bits."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([cell(getattr(row, name)) for name in COLUMNS] for row in rows)


def lost_rows(plan: Plan, file: Path) -> list[str]:
    """Rows of a table that is there which a plan would not write again, in words."""
    with file.open(newline="", encoding="utf-8") as opened:
        there = [[row.get(name) for name in ("setting", "method", "seed", "folder")] for row in csv.DictReader(opened)]
    own = [
        [cell(trial.setting), cell(method), str(trial.seed), f"{RUNS}/{name}"]
        for trial in plan.trials
        for method, name in trial.methods.items()
    ]
    return [f"{row[0]}, {row[1]}, seed {row[2]}" for row in there if row not in own]


def _row(trial: Trial, method: str, stage: Stage, out: Path) -> ResultRow:
    folder = out / RUNS / stage.name
    result, surroundings = read_result(folder), read_environment(folder)
    pretrained = None if trial.pretrain is None else read_result(out / RUNS / trial.pretrain)

    def figure(section: str, name: str) -> Any:
        return (result[section] or {}).get(name)

    return ResultRow(
        setting=trial.setting,
        method=method,
        seed=trial.seed,
        epochs=stage.training.epochs,
        units=float(passes(stage.training)),
        error=result["test_after"]["error"],
        nll=result["test_after"]["nll"],
        ece=result["test_after"]["ece"],
        error_before=figure("test_before", "error"),
        nll_before=figure("test_before", "nll"),
        ece_before=figure("test_before", "ece"),
        val_error=figure("validation_after", "error"),
        val_error_before=figure("validation_before", "error"),
        val_error_last=figure("validation_last", "error"),
        val_nll=figure("validation_after", "nll"),
        val_nll_before=figure("validation_before", "nll"),
        val_nll_last=figure("validation_last", "nll"),
        best_epoch=result["best_epoch"],
        stopped=result["stopped"],
        pretrain_stopped=None if pretrained is None else pretrained["stopped"],
        radius=figure("train_last", "radius"),
        seconds=result["seconds"],
        folder=f"{RUNS}/{stage.name}",
        commit=surroundings["commit"],
    )
