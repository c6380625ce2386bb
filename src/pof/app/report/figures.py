"""The figures of a report: panels with captions and alternative text, from numbers that are there already."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pof._support.text import number_of
from pof.app.report.collection import Pictures, RunFigures
from pof.app.report.subjects import Record
from pof.app.report.svg import Panel, drawing, literal, panel
from pof.flatness import LossCurve, Radii
from pof.flatness.plots import style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SQUARE, TALL = 3.3, 3.1
"""Heights in inches of panels whose two axes have one scale, and of those with a legend above."""


@dataclass(frozen=True)
class Figure:
    """One figure of the report."""

    key: str
    """Anchor in the page."""
    title: str
    caption: str
    panels: list[Panel]


def figures_of(networks: Sequence[RunFigures]) -> list[Figure]:
    """Draw the figures."""
    makers = (_training, _ray, _radius, _spectrum, _plane, _calibration, _features)
    return [figure for figure in (make(networks) for make in makers) if figure.panels]


def _training(networks: Sequence[RunFigures]) -> Figure:
    return Figure(
        "training",
        "Training",
        "One point per epoch, from metrics.jsonl. Epoch 0 is the network that came in; the star marks the epoch whose"
        " network was kept. PoF's training loss is that of the perturbed head.",
        _training_panels(networks),
    )


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
    _Curve("train_loss_without_penalty", "Training loss without the penalty", "mean loss"),
    _Curve("val_error", "Validation error", "error (%)", percent=True),
    _Curve("val_nll", "Validation NLL", "NLL"),
    _Curve("train_radius", "Radius in training", "mean radius"),
)


def _training_panels(networks: Sequence[RunFigures]) -> list[Panel]:
    """Draw what metrics.jsonl holds of each epoch."""
    runs = [(i, n.subject.name, n.subject.record) for i, n in enumerate(networks) if n.subject.record is not None]
    return [found for curve in _CURVES if (found := _panel(curve, runs)) is not None]


def _panel(curve: _Curve, runs: Sequence[tuple[int, str, Record]]) -> Panel | None:
    from matplotlib.ticker import MaxNLocator

    parts, drawn = [], []
    with drawing() as ax:
        for series, name, record in runs:
            rows = [row for row in record.epochs() if row.get(curve.key) is not None]
            if rows:
                _draw(ax, curve, rows, record.result["best_epoch"], series, name)
                values = curve.values(rows)
                drawn += values
                parts.append(
                    f"{name} from {values[0]:.4g} to {values[-1]:.4g} in {number_of(rows[-1]['epoch'], 'epoch')}"
                )
        if not parts:
            return None
        if min(drawn) > 0 and max(drawn) > 20 * min(drawn):
            ax.set_yscale("log")
        elif min(drawn) == 0:
            ax.set_ylim(bottom=0.0)
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        ax.set_xlabel("epoch")
        ax.set_ylabel(curve.label)
        ax.legend()
        return panel(ax, f"training-{curve.key.replace('_', '-')}", curve.title, f"{curve.title}: {'; '.join(parts)}.")


def _draw(ax: Axes, curve: _Curve, rows: Sequence[dict[str, Any]], best: int, series: int, name: str) -> None:
    style = style_of(series)
    x, y = [row["epoch"] for row in rows], curve.values(rows)
    marker = style.marker if len(rows) <= 30 else None
    ax.plot(x, y, color=style.color, ls=style.line, marker=marker, ms=2.5, label=literal(name))
    if best in x:
        ax.plot([best], [y[x.index(best)]], color=style.color, marker="*", ms=9, ls="")


def _ray(networks: Sequence[RunFigures]) -> Figure:
    drawn = [(n, found) for n in networks if (found := _pictures(n).landscape) is not None]
    panels = []
    for i, (network, found) in enumerate(drawn):
        with drawing(TALL) as ax:
            found.plot(ax)
            _legend_above(ax, 1)
            ax.set_ylim(*_heights([curve.loss - curve.start for curve in found.curves.values()]))
            parts = [f"{name} loss {c.start:.4g} at 0, {_lowest(c)}" for name, c in found.curves.items()]
            text = f"Loss along the head gradient of {network.subject.name}: {'; '.join(parts)}."
            panels.append(panel(ax, f"ray-{i}", network.subject.name, text))
    return Figure(
        "ray",
        "Along the head gradient",
        "Change of the mean loss where the head moves by ξ against the normalised gradient of one mini-batch, the same"
        " one for all networks; 0 is the network as it is. Stars are minima, and the vertical line is the radius ξ* of"
        " that mini-batch. The axis ends at five times the depth of the deepest minimum, if the curves go higher.",
        panels,
    )


def _heights(changes: Sequence[Tensor]) -> tuple[float, float]:
    """Limits of an axis on which the dip of curves, changes (G,) from 0, is seen, however high they go elsewhere."""
    low, high = min(float(c.min()) for c in changes), max(float(c.max()) for c in changes)
    high = min(high, -5 * low) if low < 0 else high
    margin = 0.05 * ((high - low) or 1.0)
    return low - margin, high + margin


def _radius(networks: Sequence[RunFigures]) -> Figure:
    drawn = [(n, n.radii) for n in networks if n.radii is not None]
    sets = [r for _, d in drawn for r in (d.train, d.test) if r is not None]
    medians = [r.median for r in sets if r.median > 0]
    limit = min(max((float(r.radius.max()) for r in sets), default=0.0), 4 * max(medians, default=0.0)) or 1.0
    beyond = sum(int((r.radius > limit).sum()) for r in sets)
    panels = []
    for i, (network, found) in enumerate(drawn):
        with drawing() as ax:
            found.plot(ax, bins=20, limit=limit)
            _legend_above(ax, 1)
            ax.set_xlim(0.0, limit)
            parts = [f"training {_radii(found.train)}"] + ([] if found.test is None else [f"test {_radii(found.test)}"])
            ratio = "" if math.isnan(found.ratio) else f" Ratio of the medians {found.ratio:.2f}."
            text = f"Distribution of the radius, {network.subject.name}: {'; '.join(parts)}.{ratio}"
            panels.append(panel(ax, f"radius-{i}", network.subject.name, text))
    size = f" of {drawn[0][1].train.batch_size} samples" if drawn else ""
    return Figure(
        "radius",
        "Radius",
        f"The radius ξ* at which the loss of a mini-batch{size} has its minimum along its own head gradient, for"
        " training mini-batches (augmented as in training) and test mini-batches; vertical lines are medians. PoF's"
        " paper finds the test radius at about twice the training radius, and takes γ = 2 from it. Separable"
        " mini-batches have no minimum and are counted apart."
        + (f" {beyond} radii beyond four times the largest median are not drawn." if beyond else ""),
        panels,
    )


def _spectrum(networks: Sequence[RunFigures]) -> Figure:
    with drawing() as ax:
        for i, n in enumerate(networks):
            n.eigenvalues.plot(ax, label=literal(n.subject.name), series=i)
        ax.set_ylim(bottom=0.0)
        values = "; ".join(
            f"{n.subject.name} {', '.join(f'{v:.4g}' for v in n.eigenvalues.values.tolist())}" for n in networks
        )
        first = panel(ax, "eigenvalues", "Largest eigenvalues", f"The largest eigenvalues of the head: {values}.")
    with drawing() as ax:
        for i, n in enumerate(networks):
            _pictures(n).density.plot(ax, label=literal(n.subject.name), series=i)
        means = "; ".join(f"{n.subject.name} {_pictures(n).density.moment(1).value:.4g}" for n in networks)
        second = panel(
            ax,
            "density",
            "Spectral density",
            f"Density of the eigenvalues on a logarithmic axis. Most lie near zero. Mean eigenvalue: {means}.",
        )
    return Figure(
        "curvature",
        "Curvature of the head",
        f"Eigenvalues of the Hessian of the mean loss in the parameters of the head, over"
        f" {networks[0].eigenvalues.samples} training samples. The density is estimated by stochastic Lanczos"
        " quadrature; structure finer than a hundredth of its range is not resolved.",
        [first, second],
    )


def _plane(networks: Sequence[RunFigures]) -> Figure:
    drawn = [(n, found) for n in networks if (found := _pictures(n).plane) is not None]
    panels = []
    for i, (n, plane) in enumerate(drawn):
        with drawing(SQUARE) as ax:
            plane.plot(ax, levels=6)
            middle = len(plane.offsets) // 2
            text = (
                f"Contours of the loss around {n.subject.name}: {float(plane.loss[middle, middle]):.4g} at the network,"
                f" up to {float(plane.loss.max()):.4g} at the edge."
            )
            panels.append(panel(ax, f"plane-{i}", n.subject.name, text))
    return Figure(
        "plane",
        "Around the network",
        f"Loss on a plane through the network (cross), over {drawn[0][1].samples if drawn else 0} training samples;"
        " the two random directions are the same for all networks and normalised filter by filter, so that 1 is the"
        " length of the network's own filters. Contours are evenly spaced in the logarithm of the loss.",
        panels,
    )


def _calibration(networks: Sequence[RunFigures]) -> Figure:
    panels = []
    for i, n in enumerate(networks):
        found = n.calibration
        with drawing(SQUARE) as ax:
            found.plot(ax).legend().remove()
            ax.set(xlim=(0.0, 1.04), ylim=(0.0, 1.04), aspect="equal")
            kept = (found.share > 0).nonzero().flatten().tolist()
            worst = max(kept, key=lambda b: abs(float(found.accuracy[b] - found.confidence[b])))
            text = (
                f"Reliability of {n.subject.name}: expected calibration error {100 * n.test.ece:.2f} %;"
                f" {100 * float(found.share[-1]):.0f} % of the samples have the highest confidence. The largest gap is"
                f" at confidence {float(found.confidence[worst]):.2f}, where the accuracy is"
                f" {float(found.accuracy[worst]):.2f}."
            )
            panels.append(panel(ax, f"reliability-{i}", n.subject.name, text))
    return Figure(
        "calibration",
        "Calibration",
        f"Accuracy over confidence in 15 bins, {networks[0].calibration.samples} test samples; the area of a point is"
        " its share of the samples. On the diagonal the network is as often right as it claims; below it, it is too"
        " sure.",
        panels,
    )


def _features(networks: Sequence[RunFigures]) -> Figure:
    drawn = [(n, found) for n in networks if (found := _pictures(n).components) is not None]
    panels = []
    for i, (n, found) in enumerate(drawn):
        with drawing(SQUARE) as ax:
            names = [_short(name) for name in _pictures(n).classes]
            found.plot(ax, samples=500, names=names)
            legend = ax.get_legend()
            if legend is not None:
                legend.remove()
                columns = max(1, min(10, 58 // (max(map(len, names)) + 4)))
                _legend_above(ax, columns, fontsize=6.5, handletextpad=0.0, columnspacing=0.7, handlelength=1.5)
            share = f"{_percent(found.explained[0])} and {_percent(found.explained[1])} of the variance"
            text = f"Features of {n.subject.name} on their first two principal components, which hold {share}."
            panels.append(panel(ax, f"features-{i}", n.subject.name, text))
    return Figure(
        "features",
        "Features",
        "Test features on their first two principal components, a marker and a shade for each class; at most 500"
        " samples are drawn.",
        panels,
    )


def _short(name: str) -> str:
    # matplotlib leaves a name that begins with an underscore out of the legend.
    return literal(f" {name}" if name.startswith("_") else name if len(name) <= 20 else f"{name[:19]}…")


def _legend_above(ax: Axes, columns: int, **spacing: float) -> None:
    # Inside the axes it would cover what is drawn in one of the panels.
    ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, borderaxespad=0.2, **spacing)


def _pictures(network: RunFigures) -> Pictures:
    if network.pictures is None:
        raise ValueError(f"{network.subject.name} has no pictures: collect(..., pictures=True) measures them")
    return network.pictures


def _lowest(curve: LossCurve) -> str:
    if curve.minimum is None or curve.minimum_loss is None:
        return "no minimum"
    return f"minimum {curve.minimum_loss:.4g} at xi {curve.minimum:.3g}"


def _radii(found: Radii) -> str:
    return (
        f"median {found.median:.3g}, {_percent(1.0 - found.bounded.double().mean())} of {len(found.radius)} separable"
    )


def _percent(share: Tensor) -> str:
    return f"{100 * float(share):.0f} %"
