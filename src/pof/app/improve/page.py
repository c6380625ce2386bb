"""The result of a search as lines of a table, and as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pof._support.files import write_text
from pof.app.comparison import in_words
from pof.app.improve.result import ImproveResult, Row
from pof.app.report.template import load_template
from pof.training.evaluation import Metrics

HEAD = ("network", "lr", "passes", "error", "NLL", "NLL, scaled", "note")
NOTHING = "–"


def lines_of(table: Sequence[Row]) -> list[list[str]]:
    """A line of texts for each network."""
    return [
        [
            row.name,
            NOTHING if row.lr is None else f"{row.lr:g}",
            f"{row.passes:.1f}",
            NOTHING if row.error is None else f"{100 * row.error:.2f} %",
            _number(row.nll),
            _number(row.scaled_nll),
            row.note,
        ]
        for row in table
    ]


def comparison(pair: tuple[Metrics, Metrics]) -> list[tuple[str, str, str]]:
    """Figures of the incoming network beside those of the one that is handed back."""
    figures = {
        "error": [f"{100 * m.error:.2f} %" for m in pair],
        "NLL": [f"{m.nll:.4f}" for m in pair],
        "ECE": [f"{100 * m.ece:.2f} %" for m in pair],
    }
    return [(name, *values) for name, values in figures.items()]  # type: ignore[misc]


def intervals(result: ImproveResult) -> list[str]:
    """What the comparison of the best network with the incoming one says."""
    if (judged := result.confirmation) is None:
        return []
    texts = {"NLL after temperature": judged.nll, "Brier score": judged.brier}
    return [f"{name}, best network minus incoming: {in_words(found, 4)}." for name, found in texts.items()]


def write_page(result: ImproveResult, test: tuple[Metrics, Metrics], out: Path) -> None:
    """Write the page; ``test`` are the figures of both networks on the test set."""
    tried = len(result.table) - 1
    cost = (
        f"{result.passes:.1f} forward-backward passes over the training set were spent; {tried} networks were judged."
    )
    page = load_template("improve.html", Path(__file__).parent).render(
        title="A better network" if result.improved else "No better network found",
        result=result,
        cost=cost,
        tables={
            f"On {result.before.n} validation samples that chose nothing": comparison((result.before, result.after)),
            f"On {test[0].n} test samples": comparison(test),
        },
        intervals=intervals(result),
        head=HEAD,
        body=lines_of(result.table),
    )
    write_text(out, page)


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"
