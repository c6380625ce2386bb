"""An experiment whose parts ran on machines without a common disk: one table out of theirs.

    python benchmarks/join_tables.py RECIPE TABLE.csv [TABLE.csv ...] --name birds-30 --hardware "..." [--set seeds=3]

``RECIPE`` has every row of the tables, with the options and paths of the runs: a row that it would not run is refused.
What one machine had otherwise stands behind its table: ``TABLE.csv@data.data_root=/mnt/data@train.device=cuda``.
Writes results/NAME.json and NAME.csv, as ``pof experiment`` would write them had it run in one place; they may be
among the tables.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pof.app.experiment.plan import Plan, make_plan
from pof.app.experiment.recipe import importable, read_recipe
from pof.app.experiment.summary import summarise
from pof.app.experiment.table import COLUMNS, INCIDENTAL, ResultRow, lost_rows, write_csv

RESULTS = Path(__file__).resolve().parent / "results"
TYPES = {field.name: str(field.type).removesuffix(" | None") for field in fields(ResultRow)}
OPTIONAL = {field.name for field in fields(ResultRow) if str(field.type).endswith("None")}
PLACES = ("data.data", "data.data_root", "data.workers", "model.weights", "train.device")
"""What machines may differ in."""
KINDS = {"str": str, "int": int, "float": float}


def read_table(file: Path) -> list[ResultRow]:
    """The rows of a results.csv, with the bits that were written."""

    def value(name: str, text: str) -> Any:
        return None if not text and name in OPTIONAL else KINDS[TYPES[name]](text)

    with file.open(newline="", encoding="utf-8") as opened:
        rows = csv.DictReader(opened)
        # Older tables lack columns that have no value in them.
        return [ResultRow(**{name: value(name, row.get(name, "")) for name in COLUMNS}) for row in rows]


def join(plan: Plan, tables: Sequence[Sequence[ResultRow]]) -> list[ResultRow]:
    """All rows in the order of the plan.

    Raises:
        SystemExit: where two tables disagree on a row.
    """
    found: dict[tuple[str, int, str], ResultRow] = {}
    for row in (row for table in tables for row in table):
        there = found.setdefault((row.setting, row.seed, row.method), row)
        if _figures(there) != _figures(row):
            raise SystemExit(f"two tables have {row.setting}, {row.method}, seed {row.seed}, with other figures")
    planned = [(trial.setting, trial.seed, method) for trial in plan.trials for method in trial.methods]
    return [found[key] for key in planned if key in found]


def _figures(row: ResultRow) -> list[str]:
    """As texts, in which NaN is like NaN."""
    return [str(getattr(row, name)) for name in COLUMNS if name not in INCIDENTAL]


def bare(source: Any) -> Any:
    """A recipe without paths of a machine, at any depth: of files and folders the names are left."""
    if isinstance(source, Mapping):
        return {key: bare(value) for key, value in source.items()}
    if isinstance(source, list | tuple):
        return [bare(value) for value in source]
    return Path(source).name if isinstance(source, str) and Path(source).is_absolute() else source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("tables", nargs="+", help="each a results.csv, perhaps with @ and a change")
    parser.add_argument("--name", required=True, help="of the JSON and the CSV in results/")
    parser.add_argument("--hardware", required=True, help="of the runs, in words")
    parser.add_argument("--set", nargs="+", default=[], help="changes of the recipe, as of pof experiment")
    parser.add_argument("--threads", type=int, default=1, help="of each run, as of pof experiment")
    options = parser.parse_args()

    def planned(changes: Sequence[str]) -> Plan:
        with importable(options.recipe.parent):
            return make_plan(read_recipe(options.recipe, [*options.set, *changes]), threads=options.threads)

    parts = [table.split("@") for table in options.tables]
    if other := [change for _, *changes in parts for change in changes if change.split("=")[0] not in PLACES]:
        raise SystemExit(f"{other[0]}: machines may differ in {', '.join(PLACES)}; --set changes the recipe for all")
    plan = planned([])
    # A table that was joined before has rows of several machines.
    plans = [plan, *(planned(changes) for _, *changes in parts if changes)]
    for file in (Path(file) for file, *_ in parts):
        strange = set.intersection(*(set(lost_rows(each, file)) for each in plans))
        if strange:
            raise SystemExit(f"{file}: the recipe would not run {min(strange)} so: give it the options of that run")
    rows = join(plan, [read_table(Path(file)) for file, *_ in parts])
    commits = sorted({row.commit or "unknown" for row in rows})
    own = {"name": options.name, "commits": commits, "recipe": bare(plan.recipe.source), "hardware": options.hardware}
    summary = asdict(summarise(plan, rows)) | own
    (RESULTS / f"{options.name}.json").write_text(json.dumps(summary, indent=1) + "\n")
    write_csv(rows, RESULTS / f"{options.name}.csv")
    print(f"{len(rows)} of {sum(len(trial.methods) for trial in plan.trials)} rows, commits {', '.join(commits)}")


if __name__ == "__main__":
    main()
