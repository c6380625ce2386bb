"""What a person sees in the terminal: progress, and tables of figures."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from pof.app.errors import shortened, visible
from pof.app.improve.folder import RATES
from pof.training.evaluation import Metrics
from pof.training.fit import DivergenceWarning, InterruptionWarning
from pof.training.progress import Progress as RunProgress
from pof.training.selection import Judged


class PlainConsole(Console):
    """Takes text as it is: a bracket in a path is no markup, and a control character does nothing to the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


# Under torchrun the first process speaks.
console = PlainConsole(quiet=os.environ.get("RANK", "0") != "0", markup=False, emoji=False)


def note_of_nothing_to_resume(folder: str | os.PathLike[str]) -> None:
    """Say that a run or search which is to go on has not begun in its folder, whose name may be mistyped."""
    # A search that died while it looked for its rates has kept nothing.
    if not any(os.path.exists(os.path.join(folder, file)) for file in ("config.yaml", RATES)):
        console.print(f"note: nothing in {folder} to go on with: this begins anew", soft_wrap=True)


DESCRIPTION = TextColumn("{task.description}", markup=False)


class Display:
    """Progress of a run; takes the rows of its log but the last, and shows warnings as a line of text.

    A divergence or an interruption is no warning here: it is told with the result.
    """

    def __init__(self) -> None:
        self._progress = RunProgress(console)
        self._undo = ExitStack()

    def __enter__(self) -> Display:
        self._undo.enter_context(warnings.catch_warnings())
        warnings.showwarning = _show  # put back by catch_warnings
        for category in (DivergenceWarning, InterruptionWarning):
            warnings.simplefilter("ignore", category)
        self._undo.enter_context(self._progress)
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Show a row."""
        if row["event"] == "class_weights":
            weights = ", ".join(f"{name} {weight:.3g}" for name, weight in row.items() if name != "event")
            console.print(f"class weights: {shortened(weights)}", soft_wrap=True)
        elif row["event"] != "end":  # told with the result
            self._progress(row)


def _show(message: Warning | str, *_: Any, **__: Any) -> None:
    console.print(f"warning: {shortened(str(message))}", soft_wrap=True)


def metrics_table(title: str, columns: Mapping[str, Judged]) -> Table:
    """Set figures side by side."""
    table = Table(title=title, title_justify="left", min_width=len(title), show_header=any(columns))
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    values = [m for m in columns.values() if isinstance(m, Metrics)]
    if len(values) < len(columns):
        rows = [m.named() for m in columns.values()]
        for name in rows[0]:
            table.add_row(name, *(f"{row[name]:.6g}" for row in rows))
        return table
    table.add_row("error", *(f"{100 * m.error:.2f} %" for m in values))
    table.add_row("NLL", *(f"{m.nll:.4f}" for m in values))
    table.add_row("ECE", *(f"{100 * m.ece:.2f} %" for m in values))
    table.add_row("n", *(str(m.n) for m in values))
    return table


def rows_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Set rows of the same keys in columns; shares, and losses in nats, with four digits."""
    table = Table(title=title, title_justify="left", min_width=len(title))
    for name, value in rows[0].items() if rows else ():
        table.add_column(name, justify="left" if isinstance(value, str) else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Seconds in a unit that suits them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def showing_progress() -> Iterator[Callable[[str], Callable[[str, int, int | None], None]]]:
    """Show the progress of measurements."""
    columns = (DESCRIPTION, BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("reading data", total=None)

        def start(name: str) -> Callable[[str, int, int | None], None]:
            def show(stage: str, done: int, total: int | None) -> None:
                progress.update(task, description=visible(f"{name}: {stage}"), completed=done, total=total)

            return show

        yield start
