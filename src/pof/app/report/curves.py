"""Training curves of runs, from metrics.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pof.app.report.collection import RunFigures
from pof.app.report.subjects import Record
from pof.app.report.svg import Panel, drawing, panel
from pof.flatness.plots import style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class _Curve:
    key: str
    title: str
    label: str
    percent: bool = False

    def values(self, rows: Sequence[dict[str, Any]]) -> list[float]:
        return [100.0 * row[self.key] if self.percent else row[self.key] for row in rows]


_CURVES = (
    _Curve("train_loss", "Training loss", "mean loss"),
    _Curve("val_error", "Validation error", "error (%)", percent=True),
    _Curve("val_nll", "Validation NLL", "NLL"),
    _Curve("train_radius", "Radius in training", "mean radius"),
)


def training_panels(networks: Sequence[RunFigures]) -> list[Panel]:
    """Draw what metrics.jsonl holds of each epoch.

    Args:
        networks: those of runs are drawn, each in the style it has in the other figures.

    Returns:
        A panel for each quantity that a run has.
    """
    runs = [(i, n.subject.name, n.subject.record) for i, n in enumerate(networks) if n.subject.record is not None]
    return [found for curve in _CURVES if (found := _panel(curve, runs)) is not None]


def _panel(curve: _Curve, runs: Sequence[tuple[int, str, Record]]) -> Panel | None:
    parts, drawn = [], []
    with drawing() as ax:
        for series, name, record in runs:
            rows = [row for row in record.epochs() if row.get(curve.key) is not None]
            if rows:
                _draw(ax, curve, rows, record.result["best_epoch"], series, name)
                values = curve.values(rows)
                drawn += values
                parts.append(f"{name} from {values[0]:.4g} to {values[-1]:.4g} in {rows[-1]['epoch']} epochs")
        if not parts:
            return None
        if min(drawn) > 0 and max(drawn) > 20 * min(drawn):
            ax.set_yscale("log")
        elif curve.percent:
            ax.set_ylim(bottom=0.0)
        ax.set_xlabel("epoch")
        ax.set_ylabel(curve.label)
        ax.legend()
        return panel(ax, f"training-{curve.key.replace('_', '-')}", curve.title, f"{curve.title}: {'; '.join(parts)}.")


def _draw(ax: Axes, curve: _Curve, rows: Sequence[dict[str, Any]], best: int, series: int, name: str) -> None:
    style = style_of(series)
    x, y = [row["epoch"] for row in rows], curve.values(rows)
    marker = style.marker if len(rows) <= 30 else None
    ax.plot(x, y, color=style.color, ls=style.line, marker=marker, ms=2.5, label=name)
    if best in x:
        ax.plot([best], [y[x.index(best)]], color=style.color, marker="*", ms=9, ls="")
