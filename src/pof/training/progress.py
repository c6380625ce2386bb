"""How far a run of ``fit`` is: a bar on a terminal, plain lines every few seconds without one, as under Slurm.

The bar is rich's; without rich there are plain lines on a terminal too.  Both read the rows of the log.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from pof._support import distributed
from pof._support.checks import finite

Row = Mapping[str, Any]
EVERY = 10.0
"""Seconds between plain lines."""


class Progress:
    """Takes the rows of a log, inside of a ``with`` block.

    Args:
        console: a ``rich.console.Console``; by default one on stderr, where rich is installed.
        every: seconds between plain lines, > 0.
        clock: gives seconds.
    """

    def __init__(self, console: Any = None, every: float = EVERY, clock: Callable[[], float] = time.monotonic) -> None:
        finite("progress", every, above=0)
        self._console = _stderr() if console is None else console
        self._every, self._clock = every, clock
        self._bar: Any = None
        self._task: Any = None
        self._undo = ExitStack()
        self._first, self._total = 0, 0
        self._start = self._told = clock()

    def __enter__(self) -> Progress:
        if self._console is not None and self._console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
            self._bar = self._undo.enter_context(
                Bar(*columns, TimeRemainingColumn(), console=self._console, transient=True)
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def __call__(self, row: Row) -> None:
        """Show a row."""
        if row["event"] == "start":
            self._begin(row)
        elif row["event"] == "step":
            self._step(row)
        elif row["event"] == "epoch":
            self._say(epoch_line(row))
        elif row["event"] == "end":
            self._say(row["message"])

    def _begin(self, row: Row) -> None:
        self._first, self._total, self._start = row["step"], row["steps"], self._clock()
        self._told = self._start
        if self._bar is not None:
            self._task = self._bar.add_task("training", total=self._total, completed=self._first)
        if self._first:
            self._say(f"going on at step {self._first} of {self._total}")

    def _step(self, row: Row) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=row["step"], description=f"loss {row['loss']:.4f}")
            return
        now = self._clock()
        if now - self._told >= self._every:
            self._told = now
            left = round((now - self._start) / (row["step"] - self._first) * (self._total - row["step"]))
            self._say(
                f"step {row['step']} of {self._total}  epoch {row['epoch']}  loss {row['loss']:.4f}"
                f"  {left // 60}:{left % 60:02d} left"
            )

    def _say(self, line: str) -> None:
        if self._console is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)


@contextmanager
def telling(log: Callable[[Row], None] | None, progress: bool | float) -> Iterator[Callable[[Row], None]]:
    """Give what takes the rows of a log: ``log``, and in the first process a display, for the body.

    ``progress`` is whether there is one, or the seconds between its plain lines.
    """
    with ExitStack() as stack:
        hooks = [] if log is None else [log]
        if progress is not False and distributed.rank() == 0:
            hooks.append(stack.enter_context(Progress(every=EVERY if progress is True else progress)))

        def tell(row: Row) -> None:
            for hook in hooks:
                hook(row)

        yield tell


def epoch_line(row: Row) -> str:
    """Write an epoch's row of the log as a line."""
    parts = [f"epoch {row['epoch']:>3}"]
    names = {"train_loss": "loss {:.4f}", "train_loss_without_penalty": "({:.4f} without the penalty)"}
    names |= {"val_nll": "val nll {:.4f}", "train_radius": "radius {:.3g}"}
    if "val_error" in row:
        parts.append(f"val error {100 * row['val_error']:.2f} %")
    parts += [text.format(row[name]) for name, text in names.items() if name in row]
    usual = {"val_error", "val_nll", "val_ece", "val_n", "val_num_classes"}
    parts += [f"val {name[4:]} {row[name]:.4g}" for name in row if name.startswith("val_") and name not in usual]
    if "train_separable" in row:
        parts.append(f"separable {100 * row['train_separable']:.0f} %")
    return "  ".join([*parts, "best so far" if row["best"] and "val_error" in row else ""]).rstrip()


def _stderr() -> Any:
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(stderr=True)
