"""How far a search is: a bar with the remaining time and the best so far, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from pof.app.cli._display import DESCRIPTION, console
from pof.app.improve.race import JUDGED

EVERY = 10.0
"""Seconds between plain lines."""


class SearchProgress:
    """Takes the rows of a search's log.

    Args:
        output: where to write.
        clock: gives seconds.
    """

    def __init__(self, output: Console = console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = output, clock
        columns = (DESCRIPTION, BarColumn(), TextColumn("{task.fields[state]}", markup=False))
        self._bar = Progress(*columns, console=output, transient=True, disable=not output.is_terminal)
        self._task: Any = None
        self._undo = ExitStack()
        self._spent: dict[str, float] = {}
        self._total, self._known = 0.0, 0.0
        self._start = self._told = clock()
        self._best: tuple[float, str] | None = None

    def __enter__(self) -> SearchProgress:
        self._undo.enter_context(self._bar)
        self._task = self._bar.add_task("measuring the network", total=None, state="")
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Show a row."""
        if row["event"] == "plan":
            self._total, self._start = row["passes"], self._clock()
        elif row["event"] == "step":
            self._spent[row["run"]] = max(row["passes"], self._spent.get(row["run"], 0.0))
        elif row["event"] == "rung":
            self._rung(row)
        self._show()

    def _rung(self, row: Mapping[str, Any]) -> None:
        before, self._spent[row["run"]] = self._spent.get(row["run"], 0.0), row["passes"]
        if row["known"]:
            self._known += row["passes"] - before
        figures = {name: row[name] for name in JUDGED if row[name] is not None}
        for name, found in figures.items():
            entry = (found["scaled_nll"], f"{row['run']}, {name}")
            self._best = entry if self._best is None else min(self._best, entry)
        said = "  ".join(f"{name} {found['scaled_nll']:.4f}" for name, found in figures.items())
        text = row["dropped"] or f"scaled NLL {said}"
        self._console.print(f"rung {row['rung']}: {row['run']}: {text}", highlight=False, soft_wrap=True)

    def _show(self) -> None:
        done = sum(self._spent.values())
        state = f"{done:.1f} of {self._total:.1f} passes{self._remaining(done)}"
        best = "racing" if self._best is None else f"best {self._best[0]:.4f} ({self._best[1]})"
        self._bar.update(self._task, completed=done, total=self._total, description=best, state=state)
        now = self._clock()
        if not self._console.is_terminal and now - self._told >= EVERY:
            self._told = now
            self._console.print(f"{state}; {best}", highlight=False, soft_wrap=True)

    def _remaining(self, done: float) -> str:
        """What is left at the speed so far; passes of an earlier process took no time in this one."""
        own, seconds = done - self._known, self._clock() - self._start
        if own <= 0 or done >= self._total:
            return ""
        left = round(seconds / own * (self._total - done))
        return f", {left // 60}:{left % 60:02d} left"
