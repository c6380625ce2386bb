"""What ``pof improve`` tries: methods with their options, each at rates around the largest stable one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pof._support.checks import finite
from pof.app.budget import passes
from pof.app.experiment.checks import check_training
from pof.app.experiment.recipe import parse_section
from pof.app.methods import METHODS, AverageOptions, entry_of
from pof.app.options import TrainOptions

FAMILIES: dict[str, dict[str, Any]] = {
    "sgd": {"method": "finetune"},
    "sam auto": {"method": "sam", "sam": {"rho": "auto"}},
    "sam auto quarter": {"method": "sam", "sam": {"rho": "auto", "ascent_share": 0.25}},
    "head-ascent": {"method": "head-ascent"},
    "pof": {"method": "pof"},
    "pof fixed": {"method": "pof", "pof": {"sampling": "fixed"}},
}
"""Tried unless others are named, the most promising first: a small budget tries the first of them only."""
SHARES = (0.5, 0.1)
"""Rates, as shares of the centre; of methods with a share of their own (PoF), of four times that share of it."""
EMA_HORIZON = 0.1
"""Share of a run's steps that the exponential moving average beside it looks back on."""


@dataclass(frozen=True)
class Candidate:
    """One training: a method with its options at one learning rate; its moving average is judged beside it."""

    name: str
    options: TrainOptions

    @property
    def passes_per_epoch(self) -> float:
        """Forward-backward passes over the training set that an epoch costs."""
        plain = replace(self.options, epochs=1, average=AverageOptions())
        return float(passes(plain))


def families(chosen: Sequence[str] | Mapping[str, Mapping[str, Any]] | None) -> dict[str, dict[str, Any]]:
    """Look up what is to be tried: names of families or methods, or a mapping of one's own names to options."""
    if chosen is None:
        return FAMILIES
    if isinstance(chosen, Mapping):
        return {name: {"method": name, **dict(options or {})} for name, options in chosen.items()}
    unknown = [name for name in chosen if name not in FAMILIES and name not in METHODS]
    if unknown or not chosen:
        raise ValueError(
            f"candidates: {unknown[0] if unknown else 'none'!r} is not known; choose among {', '.join(FAMILIES)},"
            f" {', '.join(name for name in METHODS if name not in FAMILIES)}"
        )
    return {name: FAMILIES.get(name, {"method": name}) for name in chosen}


def make_candidates(
    wanted: Mapping[str, Mapping[str, Any]], base: TrainOptions, centre: float, most: int
) -> list[Candidate]:
    """Make the candidates, at most ``most``: every family at its first rate before any at its second."""
    found: list[Candidate] = []
    for share in SHARES:
        for name, options in wanted.items():
            own = entry_of(str(options["method"])).rate
            rate = float(f"{centre * share * (1.0 if own == 0.5 else 4 * own):.2g}")
            values = {**options, "lr": options.get("lr", rate)}
            training = _checked(parse_section(TrainOptions, values, f"candidates.{name}"), base, name)
            candidate = Candidate(f"{name}, lr {training.lr:g}", training)
            if candidate.name not in {other.name for other in found}:
                found.append(candidate)
    return found[:most]


def _checked(training: TrainOptions, base: TrainOptions, name: str) -> TrainOptions:
    """With the options that all share; refused where a run would refuse them."""
    try:
        finite("lr", training.lr, above=0)
        training = replace(training, **{key: getattr(base, key) for key in COMMON})
        check_training(training, from_scratch=False)
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"candidates.{name}: {' '.join(str(error).split())}") from error
    return training


COMMON = (
    *("batch_size", "accumulation", "label_smoothing", "seed", "optimizer", "momentum", "weight_decay"),
    *("clip_norm", "precision", "device"),
)
"""Options that all candidates share with the training."""
