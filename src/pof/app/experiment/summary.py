"""From rows to what is said about them: for each setting and method a spread and two paired comparisons.

A method is compared, seed by seed, with the network it started from and with the control; all t-tests of the table
are one family for the correction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from pof.app.experiment.plan import Plan
from pof.app.experiment.recipe import Recipe
from pof.app.experiment.statistics import Paired, Spread, corrected, paired, spread
from pof.app.experiment.table import ResultRow, planned

Measure = Literal["error", "nll", "ece", "val_error", "val_nll", "val_error_last", "val_nll_last"]
LABELS: dict[Measure, str] = {
    "error": "test error",
    "nll": "test NLL",
    "ece": "test ECE",
    "val_error": "validation error",
    "val_nll": "validation NLL",
    "val_error_last": "validation error of the last epoch",
    "val_nll_last": "validation NLL of the last epoch",
}
SHARES = ("error", "ece", "val_error", "val_error_last")
"""Measures that are shown in percent."""


@dataclass(frozen=True)
class Entry:
    """A method in a setting."""

    setting: str
    method: str
    epochs: int
    units: float
    figures: Spread
    before: Spread | None
    """Of the incoming networks of the same runs; None where they have no figure (a new head)."""
    to_incoming: Paired | None
    """Minus the incoming network, seed by seed."""
    to_control: Paired | None
    """Minus the control, over the seeds that both have; None for the control itself."""


@dataclass(frozen=True)
class Summary:
    """An experiment in figures."""

    name: str
    measure: Measure
    control: str | None
    runs: int
    planned: int
    comparisons: int
    """Size of the family of tests."""
    destroyed: tuple[str, ...]
    """Runs that are left out: figures of theirs are not finite, or are to be of a last epoch that diverged."""
    diverged: tuple[str, ...]
    """Trainings that diverged and were put back to their best epoch, pre-trainings first."""
    entries: tuple[Entry, ...]

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of the settings that have results, in order."""
        return tuple(dict.fromkeys(entry.setting for entry in self.entries))


def summarise(plan: Plan, rows: Sequence[ResultRow], measure: Measure = "error") -> Summary:
    """Compute the table of an experiment."""
    check_measure(plan.recipe, measure)
    sound = [row for row in rows if _is_sound(row, measure)]
    by_arm: dict[tuple[str, str], dict[int, ResultRow]] = {}
    for row in sound:
        by_arm.setdefault((row.setting, row.method), {})[row.seed] = row
    entries = [_entry(arm, by_arm, plan.recipe.control, measure) for arm in by_arm]
    tests = [test for entry in entries for test in (entry.to_incoming, entry.to_control) if test is not None]
    after = iter(corrected(tests))
    entries = [
        replace(
            entry,
            to_incoming=None if entry.to_incoming is None else next(after),
            to_control=None if entry.to_control is None else next(after),
        )
        for entry in entries
    ]
    return Summary(
        plan.recipe.name,
        measure,
        plan.recipe.control,
        len(rows),
        planned(plan),
        sum(test.p is not None for test in tests),
        tuple(f"{row.setting}, {row.method}, seed {row.seed}" for row in rows if row not in sound),
        _diverged(rows),
        _in_order(plan, entries),
    )


def _diverged(rows: Sequence[ResultRow]) -> tuple[str, ...]:
    before = [f"{r.setting}, pre-training, seed {r.seed}" for r in rows if r.pretrain_stopped == "diverged"]
    own = [f"{r.setting}, {r.method}, seed {r.seed}" for r in rows if r.stopped == "diverged"]
    return tuple(dict.fromkeys([*before, *own]))


def _is_sound(row: ResultRow, measure: Measure) -> bool:
    """Tell whether a run's figures are finite: else its network is destroyed, and its error one of guessing.

    The last epoch of a run that diverged has no figures; the one before may be that of the incoming network.
    """
    if measure.endswith("_last") and row.stopped == "diverged":
        return False
    return all(math.isfinite(getattr(row, name)) for name in ("error", "nll", "ece", measure))


def check_measure(recipe: Recipe, measure: Measure) -> None:
    """Check, before anything runs, that all runs will have a figure."""
    if measure not in get_args(Measure):
        raise ValueError(f"measure is one of {', '.join(get_args(Measure))}; got {measure!r}")
    without = [setting.name for setting in recipe.settings if not setting.data.validation]
    if measure.startswith("val_") and without:
        raise ValueError(f"measure {measure} needs validation data: setting {without[0]!r} has data.validation 0")


def _in_order(plan: Plan, entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """As in the recipe: runs of the first seeds may lack methods."""
    arms = [(setting.name, method) for setting in plan.recipe.settings for method in setting.methods]
    return tuple(sorted(entries, key=lambda entry: arms.index((entry.setting, entry.method))))


def _entry(
    arm: tuple[str, str],
    by_arm: Mapping[tuple[str, str], Mapping[int, ResultRow]],
    control: str | None,
    measure: Measure,
) -> Entry:
    own = by_arm[arm]
    first = next(iter(own.values()))
    values = {seed: float(getattr(row, measure)) for seed, row in own.items()}
    before = f"{measure.removesuffix('_last')}_before"
    known = {s: getattr(row, before) for s, row in own.items()}
    incoming = {s: float(value) for s, value in known.items() if value is not None and math.isfinite(value)}
    rival = by_arm.get((arm[0], control or ""), {}) if arm[1] != control else {}
    reference = {seed: float(getattr(row, measure)) for seed, row in rival.items()}
    return Entry(
        *arm,
        epochs=first.epochs,
        units=first.units,
        figures=spread(list(values.values())),
        before=spread(list(incoming.values())) if incoming else None,
        to_incoming=_paired(incoming, values),
        to_control=_paired(reference, values),
    )


def _paired(before: Mapping[int, float], after: Mapping[int, float]) -> Paired | None:
    seeds = [seed for seed in after if seed in before]
    return paired([before[s] for s in seeds], [after[s] for s in seeds]) if seeds else None
