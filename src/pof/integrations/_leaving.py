"""A run in Lightning that does not end by itself leaves trainer and model as one does that ends."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback


class Leaving(Callback):
    """Calls what a ``PostTraining`` does behind a run, where Lightning calls no hook of the module itself."""

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Let go of the model."""
        pl_module.let_go()


def leave_on_exceptions(trainer: Any) -> None:
    """Add the callback, if the trainer has none yet."""
    if not any(isinstance(each, Leaving) for each in trainer.callbacks):
        trainer.callbacks.append(Leaving())
