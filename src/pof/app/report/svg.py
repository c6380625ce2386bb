"""Figures as SVG that stands inside a page: no fixed colours of its own, no fonts, no identifiers that clash.

Colours of the series become CSS variables of the page, so that a figure is readable on a light and a dark ground.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 3.6, 2.7
"""Of a panel, in inches: about as wide as it is on a page, so that 9 points are readable."""

# Black and greys of the figures, and the colours of their series (Okabe and Ito's), with their names in the page.
VARIABLES = {
    "#000000": "ink",
    "#333333": "ink",
    "#666666": "muted",
    "#999999": "muted",
    "#b0b0b0": "faint",
    "#d55e00": "vermilion",
    "#56b4e9": "sky",
    "#0072b2": "blue",
    "#e69f00": "orange",
}
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pof",
    "font.size": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.linewidth": 0.6,
    "xtick.color": "#666666",
    "ytick.color": "#666666",
    "xtick.labelcolor": "#333333",
    "ytick.labelcolor": "#333333",
    "axes.labelcolor": "#333333",
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "hatch.linewidth": 0.4,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Panel:
    """One picture of a figure."""

    title: str
    """Empty where the figure has one panel only."""
    description: str
    """For those who do not see it: what the picture shows, with its numbers."""
    svg: str
    """An ``<svg>`` element."""


@contextmanager
def drawing(height: float = HEIGHT) -> Iterator[Axes]:
    """Give axes in the look of the report, under matplotlib settings that are put back afterwards."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_SETTINGS):
        axes: Axes = Figure(figsize=(WIDTH, height), layout="constrained").subplots()
        yield axes


def literal(text: str) -> str:
    """Text as matplotlib is to draw it: a dollar of a folder's name begins no formula."""
    return text.replace("$", r"\$")


def panel(ax: Axes, name: str, title: str, description: str) -> Panel:
    """Write a figure as an element of a page."""
    buffer = io.StringIO()
    figure = ax.get_figure(root=True)
    if figure is None:
        raise ValueError("a panel needs axes that are in a figure; these were removed from theirs")
    figure.savefig(buffer, format="svg", transparent=True)
    return Panel(title, description, inline(buffer.getvalue(), name, description))


def inline(document: str, name: str, description: str) -> str:
    """Make an SVG document an element of a page."""
    element = document[document.index("<svg") :].strip()
    element = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", element, flags=re.DOTALL)
    element = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', element)
    element = re.sub(r'(url\(|href=")#', rf"\g<1>#{name}-", element)
    element = re.sub('(?<=: )#[0-9a-f]{6}(?=[;"])', lambda m: _variable(m[0]), element)  # of styles, not in a text
    box = re.search(r'viewBox="[^"]+"', element)
    opening = f'<svg {box[0] if box else ""} role="img" aria-labelledby="{name}-alt">'
    labelled = f'{opening}<desc id="{name}-alt">{escape(description)}</desc>'
    return re.sub(r"<svg[^>]*>", lambda _: labelled, element, count=1)


def _variable(color: str) -> str:
    return f"var(--{VARIABLES[color]})" if color in VARIABLES else color
