"""What precedes and follows the steps and epochs of a method in the Trainer of transformers, as a callback."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_utils import has_length

from pof._support.batches import Inputs
from pof._support.random import preserved
from pof.methods.base import refuse_unknown_epochs
from pof.training.stream import one_pass_on


@contextmanager
def another_loader(trainer: Any) -> Iterator[Any]:
    """A training loader beside the one that is trained on, for the body: Accelerate would keep it, and its workers."""
    known = trainer.accelerator._dataloaders
    before = list(known)
    loader = trainer.get_train_dataloader()
    known[:] = before
    try:
        yield loader
    finally:
        # Left early, it would stay the one that Accelerate takes for the current one.
        end = getattr(loader, "end", None)
        if callable(end):
            end()


class Surroundings(TrainerCallback):
    """What precedes and follows the steps and epochs of a method; after a step, before the Trainer saves anything."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.epoch = 0
        self.steps_per_epoch: int | None = None
        self.taken: int | None = 0
        """Mini-batches of this epoch that were trained on; None behind a checkpoint that does not say it."""
        self.whole: int | None = None
        """Mini-batches of the last epoch that ended, of a loader without a length."""
        self._given = False  # whether this pass gave a mini-batch in this process

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.num_train_epochs == sys.maxsize:  # as the Trainer has it of a loader without a length
            refuse_unknown_epochs(self.trainer.method)
        loader = kwargs["train_dataloader"]
        self.steps_per_epoch = math.ceil(len(loader) / args.gradient_accumulation_steps) if has_length(loader) else None
        if self.steps_per_epoch:
            self.epoch = state.global_step // self.steps_per_epoch
        if not state.global_step:
            self.epoch, self.taken, self.whole = 0, 0, None
        self._given = False

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = self.trainer.plain_optimizer()
        self.trainer.method.before_epoch(self.epoch, state.num_train_epochs, optimizer)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.method.after_step()
        if self.steps_per_epoch and (state.global_step + 1) % self.steps_per_epoch == 0:
            self._after_epoch(state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The first pass of a resumed run over a stream may skip all that there is.  Then that epoch had ended before,
        # unless earlier ones were skipped with its part: the Trainer drops the rest of it.
        ended = self.taken != 0 and (self._given or self._is_whole(args.gradient_accumulation_steps))
        if not self.steps_per_epoch and ended:
            self._after_epoch(state)
            self.whole = self.taken
        self.epoch, self.taken, self._given = self.epoch + bool(self.steps_per_epoch or ended), 0, False

    def _is_whole(self, accumulation: int) -> bool:
        """Whether as many steps were taken of this epoch as of the last: mini-batches behind those do not count."""
        if self.whole is None or self.taken is None:
            return True
        return self.taken // accumulation == self.whole // accumulation

    def count(self, batches: int) -> None:
        """So many more mini-batches of this epoch are trained on."""
        self._given = self._given or batches > 0
        if self.taken is not None:
            self.taken += batches

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.steps_per_epoch and self.within_epoch():  # it ends here
            self.epoch = state.global_step // self.steps_per_epoch
            with preserved():
                self._after_epoch(state)

    def within_epoch(self) -> bool:
        """Tell whether mini-batches of the epoch are left, as far as the loader's length says so."""
        return self.steps_per_epoch is None or self.trainer.state.global_step % self.steps_per_epoch != 0

    def _after_epoch(self, state: Any) -> None:
        trainer = self.trainer

        def batches() -> Iterator[tuple[Inputs, Tensor]]:
            # Of a stream, which need not end, as many as were trained on.
            with another_loader(trainer) as loader:
                passed = one_pass_on(loader, trainer.args.device)
                yield from passed if self.steps_per_epoch else islice(passed, self.taken)  # None is all of them

        trainer.method.after_epoch(self.epoch, state.num_train_epochs, batches)
