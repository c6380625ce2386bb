"""The figures side by side: one list, for the tables of the report and of the command line, and for JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pof.app.cards import weights_file
from pof.app.report.collection import RunFigures
from pof.app.report.samples import Bounds
from pof.app.run_folder import environment

NONE = "–"


@dataclass(frozen=True)
class Quantity:
    """One figure of every network."""

    key: str
    label: str
    note: str
    """What it is, in a few words."""
    path: str
    """Where it is in the figures of a network."""
    form: str = ".3g"
    percent: bool = False
    error: str | None = None
    """Where its standard error is, if the figure is an estimate."""

    def of(self, network: RunFigures) -> float | None:
        """Return the figure; None where the network has none, or one that is not finite."""
        return _finite(_at(network, self.path))


@dataclass(frozen=True)
class Shown:
    """One figure of one network."""

    value: float | None
    """None where there is none."""
    text: str
    difference: str
    """To the network it started from; empty where there is none."""


@dataclass(frozen=True)
class Group:
    """Figures of one kind, each with what is shown of every network."""

    title: str
    rows: list[tuple[Quantity, list[Shown]]]


def side_by_side(networks: Sequence[RunFigures]) -> list[Group]:
    """Set the figures of networks side by side."""
    named = {n.subject.name: n for n in networks}
    before = [None if n.subject.before is None else named[n.subject.before] for n in networks]
    pairs = list(zip(networks, before, strict=True))
    return [
        Group(title, [(row, [_cell(row, network, start) for network, start in pairs]) for row in rows])
        for title, rows in GROUPS.items()
    ]


def as_json(networks: Sequence[RunFigures], bounds: Bounds) -> dict[str, Any]:
    """Write the figures as plain values."""
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
        "weights": str(weights_file(str(subject.model.weights))),
        "data": subject.data.data,
        "figures": {row.key: row.of(network) for rows in GROUPS.values() for row in rows},
        "trace_standard_error": network.trace.standard_error,
        "eigenvalues": values.values.tolist(),
        "eigenvalue_residuals": values.residuals.tolist(),
        "test_samples": network.test.n,
        "calibration_samples": network.calibration.samples,
        "radius_batch_size": None if network.radii is None else network.radii.train.batch_size,
        "hessian_samples": values.samples,
    }


def _cell(row: Quantity, network: RunFigures, before: RunFigures | None) -> Shown:
    value = row.of(network)
    if value is None:
        return Shown(None, NONE, "")
    spread = None if row.error is None else _at(network, row.error)
    start = None if before is None else row.of(before)
    text = _number(row, value) + (" %" if row.percent else "") + ("" if spread is None else f" ± {spread:.1g}")
    return Shown(value, text, "" if start is None else _difference(row, value, start))


def _number(row: Quantity, value: float) -> str:
    # "#" keeps the zeros that say how exact a number is.
    return format(100.0 * value if row.percent else value, f"#{row.form}").rstrip(".")


def _difference(row: Quantity, value: float, start: float) -> str:
    # Of the figures as they are, with no more digits than either of them is shown with.
    shown, size = [_number(row, value), _number(row, start)], abs(value - start)
    texts = [_number(row, size)]
    if "e" not in "".join(shown):
        decimals = max(len(number.partition(".")[2]) for number in shown)
        texts.append(f"{100.0 * size if row.percent else size:.{decimals}f}")
    text = min(texts, key=len)
    sign = "" if not float(text) else "+" if value > start else "−"
    return f"{sign}{text}{' pp' if row.percent else ''}"


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _at(network: RunFigures, path: str) -> float | None:
    found: Any = network
    for name in path.split("."):
        found = None if found is None else getattr(found, name)
    return None if found is None else float(found)


GROUPS: dict[str, tuple[Quantity, ...]] = {
    "Test set": (
        Quantity("error", "Error", "share of wrong predictions", "test.error", ".2f", True),
        Quantity("nll", "NLL", "mean negative log-likelihood, in nats", "test.nll", ".4f"),
        Quantity("brier", "Brier score", "from 0 to 2", "calibration.brier", ".4f"),
        Quantity("ece", "ECE", "expected calibration error, 15 bins", "test.ece", ".2f", True),
        Quantity(
            "scaled_ece",
            "ECE, scaled",
            "with the temperature that fits the validation split",
            "calibration.scaled_ece",
            ".2f",
            True,
        ),
        Quantity(
            "validation_error",
            "Validation error",
            "of the epoch that was kept",
            "subject.validation_error",
            ".2f",
            True,
        ),
    ),
    "Flatness": (
        Quantity("top_eigenvalue", "Largest eigenvalue", "of the head's Hessian, training loss", "top_eigenvalue"),
        Quantity("trace", "Trace", "of the same, with its standard error", "trace.value", error="trace.standard_error"),
        Quantity("sharpness", "SAM sharpness", "all parameters, ρ = 0.05", "sharpness.value"),
    ),
    "Radius along the head gradient": (
        Quantity("radius_train", "Training", "median ξ* of mini-batches", "radii.train.median"),
        Quantity("radius_test", "Test", "median ξ* of mini-batches", "radii.test.median"),
        Quantity("radius_ratio", "Ratio", "test to training", "radii.ratio", ".2f"),
        Quantity(
            "separable",
            "Separable",
            "training mini-batches without a finite radius",
            "radii.train.separable_share",
            ".0f",
            True,
        ),
        Quantity(
            "gamma",
            "Suggested γ",
            "ratio of validation to training; needs validation mini-batches",
            "gamma.value",
            ".2f",
        ),
    ),
    "Features of the test set": (
        Quantity("feature_norm", "Norm", "mean", "features.norm"),
        Quantity("margin", "Margin", "median distance to a decision boundary", "features.margin"),
    ),
}
