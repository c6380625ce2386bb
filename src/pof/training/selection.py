"""Which network a run hands back: the best on validation, the incoming one counting as epoch 0."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from pof._support.batches import to_device
from pof._support.modules import contents, put_back
from pof.methods import Averaged, Method
from pof.training.evaluation import Metrics
from pof.training.tasks import TaskMetrics

Judged = Metrics | TaskMetrics

UNLIKELY = 0.001
"""Probability below which a collapse is no chance; a run asks after each epoch."""
LATE = 0.75
"""Share of a run after which a collapse ends it: a large rate that falls can bring one about and be worth it."""


class Selection:
    """Keeps the best network: fewest errors on validation, among equals the smaller negative log-likelihood.

    With another loss or metric: the best value of the metric, among equals the smaller loss.

    Without validation every finite epoch replaces the one before.
    """

    def __init__(self) -> None:
        self.weights: dict[str, dict[str, Any]] = {}
        self.epoch = 0
        self.metrics: Judged | None = None
        self.incoming: Judged | None = None
        self._before: tuple[dict[str, Any], dict[str, Any]] | None = None

    def begin(self, method: Method, optimizer: Optimizer) -> None:
        """Keep what a run that diverges would leave spoilt beside the network: the states of method and optimizer."""
        own = to_device(contents(method, without=_networks(method)), "cpu")
        self._before = own, copy.deepcopy(optimizer.state_dict())

    def roll_back(self, method: Method, optimizer: Optimizer) -> None:
        """Put back what :meth:`begin` kept, for a next run of the same method, or by the same optimizer."""
        if self._before is not None:
            put_back(method, self._before[0], without=_networks(method))
            optimizer.load_state_dict(self._before[1])

    def consider(self, epoch: int, network: nn.Module, metrics: Judged | None) -> bool:
        """Keep ``network`` if it is the best so far, and tell; epoch 0 is the incoming network."""
        if epoch == 0:
            self.incoming = metrics
        better = metrics is None or self.metrics is None or metrics.rank() < self.metrics.rank()
        if better:
            self.weights, self.epoch, self.metrics = contents(network), epoch, metrics
        return better

    def collapsed(self, metrics: Judged | None, passed: float) -> bool:
        """Tell whether validation surely went more than half of the way from the incoming error to chance, and stays.

        It may recover until a share of :data:`LATE` of the run has passed.

        Surely: were the true error half of the way, one as large on the n samples would have a probability below 0.001,
        by Chernoff's bound.  Few samples say it of no network, and neither does one that came in near chance, an error
        of 1 - 1/C, nor another loss or metric.
        """
        if passed <= LATE or not isinstance(metrics, Metrics) or not isinstance(self.incoming, Metrics):
            return False
        chance = 1.0 - 1.0 / metrics.num_classes
        start = self.incoming.error
        half = start + 0.5 * (chance - start)
        return start < 0.5 * chance and metrics.error > half and tail_bound(metrics.error, half, metrics.n) < UNLIKELY

    def deliver(self, network: nn.Module) -> None:
        """Copy the best weights into ``network``, in place; its extra states too."""
        put_back(network, self.weights)

    def state_dict(self) -> dict[str, Any]:
        """The selection for a checkpoint: tensors, numbers and dicts."""
        figures = {"metrics": self.metrics, "incoming": self.incoming}
        plain = {name: None if each is None else vars(each) for name, each in figures.items()}
        return {"weights": self.weights, "epoch": self.epoch, **plain}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take back a :meth:`state_dict`."""
        self.weights = to_device(state["weights"], device)
        self.epoch = state["epoch"]
        self.metrics = _judged(state["metrics"])
        self.incoming = _judged(state["incoming"])


def _networks(method: Method) -> list[nn.Module]:
    """What is rolled back by itself, or begins anew with each run."""
    return [method.model, *([method.averaged] if isinstance(method, Averaged) else [])]


def _judged(state: Mapping[str, Any] | None) -> Judged | None:
    if state is None:
        return None
    return TaskMetrics(**state) if "metric" in state else Metrics(**state)


def tail_bound(share: float, p: float, n: int) -> float:
    """Bound P(X / n >= share) for X binomial with 0 < p <= share <= 1: exp(-n KL(share || p)) (Chernoff, 1952)."""
    rest = 0.0 if share == 1.0 else (1.0 - share) * math.log((1.0 - share) / (1.0 - p))
    return math.exp(-n * (share * math.log(share / p) + rest))


def worded(metrics: Judged | None) -> str:
    """The figure that is compared, in words."""
    return "unknown" if metrics is None else metrics.worded(metrics.value)


def change_of(before: Judged | None, after: Judged) -> str:
    """How a better network changed the figure that is compared, or what decided where it did not change."""
    if before is None or before.value != after.value:
        return f"{after.metric} {worded(before)} -> {worded(after)}"
    first, second = before.rank()[1], after.rank()[1]
    return f"{after.metric} {worded(after)} as before, {after.tie_breaker} {first:.4g} -> {second:.4g}"
