"""The summary: one list of figures, for the table of the report, for that of the command line and for JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pof.app.report.collection import RunFigures
from pof.app.report.samples import Bounds
from pof.app.run_folder import environment

Value = Callable[[RunFigures], float | None]
NONE = "–"


@dataclass(frozen=True)
class Row:
    """One figure of every network."""

    key: str
    label: str
    note: str
    """What it is, in a few words."""
    value: Value
    form: str = ".3g"
    percent: bool = False
    error: Value | None = None
    """Standard error, where the figure is an estimate."""


@dataclass(frozen=True)
class Cell:
    """One figure of one network."""

    value: float | None
    """None where there is none."""
    text: str
    difference: str
    """To the network it started from; empty where there is none."""


@dataclass(frozen=True)
class Group:
    """Rows of one kind."""

    title: str
    rows: list[tuple[Row, list[Cell]]]


def summary(networks: Sequence[RunFigures]) -> list[Group]:
    """Set the figures of networks side by side.

    Args:
        networks: in the order of the columns.

    Returns:
        All rows, with a dash where a network has no such figure.
    """
    named = {n.subject.name: n for n in networks}
    before = [None if n.subject.before is None else named[n.subject.before] for n in networks]
    pairs = list(zip(networks, before, strict=True))
    return [
        Group(title, [(row, [_cell(row, network, start) for network, start in pairs]) for row in rows])
        for title, rows in GROUPS.items()
    ]


def as_json(networks: Sequence[RunFigures], bounds: Bounds) -> dict[str, Any]:
    """Write the figures as plain values.

    Args:
        networks: with their figures.
        bounds: how much was measured.

    Returns:
        Values for JSON; what is not known is None.
    """
    return {
        "batches": bounds.batches,
        "batch_size": bounds.batch_size,
        "networks": [_network(n) for n in networks],
        "environment": environment(),
    }


def _network(network: RunFigures) -> dict[str, Any]:
    subject, values = network.subject, network.eigenvalues
    return {
        "name": subject.name,
        "model": subject.model.model,
        "weights": str(subject.file or subject.model.weights),
        "data": subject.data.data,
        "figures": {row.key: _finite(row.value(network)) for rows in GROUPS.values() for row in rows},
        "trace_standard_error": network.trace.standard_error,
        "eigenvalues": values.values.tolist(),
        "eigenvalue_residuals": values.residuals.tolist(),
        "test_samples": network.test.n,
        "calibration_samples": network.calibration.samples,
        "radius_batch_size": None if network.radii is None else network.radii.train.batch_size,
        "hessian_samples": values.samples,
    }


def _cell(row: Row, network: RunFigures, before: RunFigures | None) -> Cell:
    value = _finite(row.value(network))
    if value is None:
        return Cell(None, NONE, "")
    spread = None if row.error is None else row.error(network)
    start = None if before is None else _finite(row.value(before))
    text = _number(row, value) + (" %" if row.percent else "") + ("" if spread is None else f" ± {spread:.1g}")
    return Cell(value, text, "" if start is None else _difference(row, value, start))


def _number(row: Row, value: float) -> str:
    # "#" keeps the zeros that say how exact a number is.
    return format(100.0 * value if row.percent else value, f"#{row.form}").rstrip(".")


def _difference(row: Row, value: float, start: float) -> str:
    # Of the numbers as they are shown, so that a reader's own subtraction agrees.
    shown = [_number(row, value), _number(row, start)]
    difference = float(shown[0]) - float(shown[1])
    decimals = max(len(number.partition(".")[2]) for number in shown)
    text = f"{abs(difference):.2g}" if "e" in "".join(shown) else f"{abs(difference):.{decimals}f}"
    sign = "" if not float(text) else "+" if difference > 0 else "−"
    return f"{sign}{text}{' pp' if row.percent else ''}"


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _radius(network: RunFigures, part: str) -> float | None:
    found = None if network.radii is None else getattr(network.radii, part)
    return None if found is None else float(found.median)


GROUPS: dict[str, tuple[Row, ...]] = {
    "Test set": (
        Row("error", "Error", "share of wrong predictions", lambda n: n.test.error, ".2f", True),
        Row("nll", "NLL", "mean negative log-likelihood, in nats", lambda n: n.test.nll, ".4f"),
        Row("brier", "Brier score", "from 0 to 2", lambda n: n.calibration.brier, ".4f"),
        Row("ece", "ECE", "expected calibration error, 15 bins", lambda n: n.test.ece, ".2f", True),
        Row(
            "scaled_ece",
            "ECE, scaled",
            "with the temperature that fits the validation split",
            lambda n: n.calibration.scaled_ece,
            ".2f",
            True,
        ),
        Row(
            "validation_error",
            "Validation error",
            "of the epoch that was kept",
            lambda n: n.subject.validation_error,
            ".2f",
            True,
        ),
    ),
    "Flatness": (
        Row(
            "top_eigenvalue",
            "Largest eigenvalue",
            "of the head's Hessian, training loss",
            lambda n: float(n.eigenvalues.values[0]),
        ),
        Row(
            "trace",
            "Trace",
            "of the same, with its standard error",
            lambda n: n.trace.value,
            error=lambda n: n.trace.standard_error,
        ),
        Row("sharpness", "SAM sharpness", "all parameters, ρ = 0.05", lambda n: n.sharpness.value),
    ),
    "Radius along the head gradient": (
        Row("radius_train", "Training", "median ξ* of mini-batches", lambda n: _radius(n, "train")),
        Row("radius_test", "Test", "likewise", lambda n: _radius(n, "test")),
        Row("radius_ratio", "Ratio", "test to training", lambda n: None if n.radii is None else n.radii.ratio, ".2f"),
        Row(
            "separable",
            "Separable",
            "training mini-batches without a finite radius",
            lambda n: None if n.radii is None else n.radii.train.separable_share,
            ".0f",
            True,
        ),
        Row(
            "gamma",
            "Suggested γ",
            "ratio of validation to training; needs validation mini-batches",
            lambda n: None if n.gamma is None else n.gamma.value,
            ".2f",
        ),
    ),
    "Features of the test set": (
        Row("feature_norm", "Norm", "mean", lambda n: None if n.features is None else n.features.norm),
        Row(
            "margin",
            "Margin",
            "median distance to a decision boundary",
            lambda n: None if n.features is None else n.features.margin,
        ),
        Row(
            "mutual_information",
            "Information about the label",
            "MeanNN estimate, in nats",
            lambda n: None if n.features is None else n.features.mutual_information,
        ),
    ),
}
