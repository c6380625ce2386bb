"""Detects custom loops that never tell a method of their steps."""

from __future__ import annotations

import warnings
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

PATIENCE = 10
"""Steps after which a loop that has not told of one is taken to tell of none."""


class Untold:
    """Counts the steps of a model's optimizers, and warns at :data:`PATIENCE` of them; the first that is told ends it.

    Args:
        warning: what to say.
        tells: a class of optimizers whose steps need not be told; None: there is none.
    """

    def __init__(self, warning: str, tells: type[Optimizer] | None = None) -> None:
        self._warning, self._tells = warning, tells
        self._told = self._warned = False
        self._steps = 0
        self._parameters: set[int] = set()

    def told(self) -> None:
        """Stop counting: the loop tells of its steps."""
        self._told = True
        _counting.discard(self)

    def noticed(self, model: nn.Module) -> bool:
        """Count from this training pass on; warns, once, where the steps so far were too many.

        Args:
            model: whose parameters an optimizer must have for its steps to count.

        Returns:
            Whether they were.
        """
        if self._told or torch.compiler.is_compiling():
            return False
        self._parameters = {id(parameter) for parameter in model.parameters()}
        _count_for(self)
        if self._steps < PATIENCE:
            return False
        if not self._warned:
            self._warned = True
            warnings.warn(self._warning, stacklevel=5)
        return True

    def step(self, optimizer: Optimizer) -> None:
        """Note a step of any optimizer."""
        if any(id(parameter) in self._parameters for group in optimizer.param_groups for parameter in group["params"]):
            self._steps += 1
            if self._tells is not None and isinstance(optimizer, self._tells):
                self.told()


_counting: WeakSet[Untold] = WeakSet()
_hooks: list[Any] = []


def _count_for(untold: Untold) -> None:
    _counting.add(untold)
    if not _hooks:
        _hooks.append(register_optimizer_step_post_hook(_count))


def _count(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """The hook behind every optimizer's step, fused ones too; it is there while somebody counts."""
    for untold in list(_counting):
        untold.step(optimizer)
    if not _counting:
        _hooks.pop().remove()
