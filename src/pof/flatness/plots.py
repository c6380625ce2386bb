"""Common look of the figures: series are told apart by line, marker and hatch, so that they can be read in grey."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Style:
    """How one series is drawn."""

    color: str
    line: str
    marker: str
    hatch: str


# Okabe and Ito's colours, ordered so that their grey values differ.
STYLES = (
    Style("#000000", "-", "o", ""),
    Style("#D55E00", "--", "s", "///"),
    Style("#56B4E9", "-.", "^", "..."),
    Style("#0072B2", ":", "D", "xxx"),
    Style("#E69F00", (0, (5, 1, 1, 1, 1, 1)), "v", "+++"),  # type: ignore[arg-type]
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")


def axes_or_new(ax: Axes | None) -> Axes:
    """Take the axes given, or make a figure of one column's width.

    Returns:
        Axes that know their figure (``ax.figure.savefig("x.pdf")``); pyplot and its global state are not used.
    """
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    return Figure(figsize=(3.5, 2.6), layout="constrained").subplots()


def joined(label: str, name: str) -> str:
    """Put a caller's label before a series' own name.

    Returns:
        ``"label name"`` without empty parts.
    """
    return " ".join(part for part in (label, name) if part)
