"""What ``pof improve`` tries: methods with their options, each at rates below the largest stable one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pof._support.checks import finite
from pof.app.budget import once, per_epoch
from pof.app.experiment.recipe import checked
from pof.app.improve.rate import candidate_options
from pof.app.methods import METHODS
from pof.app.options import TrainOptions, schedule_of
from pof.training.schedules import Schedule

FAMILIES: dict[str, dict[str, Any]] = {
    "sam auto": {"method": "sam", "sam": {"rho": "auto"}},
    "head-ascent": {"method": "head-ascent"},
    "sgd": {"method": "finetune"},
    "ema constant": {"method": "finetune", "average": {"kind": "ema"}, "schedule": {"kind": "constant"}},
    "sam auto quarter": {"method": "sam", "sam": {"rho": "auto", "ascent_share": 0.25}},
    "pof": {"method": "pof"},
    "pof fixed": {"method": "pof", "pof": {"sampling": "fixed"}},
}
"""Tried unless others are named, those that gained most in docs/results.md first: a small budget tries only them."""
UNFITTED = {"sgd": FAMILIES["sgd"]}
"""Tried in their place where the network does not fit its training data: what that lacks is training."""
MOST = 64
"""Candidates that may be named."""
SHARES = (1.0, 0.2)
"""Rates, as shares of a family's first one."""


@dataclass(frozen=True)
class Candidate:
    """One training: a method with its options at one learning rate; an average of its iterates is judged beside it."""

    name: str
    options: TrainOptions

    @property
    def passes_per_epoch(self) -> float:
        """Forward-backward passes over the training set that an epoch costs."""
        return float(per_epoch(self.options))

    @property
    def passes_once(self) -> float:
        """What is spent before the first epoch, each time that the training begins."""
        return float(once(self.options))


def families(chosen: Sequence[str] | Mapping[str, Mapping[str, Any]] | None) -> dict[str, dict[str, Any]]:
    """Look up what is to be tried: names of families or methods, or a mapping of your own names to options."""
    if chosen is None:
        return FAMILIES
    if isinstance(chosen, str):
        raise ValueError(f"candidates is a list of names, such as [{chosen!r}]; got {chosen!r}")
    if not 0 < len(chosen) <= MOST:
        raise ValueError(f"candidates: give 1 to {MOST} names, or none for the usual ones; got {len(chosen)}")
    if isinstance(chosen, Mapping):
        return {name: {"method": name, **dict(options or {})} for name, options in chosen.items()}
    unknown = [name for name in chosen if name not in FAMILIES and name not in METHODS]
    if unknown:
        raise ValueError(
            f"candidates: {unknown[0]!r} is not known; choose among {', '.join(FAMILIES)},"
            f" {', '.join(name for name in METHODS if name not in FAMILIES)}"
        )
    return {name: FAMILIES.get(name, {"method": name}) for name in chosen}


def check_options(wanted: Mapping[str, Mapping[str, Any]], base: TrainOptions) -> None:
    """Refuse options of candidates that a run would refuse."""
    for name, options in wanted.items():
        training = checked(candidate_options(options, base, f"candidates.{name}"), f"candidates.{name}")
        finite(f"candidates.{name}.lr", training.lr, above=0)
        _check_schedule(schedule_of(training), f"candidates.{name}.schedule")


def _check_schedule(schedule: Schedule, where: str) -> None:
    if schedule.kind == "step" or schedule.warmup_steps:
        wrong = "kind step" if schedule.kind == "step" else f"warmup_steps {schedule.warmup_steps}"
        raise ValueError(
            f"{where}.{wrong}: the search has a cosine for each rung, or constant; warmup is a share of it"
        )


def make_candidates(
    wanted: Mapping[str, Mapping[str, Any]], base: TrainOptions, rates: Mapping[str, float], most: int
) -> list[Candidate]:
    """Make the candidates, at most ``most``: every family at its first rate before any at its second."""
    found: dict[str, Candidate] = {}
    for share in SHARES:
        for name, options in wanted.items():
            values = {**options, "lr": options.get("lr", float(f"{rates[name] * share:.2g}"))}
            training = candidate_options(values, base, f"candidates.{name}")
            candidate = Candidate(f"{name}, lr {training.lr:g}", training)
            found.setdefault(candidate.name, candidate)
    return list(found.values())[:most]
