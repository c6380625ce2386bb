"""From figures to one self-contained page: a template, its style sheet, nothing from a network and no scripts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pof._support.described import flat
from pof._support.files import write_text
from pof.app.report.collection import RunFigures, Start, collect
from pof.app.report.figures import Figure, figures_of
from pof.app.report.quantities import side_by_side
from pof.app.report.samples import Bounds
from pof.app.report.subjects import Record, check_same_data, with_incoming
from pof.app.report.template import load_template
from pof.app.report.verdict import verdicts


@dataclass(frozen=True)
class Settings:
    """Plain values of runs, side by side."""

    names: list[str]
    rows: list[tuple[str, list[str], bool]]
    """Key, value of each run, whether they differ."""


def write_report(
    records: Sequence[Record], out: Path, bounds: Bounds, *, plane: bool = False, start: Start = lambda name: None
) -> list[RunFigures]:
    """Measure the networks of runs, and those they started from, and write the page; give the figures in its order."""
    subjects, notes = with_incoming(records)
    check_same_data(subjects)
    networks = collect(subjects, bounds, pictures=True, plane=plane, start=start)
    page = render(networks, figures_of(networks), notes)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)
    return networks


def render(networks: Sequence[RunFigures], figures: Sequence[Figure], notes: Sequence[str]) -> str:
    """Write the page."""
    records = [(n.subject.name, n.subject.record) for n in networks if n.subject.record is not None]
    return load_template("template.html").render(
        title=title_of(networks),
        subjects=[n.subject for n in networks],
        groups=side_by_side(networks),
        verdict=[found.sentences for found in verdicts(networks)],
        reading=reading(networks),
        figures=figures,
        notes=notes,
        sections=[
            ("configuration", "Configuration", settings({name: r.config for name, r in records})),
            ("environment", "Environment", settings({name: r.environment for name, r in records})),
        ],
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def title_of(networks: Sequence[RunFigures]) -> str:
    """Name the report after its data and models."""
    models = list(dict.fromkeys(n.subject.model.model for n in networks))
    return f"{' and '.join(models)} on {networks[0].subject.data.data}"


def reading(networks: Sequence[RunFigures]) -> list[str]:
    """Say in sentences what the table says about the test error, and how sure that is."""
    errors = ", ".join(f"{n.subject.name} {100 * n.test.error:.2f} %" for n in networks)
    test = networks[0].test
    deviation = 100 * math.sqrt(test.error * (1 - test.error) / test.n)
    return [
        f"Test error: {errors}.",
        f"One run each, on {test.n} test samples: by the sample alone, a test error of {100 * test.error:.2f} % has a"
        f" standard error of {deviation:.2f} percentage points. The difference of two networks on the same samples is"
        " less uncertain than that (its intervals are bootstraps over the samples, its p-values not corrected for their"
        " number), but only several seeds show what a method does.",
    ]


def settings(values: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Set nested values side by side, a row for each key."""
    trees = {name: flat(tree) for name, tree in values.items()}
    rows = []
    for key in dict.fromkeys(key for tree in trees.values() for key in tree):
        texts = [_text(tree.get(key)) for tree in trees.values()]
        rows.append((key, texts, len(set(texts)) > 1))
    return Settings(list(trees), rows)


def _text(value: Any) -> str:
    return "–" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)
