"""How one candidate is trained: its schedule and folder, and what it may refuse without ending the search."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pof._support.precision import find_precision
from pof.app.job import make_optimizer
from pof.app.methods import Context, build_method
from pof.app.options import TrainOptions, schedule_of
from pof.data.checks import DataError
from pof.methods import Method
from pof.training.schedules import Schedule
from pof.training.step import Stepper, StepResult
from pof.training.stream import Micro

WARMUP = 0.1
"""Share of a rung in which the rate rises, of runs that do not say."""


@dataclass(frozen=True)
class Cycles(Schedule):
    """Half a cosine per rung (Loshchilov and Hutter, ICLR 2017): runs are compared with their rates at 0."""

    ends: tuple[int, ...] = ()

    def factor(self, step: int, total: int) -> float:
        """Factor on the learning rate at a step; ``warmup`` is the share of each cycle that rises."""
        start = max((end for end in self.ends if end <= step), default=0)
        length = next((end for end in self.ends if end > step), total) - start
        warm = int(self.warmup * length)
        if step - start < warm:
            return (step - start + 1) / (warm + 1)
        return 0.5 * (1.0 + math.cos(math.pi * (step - start - warm) / max(1, length - warm)))


def schedule_in(ends: tuple[int, ...], options: TrainOptions) -> Schedule:
    """The schedule of a run whose rungs end at these steps: a constant rate, where it asks for that, or cycles."""
    asked = schedule_of(options)
    share = asked.warmup or WARMUP
    if asked.kind == "constant":
        return Schedule("constant", warmup_steps=int(share * ends[0]))
    return Cycles(warmup=share, ends=ends)


class Refused(ValueError):
    """A method that this network does not take: its candidate is dropped, and the others go on."""


class CandidateStepper(Stepper):
    """Tells what a method refuses from what the loader cannot give, which ends the search."""

    def step(self, window: list[Micro]) -> StepResult:
        """Take one step; a ``Refused`` where the method or the network refuses it."""
        try:
            return super().step(window)
        except ValueError as error:
            raise Refused(str(error)) from error


class Readable:
    """A loader whose errors end the search, whatever a method makes of it."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader  # a name by which its generators are found

    def __getattr__(self, name: str) -> Any:
        if name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.loader
        except ValueError as error:
            raise RuntimeError(f"the training data cannot be read: {error}") from error


def built(context: Context, options: TrainOptions, device: torch.device) -> tuple[Method, CandidateStepper]:
    """Build a candidate's method and its optimizer; a ``Refused`` where the network does not take them."""
    try:
        method = build_method(context).to(device)
        optimizer, precision = make_optimizer(method, options), find_precision(options.precision, device)
        return method, CandidateStepper(method, optimizer, precision, options.clip_norm)
    except DataError:
        raise
    except ValueError as error:
        raise Refused(str(error)) from error


def folder_of(name: str) -> str:
    """The folder of a run: another one for each name of a candidate, whatever is in it."""
    plain = re.sub(r"[^\w.+-]", "_", name.replace(",", ""))[:100]
    if re.fullmatch(r"[a-z0-9 .+-]{1,80}, lr [0-9.e+-]+", name):
        return plain
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
