"""One report of what changed: a self-contained HTML page about runs, the networks they started from, and rivals.

The numbers are collected first (``collect``), drawn (``figures_of``) and set into a page (``render``).
"""

from pof.app.report.collection import RunFigures, Start, collect
from pof.app.report.page import write_report
from pof.app.report.quantities import as_json, side_by_side
from pof.app.report.samples import Bounds
from pof.app.report.subjects import Record, Subject, check_same_data, read_run, subject_of_file, subject_of_run
from pof.app.report.verdict import Verdict, verdicts

__all__ = [
    "Bounds",
    "Record",
    "RunFigures",
    "Start",
    "Subject",
    "Verdict",
    "as_json",
    "check_same_data",
    "collect",
    "read_run",
    "side_by_side",
    "subject_of_file",
    "subject_of_run",
    "verdicts",
    "write_report",
]
