"""The figures of the results, from their numbers: what ``.plot`` of each result draws.

Every function takes ``ax``, where to draw (None makes a figure of one column's width), and returns the axes, which know
their figure: ``ax.figure.savefig("x.pdf")``.  ``label`` is the entry in the legend; ``series`` = 0, 1, ... gives each
network on the same axes a style of its own.  Series are told apart by line, marker and hatch, so that they can be read
in grey.  matplotlib is imported on use, pyplot and its global state are not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Style:
    """How one series is drawn."""

    color: str
    line: str
    marker: str
    hatch: str


# Okabe and Ito's colours; in grey the lines, markers and hatches tell the series apart.
STYLES = (
    Style("#000000", "-", "o", ""),
    Style("#D55E00", "--", "s", "///"),
    Style("#56B4E9", "-.", "^", "..."),
    Style("#0072B2", ":", "D", "xxx"),
    Style("#E69F00", (0, (5, 1, 1, 1, 1, 1)), "v", "+++"),  # type: ignore[arg-type]
    Style("#009E73", (0, (1, 4)), "P", "ooo"),  # type: ignore[arg-type]
    Style("#CC79A7", (0, (7, 2)), "X", "---"),  # type: ignore[arg-type]
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")


def style_of(series: int) -> Style:
    """Style of the series with that number; they are used in turn."""
    return STYLES[series % len(STYLES)]


def joined(label: str, name: str) -> str:
    """Put a caller's label before a series' own name: ``"label name"`` without empty parts."""
    return " ".join(part for part in (label, name) if part)


def eigenvalues(ax: Axes | None, values: Tensor, *, label: str, series: int) -> Axes:
    """Draw values (k,) over their rank."""
    ax, style = _axes(ax), style_of(series)
    rank = range(1, len(values) + 1)
    ax.plot(rank, values.tolist(), color=style.color, ls=style.line, marker=style.marker, label=label or None)
    ax.set_xticks(list(rank))
    return _labelled(ax, "rank", "Hessian eigenvalue", legend=bool(label))


def running_mean(ax: Axes | None, means: list[float], errors: list[float], *, label: str, series: int) -> Axes:
    """Draw the mean over the first 2, 3, ... probes with one standard error."""
    ax, style = _axes(ax), style_of(series)
    counts, mean, error = range(2, len(means) + 2), torch.tensor(means), torch.tensor(errors)
    ax.plot(counts, means, color=style.color, ls=style.line, label=label or None)
    ax.fill_between(counts, (mean - error).tolist(), (mean + error).tolist(), color=style.color, alpha=0.2, lw=0)
    return _labelled(ax, "probes", "trace of the Hessian", legend=bool(label))


def density(ax: Axes | None, grid: Tensor, values: Tensor, floor: float, *, label: str, series: int) -> Axes:
    """Draw a density, values (G,) over grid (G,), on a logarithmic axis that begins at ``floor``."""
    ax, style = _axes(ax), style_of(series)
    ax.plot(grid.tolist(), values.tolist(), color=style.color, ls=style.line, label=label or None)
    ax.set_yscale("log")
    ax.set_ylim(floor, max(3.0 * float(values.max()), ax.get_ylim()[1] if len(ax.lines) > 1 else floor))
    return _labelled(ax, "Hessian eigenvalue", "density", legend=bool(label))


def values_and_mean(
    ax: Axes | None, values: Tensor, mean: float, axis_labels: tuple[str, str], *, label: str, series: int
) -> Axes:
    """Draw values (K,) over their number, and their mean as a line."""
    ax, style = _axes(ax), style_of(series)
    ax.plot(values.tolist(), color=style.color, ls="", marker=style.marker, ms=3)
    ax.axhline(mean, color=style.color, ls=style.line, label=joined(label, "mean"))
    return _labelled(ax, *axis_labels)


def radii(ax: Axes | None, sets: Mapping[str, tuple[Tensor, float]], *, bins: int, limit: float | None = None) -> Axes:
    """Draw the histogram of each set: legend entry -> radii (K,) and their median; ``bins`` are common to all.

    Radii beyond ``limit`` are not drawn, and count in the shares.

    Returns:
        The axes.
    """
    ax = _axes(ax)
    top = limit or max((float(values.max()) for values, _ in sets.values() if len(values)), default=0.0) or 1.0
    edges = torch.linspace(0.0, top, bins + 1).tolist()
    for (legend, (values, median)), style in zip(sets.items(), STYLES, strict=False):
        _shares(ax, values, edges, style, label=legend, hatch=style.hatch)
        if len(values):
            ax.axvline(median, color=style.color, ls=style.line, lw=0.8)
    return _labelled(ax, r"radius $\xi^*$", "share of mini-batches", fontsize="small")


def landscape(
    ax: Axes | None,
    offsets: Tensor,
    curves: Mapping[str, tuple[Tensor, tuple[float, float] | None]],
    radius: float | None,
) -> Axes:
    """Draw the change of losses along a direction, a star at each minimum, and the radius as a vertical line.

    Each curve is its legend entry -> change of the loss (G,), and offset and change at its minimum if it has one.

    Returns:
        The axes.
    """
    ax = _axes(ax)
    every = max(1, len(offsets) // 6)
    for (legend, (change, minimum)), s in zip(curves.items(), STYLES, strict=False):
        (line,) = ax.plot(offsets.tolist(), change.tolist(), color=s.color, ls=s.line, marker=s.marker, ms=3)
        line.set(markevery=every, label=legend)
        if minimum is not None:
            ax.plot(*([value] for value in minimum), color=s.color, marker="*", ms=10, ls="")
    if radius is not None:
        ax.axvline(radius, color="0.4", lw=0.8)
        ax.annotate(r" $\xi^*$", (radius, 0.98), xycoords=("data", "axes fraction"), va="top", ha="left")
    ax.set_xlim(float(offsets[0]), float(offsets[-1]))
    return _labelled(ax, r"$\xi$ along the head gradient", "change of the mean loss", fontsize="small")


def contours(ax: Axes | None, offsets: Tensor, loss: Tensor, *, levels: int) -> Axes:
    """Draw ``levels`` contours of a loss (G, G), evenly spaced in its logarithm, and a cross for the network."""
    ax = _axes(ax)
    finite = loss[loss.isfinite() & (loss > 0)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (1.0, 1.0)
    if high > low:
        first, last = torch.tensor([low, high]).log10().tolist()
        at = torch.logspace(first, last, levels + 2, dtype=torch.float64)[1:-1].tolist()
        grid = offsets.tolist()
        lines = ax.contour(grid, grid, loss.T.numpy(), levels=at, colors="black", linewidths=0.8)
        ax.clabel(lines, fontsize=7, fmt="%.3g")
    ax.plot([0.0], [0.0], color="black", marker="+", ms=8, ls="")
    ax.set_aspect("equal")
    return _labelled(ax, "first direction, filter-normalised", "second direction", legend=False)


def margins(ax: Axes | None, values: Tensor, bins: int, *, label: str, series: int) -> Axes:
    """Draw the histogram of margins (N,), as shares of the samples; wrong samples are left of zero."""
    ax, style = _axes(ax), style_of(series)
    _shares(ax, values[values.isfinite()], bins, style, label=label or None)
    ax.axvline(0.0, color="0.4", lw=0.8)
    return _labelled(ax, "margin (distance in feature space)", "share of samples", legend=bool(label))


def components(
    ax: Axes | None,
    projection: Tensor,
    explained: Tensor,
    labels: Tensor,
    *,
    samples: int,
    names: Sequence[str] | None = None,
) -> Axes:
    """Draw the first two components (N, k), a marker and a shade for each class; at most ``samples``, evenly taken.

    The legend has the ``names`` of the classes, or their numbers.

    Returns:
        The axes.
    """
    from matplotlib import colormaps

    ax = _axes(ax)
    step = max(1, -(-len(labels) // samples))
    points, labels = projection[::step].cpu(), labels[::step].cpu()
    classes = torch.unique(labels).tolist()
    for i, c in enumerate(classes):
        x, y = points[labels == c][:, :2].T.tolist()
        color = colormaps["viridis"](i / max(1, len(classes) - 1))
        ax.plot(
            x,
            y,
            ls="",
            marker=MARKERS[i % len(MARKERS)],
            ms=3,
            mew=0.3,
            mec="0.2",
            c=color,
            label=c if names is None else names[c],
        )
    axes = (f"component 1 ({float(explained[0]):.0%} of variance)", f"component 2 ({float(explained[1]):.0%})")
    few = len(classes) <= len(MARKERS)
    return _labelled(ax, *axes, legend=few, fontsize="x-small", ncols=2, title="class")


def reliability(
    ax: Axes | None, confidence: Tensor, accuracy: Tensor, share: Tensor, *, label: str, series: int
) -> Axes:
    """Draw accuracy over confidence of each bin (bins,), a point's area showing its share of the samples."""
    ax, style = _axes(ax), style_of(series)
    kept = share > 0
    x, y, sizes = confidence[kept].tolist(), accuracy[kept].tolist(), [8 + 120 * s for s in share[kept].tolist()]
    ax.plot([0, 1], [0, 1], color="0.6", lw=0.8)
    ax.plot(x, y, color=style.color, ls=style.line, lw=1, label=label)
    ax.scatter(x, y, s=sizes, c=style.color, marker=style.marker, alpha=0.6)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    return _labelled(ax, "confidence", "accuracy")


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    return Figure(figsize=(3.5, 2.6), layout="constrained").subplots()


def _labelled(ax: Axes, x: str, y: str, *, legend: bool = True, **of_legend: str | int) -> Axes:
    ax.set(xlabel=x, ylabel=y)
    if legend:
        ax.legend(**of_legend)
    return ax


def _shares(ax: Axes, values: Tensor, bins: int | list[float], style: Style, **look: Any) -> None:
    weights = [1.0 / max(1, len(values))] * len(values)
    ax.hist(values.tolist(), bins, weights=weights, histtype="step", ec=style.color, ls=style.line, **look)
