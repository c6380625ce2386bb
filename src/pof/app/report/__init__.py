"""One report of what changed: a self-contained HTML page about runs, the networks they started from, and rivals.

The numbers are collected first (``collect``), drawn (``figures``) and set into a page (``render``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pof._support.files import replacing
from pof.app.report.collection import RunFigures, Start, collect
from pof.app.report.figures import figures_of
from pof.app.report.page import render
from pof.app.report.rows import as_json, summary
from pof.app.report.samples import Bounds
from pof.app.report.subjects import (
    Record,
    Subject,
    check_same_data,
    read_run,
    subject_of_file,
    subject_of_run,
    with_incoming,
)

__all__ = [
    "Bounds",
    "Record",
    "RunFigures",
    "Start",
    "Subject",
    "as_json",
    "check_same_data",
    "collect",
    "read_run",
    "subject_of_file",
    "subject_of_run",
    "summary",
    "with_incoming",
    "write_report",
]


def write_report(
    records: Sequence[Record], out: Path, bounds: Bounds, *, start: Start = lambda name: None
) -> list[RunFigures]:
    """Measure the networks of runs, and those they started from, and write the page.

    Args:
        records: the runs.
        out: the HTML file.
        bounds: how much is measured.
        start: gives the progress hook for each network.

    Returns:
        The figures, in the order of the page.

    Raises:
        ValueError: if a run is given twice, the runs are of different data, or data are missing.
        RunError: if a network does not give the test error that its run wrote down.
    """
    subjects, notes = with_incoming(records)
    check_same_data(subjects)
    networks = collect(subjects, bounds, pictures=True, start=start)
    page = render(networks, figures_of(networks), notes)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial:
        partial.write_text(page, encoding="utf-8")
    return networks
