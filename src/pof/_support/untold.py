"""Detects custom loops that never tell a method of their steps."""

from __future__ import annotations

import warnings
from threading import Lock
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

STEPS, PASSES = 10, 1000
"""Of so many, without a word, a loop is taken to tell of none; passes, as there are steps that are no optimizer's."""


class Untold:
    """Counts the steps of a model's optimizers, and warns of :data:`STEPS`; the first that is told ends it.

    Args:
        warning: what to say.
        tells: an option of parameter groups; the steps of an optimizer that has it need not be told.
    """

    def __init__(self, warning: str, tells: str | None = None) -> None:
        self._warning, self._tells = warning, tells
        self._told = self._warned = self._passed = False
        self._steps = self._passes = 0
        self._parameters: set[int] = set()

    def told(self) -> None:
        """Stop counting: the loop tells of its steps."""
        self._told = True
        with _lock:
            _counting.discard(self)

    def noticed(self, model: nn.Module) -> bool:
        """Count from this training pass on; warns, once, where there were too many.

        Args:
            model: whose parameters an optimizer must have for its steps to count.

        Returns:
            Whether there were.
        """
        if self._told or torch.compiler.is_compiling():
            return False
        many = self._steps >= STEPS or self._passes >= PASSES
        self._parameters, self._passed = {id(parameter) for parameter in model.parameters()}, True
        self._passes += 1
        _count_for(self)
        if many and not self._warned:
            self._warned = True
            warnings.warn(self._warning, stacklevel=5)
        return many

    def step(self, optimizer: Optimizer) -> None:
        """Note a step of any optimizer; several behind one pass are one."""
        groups = optimizer.param_groups
        if any(id(parameter) in self._parameters for group in groups for parameter in group["params"]):
            self._steps, self._passed = self._steps + self._passed, False
            own = self._tells in getattr(optimizer, "defaults", {})  # of another meaning, as the rho of Adadelta
            if self._tells is not None and not own and any(self._tells in group for group in groups):
                self.told()


_counting: WeakSet[Untold] = WeakSet()
_lock = Lock()
_hooks: list[Any] = []


def _count_for(untold: Untold) -> None:
    with _lock:
        _counting.add(untold)
        if not _hooks:  # for good: torch may be going through its hooks in another thread
            _hooks.append(register_optimizer_step_post_hook(_count))


def _count(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """The hook behind every optimizer's step, fused ones too."""
    if _counting:
        with _lock:
            counting = list(_counting)
        for untold in counting:
            untold.step(optimizer)
