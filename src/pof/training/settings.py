"""The settings of a run, in plain values: what a resume must find unchanged, and what all processes must share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from pof._support import distributed
from pof._support.described import described, flat
from pof.methods import Method
from pof.training.schedules import Schedule
from pof.training.tasks import AskedMetric


@dataclass(frozen=True)
class Timetable:
    """The lengths of a run, and what happens when."""

    epochs: int
    steps_per_epoch: int
    accumulation: int
    checkpoint_every: int | None
    schedule: Schedule
    total_steps: int | None = None
    """Optimizer steps of the whole run, which the schedule is over; None for those of all epochs."""
    stop_at: int | None = None
    """The step to pause at: the state is saved, and a resume goes on."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.steps_per_epoch if self.total_steps is None else self.total_steps


def fingerprint(
    method: Method,
    optimizer: Optimizer,
    times: Timetable,
    autocast: torch.dtype | None,
    clip_norm: float | None,
    metric: AskedMetric = None,
) -> dict[str, Any]:
    """The settings that a resume must find unchanged, before the first step."""
    kind, groups, own = type(optimizer).__name__, optimizer.param_groups, method.settings()
    # A radius from the data is in the state: taken again, from other mini-batches, it is another one.
    others = {"params", "lr", "initial_lr"} | ({"rho"} if "from the data" in flat(own).values() else set())
    names = dict.fromkeys(name for group in groups for name in group if name not in others)
    return {
        "method": type(method).__name__,
        **own,
        "epochs": times.epochs,
        "steps_per_epoch": times.steps_per_epoch,
        "steps": times.steps,
        "accumulation": times.accumulation,
        "schedule": vars(times.schedule) | {"milestones": list(times.schedule.milestones)},
        "optimizer": kind,
        "learning_rates": [described(group["lr"]) for group in groups],
        kind: {name: _common([_option(group.get(name)) for group in groups]) for name in names},
        "precision": str(autocast),
        "clip_norm": clip_norm,
        "processes": distributed.world_size(),
        **({} if metric is None else {"metric": described(metric)}),
    }


def order_of(method: Method, optimizer: Optimizer) -> list[list[str]]:
    """The names of an optimizer's parameters: its state goes by their order."""
    names = {id(p): re.sub(r"\b(module|_orig_mod)\.", "", name) for name, p in method.named_parameters()}
    return [[names.get(id(p), "?") for p in group["params"]] for group in optimizer.param_groups]


def shared(method: Method, checkpoint_every: int | None) -> dict[str, Any]:
    """What else all processes must share: when they save, what they train, and the seeds of the method."""
    return {
        "checkpoint_every": checkpoint_every,
        "parameters": {
            name: f"{parameter.dtype} {tuple(parameter.shape)}, {'trained' if parameter.requires_grad else 'fixed'}"
            for name, parameter in method.model.named_parameters()
        },
        **{
            f"{name}.seed".lstrip("."): value.initial_seed() if isinstance(value, torch.Generator) else value
            for name, part in method.named_modules()
            if type(part).__module__.startswith("pof.")
            for key, value in vars(part).items()
            if key == "seed" or isinstance(value, torch.Generator)
        },
    }


def _option(value: Any) -> Any:
    # A radius that was computed from the data may have other last bits elsewhere.
    return float(f"{value:.5g}") if isinstance(value, float) else described(value)


def _common(values: list[Any]) -> Any:
    """The value of all groups of parameters, or those of each."""
    return values[0] if all(value == values[0] for value in values) else values
