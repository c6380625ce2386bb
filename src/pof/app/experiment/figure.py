"""The figure of an experiment: paired differences with their intervals, a line for each method."""

from __future__ import annotations

from typing import Any

from pof.app.experiment.statistics import Paired
from pof.app.experiment.summary import LABELS, SHARES, Summary
from pof.app.report.svg import Panel, drawing, panel

TO_INCOMING, TO_CONTROL = "#0072b2", "#d55e00"
LINE_HEIGHT, FRAME = 0.34, 1.0
"""In inches."""


def differences_panel(summary: Summary, setting: str, number: int) -> Panel:
    """Draw the paired differences of a setting."""
    entries = [entry for entry in summary.entries if entry.setting == setting]
    scale = 100.0 if summary.measure in SHARES else 1.0
    unit = " (percentage points)" if summary.measure in SHARES else ""
    with drawing(FRAME + LINE_HEIGHT * len(entries)) as ax:
        ax.axvline(0.0, color="#b0b0b0", linewidth=0.8)
        for place, entry in enumerate(entries):
            _point(ax, place - 0.12, entry.to_incoming, scale, TO_INCOMING)
            _point(ax, place + 0.12, entry.to_control, scale, TO_CONTROL)
        ax.set_yticks(range(len(entries)), [entry.method for entry in entries])
        ax.set_ylim(len(entries) - 0.5, -0.5)
        ax.set_xlabel(f"difference in {LABELS[summary.measure]}{unit}")
        if any(entry.to_incoming for entry in entries):
            ax.plot([], [], "o-", color=TO_INCOMING, label="minus incoming network")
        if any(entry.to_control for entry in entries):
            ax.plot([], [], "s-", color=TO_CONTROL, label=f"minus {summary.control}")
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
        said = "; ".join(
            f"{entry.method}: {_said(entry.to_incoming, scale)} to the incoming network,"
            f" {_said(entry.to_control, scale)} to the control"
            for entry in entries
        )
        return panel(ax, f"differences-{number}", setting, f"Mean paired differences with 95 % intervals. {said}.")


def _point(ax: Any, place: float, test: Paired | None, scale: float, color: str) -> None:
    if test is None:
        return
    if test.low is not None and test.high is not None:
        ax.plot([scale * test.low, scale * test.high], [place, place], color=color)
    ax.plot([scale * test.mean], [place], "o" if color == TO_INCOMING else "s", color=color)


def _said(test: Paired | None, scale: float) -> str:
    return "none" if test is None else f"{scale * test.mean:+.3g}"
