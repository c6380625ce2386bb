"""The rates that candidates are tried at: the largest stable ones, found by a few steps from the incoming network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from itertools import cycle, islice
from typing import Any

import torch
from torch import nn

from pof._support.batches import for_training, unpack
from pof._support.modules import copied, device_of
from pof._support.random import isolated
from pof.app.budget import once, per_epoch
from pof.app.experiment.recipe import parse_section
from pof.app.improve.attempt import Readable, Refused, built
from pof.app.methods import GROUPS, Context, build_method, entry_of
from pof.app.options import TrainOptions
from pof.training.step import in_words
from pof.training.stream import Micro

STEPS, MOST_STEPS, FACTOR = 8, 32, 4.0
SHARE_OF_BUDGET = 0.035
"""Of the steps that the budget pays, for one rate: a network that fits its data well takes 30 steps to come apart."""
RANGE = {"sgd": (1e-3, 1.0), "adamw": (1e-6, 1e-2)}
RISE = 0.1
"""Rise of the loss that counts as unstable, as a share of the loss of guessing."""
SHARE = 0.5
"""First rate of a candidate, as a share of the largest stable one."""


@dataclass
class RateSearch:
    """Steps from the incoming network, each time from its own copy; counts what they cost."""

    network: nn.Module
    head: str | None
    train_loader: Iterable[Any]
    rewind: Callable[[], None]
    """Puts the loader back to where the search started."""
    classes: int
    steps_per_epoch: int
    """Of one mini-batch each, whatever is accumulated."""
    steps: int = STEPS
    """That a rate is tried for."""
    spent: float = 0.0
    """Forward-backward passes over the training set."""

    def __post_init__(self) -> None:
        self.rewind()
        with isolated(0, device_of(self.network)):
            self._batches = [unpack(batch) for batch in islice(self.train_loader, self.steps)]
            before, guessing = self._losses(copied(self.network))
        self._bound, self._lost = before + RISE * guessing, before + guessing

    def rates(self, families: Mapping[str, Mapping[str, Any]], base: TrainOptions) -> dict[str, float]:
        """Find the first rate of each family.

        Its own where it has one; else that of :func:`first_rate`, lowered for the methods of several passes (SAM) until
        it is stable for them too.
        """
        found = {name: float(options["lr"]) for name, options in families.items() if "lr" in options}
        wanted = {name: options for name, options in families.items() if name not in found}
        plain = self.largest_stable(replace(base, method="finetune")) if wanted else 0.0
        for name, options in wanted.items():
            rate = first_rate(plain, str(options["method"]))
            training = candidate_options({**options, "lr": rate}, base, f"candidates.{name}")
            own = entry_of(training.method).rate != SHARE
            if not own and per_epoch(training) > 1:
                rate = self.largest_stable(training, rate)
            found[name] = rate
        return found

    def largest_stable(self, options: TrainOptions, highest: float | None = None) -> float:
        """Find the largest rate at which a few steps do not raise the loss, within a factor of two.

        Returns:
            The rate; the smallest of the grid if none is stable.
        """
        lowest, top = RANGE[options.optimizer]
        highest = top if highest is None else highest
        rate = highest
        while rate > lowest and not self._is_stable(replace(options, lr=rate)):
            rate /= FACTOR
        if lowest < rate < highest and self._is_stable(replace(options, lr=2 * rate)):
            rate *= 2
        return max(rate, lowest)

    def _is_stable(self, options: TrainOptions) -> bool:
        options = replace(options, epochs=1)
        cost = float(per_epoch(options))
        # The perturbation of SAM raises the loss at once: what comes apart there does so in a few steps.
        steps = self.steps if cost == 1 else min(STEPS, self.steps)
        network = copied(self.network)
        device = device_of(network)
        self.rewind()
        loader = Readable(self.train_loader)
        with isolated(options.seed, device):
            try:
                context = Context(network, self.head, options, self.classes, loader, loader)
                method, stepper = built(context, replace(options, clip_norm=None), device)
                method.train()
                self.spent += float(once(options))
                for micro in islice(self._micros(cycle(self._batches)), steps):
                    self.spent += cost / self.steps_per_epoch
                    loss = float(stepper.step([micro]).means["loss"])
                    if not loss <= self._lost:
                        return False
            except Refused:  # the network does not take the method, as its run will say
                return True
            after, _ = self._losses(network)
        return math.isfinite(after) and after <= self._bound

    @torch.no_grad()
    def _losses(self, network: nn.Module) -> tuple[float, float]:
        """The mean loss of the mini-batches in training mode, and that of guessing; moves running statistics."""
        plain = build_method(Context(network, self.head, TrainOptions("finetune"), self.classes, ()))
        plain.train()
        outputs = []
        for number, micro in enumerate(self._micros(self._batches), 1):
            try:
                outputs.append(plain(micro.inputs, micro.targets))
            except ValueError as error:
                raise ValueError(in_words(error, number, micro.size, ()) or str(error)) from error
        guessing = math.log(max(2, outputs[0].logits.shape[1]))
        return float(torch.stack([out.loss for out in outputs]).mean()), guessing

    def _micros(self, batches: Iterable[Any]) -> Iterator[Micro]:
        """Mini-batches, on the device one by one: it need not have room for all of them."""
        for batch in batches:
            inputs, targets = for_training(batch, device_of(self.network))
            yield Micro(inputs, targets, None)


def steps_of(budget: float, steps_per_epoch: int) -> int:
    """How many steps a rate is tried for: eight, or a pass where that is less, or as many more as the budget pays."""
    return min(MOST_STEPS, max(min(STEPS, steps_per_epoch), int(SHARE_OF_BUDGET * budget * steps_per_epoch)))


def first_rate(centre: float, method: str) -> float:
    """``SHARE`` of a rate of plain training; of a method with a share of its own (PoF), four times that share of it."""
    share = entry_of(method).rate
    return centre * SHARE * (1.0 if share == SHARE else 4 * share)


def candidate_options(values: Mapping[str, Any], base: TrainOptions, where: str) -> TrainOptions:
    """Read the options of a candidate; what all share with the training is taken from ``base``."""
    training = parse_section(TrainOptions, values, where)
    other = next((key for key in values if key not in OWN), None)
    if other is not None:
        raise ValueError(
            f"{where}.{other}: a candidate's own options are {', '.join(OWN)}; all share the rest: give it to the"
            " search, in Python as training=TrainOptions(...)"
        )
    return replace(training, **{key: getattr(base, key) for key in COMMON})


OWN = ("method", "lr", "schedule", "average", *GROUPS)
"""Options that a candidate can have of its own."""
COMMON = (
    *("batch_size", "accumulation", "label_smoothing", "seed", "optimizer", "momentum", "weight_decay"),
    *("clip_norm", "precision", "device"),
)
"""Options that all candidates share with the training."""


def check_shared(base: TrainOptions) -> None:
    """Refuse options of the training that no candidate would take from it."""
    usual = TrainOptions("finetune")
    for name in (field.name for field in fields(base) if field.name not in {"method", *COMMON}):
        if getattr(base, name) != getattr(usual, name):
            raise ValueError(
                f"training.{name}: candidates take {', '.join(COMMON)} from the training; budget decides the epochs,"
                " lr is an argument of its own, and methods with their options are candidates"
            )
