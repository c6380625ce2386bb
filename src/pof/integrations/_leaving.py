"""A run in Lightning that does not end by itself leaves trainer and model as one does that ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback


class Leaving(Callback):
    """Calls a function where a run breaks off: there Lightning calls no hook of the module itself."""

    def __init__(self, let_go: Callable[[], None]) -> None:
        self._let_go = let_go

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Let go of the model."""
        self._let_go()


def leave_on_exceptions(trainer: Any, let_go: Callable[[], None]) -> None:
    """Have a function called where the run at hand breaks off."""
    ends_by_itself(trainer)
    trainer.callbacks = [*trainer.callbacks, Leaving(let_go)]


def ends_by_itself(trainer: Any) -> None:
    """Have nothing called any more: the next run may be that of another module."""
    trainer.callbacks = [each for each in trainer.callbacks if not isinstance(each, Leaving)]
