"""From figures to one self-contained page: a template, its style sheet, nothing from a network and no scripts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pof.app.report.collection import RunFigures
from pof.app.report.figures import Figure
from pof.app.report.rows import summary


@dataclass(frozen=True)
class Settings:
    """Plain values of runs, side by side."""

    names: list[str]
    rows: list[tuple[str, list[str], bool]]
    """Key, value of each run, whether they differ."""


def render(networks: Sequence[RunFigures], figures: Sequence[Figure], notes: Sequence[str]) -> str:
    """Write the page.

    Args:
        networks: the columns of the summary.
        figures: below it.
        notes: what a reader must know beside.

    Returns:
        HTML.

    Raises:
        ImportError: if jinja2 is missing.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("template.html")
    records = [(n.subject.name, n.subject.record) for n in networks if n.subject.record is not None]
    return template.render(
        title=title_of(networks),
        subjects=[n.subject for n in networks],
        groups=summary(networks),
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
    """Name the report after its data and models.

    Returns:
        The title.
    """
    models = list(dict.fromkeys(n.subject.model.model for n in networks))
    return f"{' and '.join(models)} on {networks[0].subject.data.data}"


def reading(networks: Sequence[RunFigures]) -> list[str]:
    """Say in sentences what the table says about the test error, and how sure that is.

    Returns:
        A few sentences.
    """
    errors = ", ".join(f"{n.subject.name} {100 * n.test.error:.2f} %" for n in networks)
    test = networks[0].test
    deviation = 100 * math.sqrt(test.error * (1 - test.error) / test.n)
    return [
        f"Test error: {errors}.",
        f"One run each, on {test.n} test samples: by the sample alone, a test error of {100 * test.error:.2f} % has a"
        f" standard error of {deviation:.2f} percentage points. Differences between networks on the same samples are"
        " less uncertain than that, but only several seeds show what a method does.",
    ]


def settings(values: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Set nested values side by side, a row for each key.

    Args:
        values: by run.

    Returns:
        The rows, in the order of the first run that has them.
    """
    flat = {name: dict(_flat("", tree)) for name, tree in values.items()}
    keys = dict.fromkeys(key for tree in flat.values() for key in tree)
    rows = []
    for key in keys:
        texts = [tree.get(key, "–") for tree in flat.values()]
        rows.append((key, texts, len(set(texts)) > 1))
    return Settings(list(flat), rows)


def _flat(prefix: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in _flat(f"{prefix}.{key}".lstrip("."), item)]
    if isinstance(value, list):
        return [(prefix, " ".join(map(str, value)))]
    return [(prefix, "–" if value is None else str(value))]
