"""What a loop of one's own forgets: steps that a method is not told of."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from pof._support import distributed


class Untold:
    """Notices by the weights that a step was taken between two training passes; looks no more once it is told."""

    def __init__(self, warning: str) -> None:
        self._warning = warning
        self._told = self._warned = False
        self._before: int | None = None

    @property
    def watches(self) -> bool:
        """Whether it still looks."""
        return not self._told and not torch.compiler.is_compiling()

    def told(self) -> None:
        """The loop does what it has to."""
        self._told = True

    def noticed(self, model: nn.Module) -> bool:
        """Ask before a training pass whether a step was taken since the one before; the first time there is a warning.

        Optimizers write into the weights in place, which torch counts.
        """
        if not self.watches or distributed.has_fsdp(model):
            return False  # FSDP2 writes into parameters in every pass
        before, self._before = self._before, sum(parameter._version for parameter in model.parameters())
        moved = before is not None and before != self._before
        if moved and not self._warned:
            self._warned = True
            warnings.warn(self._warning, stacklevel=5)
        return moved
