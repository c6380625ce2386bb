"""An experiment whose parts ran on machines without a common disk: one table out of theirs.

    python benchmarks/join_tables.py RECIPE TABLE.csv [TABLE.csv ...] --name birds-30 --hardware "..." [--set seeds=3]

``RECIPE`` has every row of the tables: the same seeds, rates and epochs.  Writes results/NAME.json and NAME.csv, as
``pof experiment`` would write them had it run in one place; they may be among the tables.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pof.app.experiment.plan import Plan, make_plan
from pof.app.experiment.recipe import importable, read_recipe
from pof.app.experiment.summary import summarise
from pof.app.experiment.table import COLUMNS, ResultRow, write_csv

RESULTS = Path(__file__).resolve().parent / "results"
TYPES = {field.name: str(field.type).removesuffix(" | None") for field in fields(ResultRow)}
OPTIONAL = {field.name for field in fields(ResultRow) if str(field.type).endswith("None")}
KINDS = {"str": str, "int": int, "float": float}


def read_table(file: Path) -> list[ResultRow]:
    """The rows of a results.csv, with the bits that were written."""

    def value(name: str, text: str) -> Any:
        return None if not text and name in OPTIONAL else KINDS[TYPES[name]](text)

    with file.open(newline="", encoding="utf-8") as opened:
        return [ResultRow(**{name: value(name, row[name]) for name in COLUMNS}) for row in csv.DictReader(opened)]


def join(plan: Plan, tables: Sequence[Sequence[ResultRow]]) -> list[ResultRow]:
    """All rows in the order of the plan.

    Raises:
        SystemExit: where the recipe lacks a row, or two tables disagree on one.
    """
    found: dict[tuple[str, int, str], ResultRow] = {}
    for row in (row for table in tables for row in table):
        there = found.setdefault((row.setting, row.seed, row.method), row)
        if there != row:
            raise SystemExit(f"two tables have {row.setting}, {row.method}, seed {row.seed}, with other figures")
    planned = {(trial.setting, trial.seed, method): None for trial in plan.trials for method in trial.methods}
    if strange := sorted(found.keys() - planned.keys()):
        raise SystemExit(f"the recipe has no {strange[0]}")
    return [found[key] for key in planned if key in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("tables", nargs="+", type=Path)
    parser.add_argument("--name", required=True, help="of the JSON and the CSV in results/")
    parser.add_argument("--hardware", required=True, help="of the runs, in words")
    parser.add_argument("--set", nargs="+", default=[], help="changes of the recipe, as of pof experiment")
    options = parser.parse_args()
    with importable(options.recipe.parent):
        plan = make_plan(read_recipe(options.recipe, options.set))
    rows = join(plan, [read_table(file) for file in options.tables])
    commits = sorted({row.commit or "unknown" for row in rows})
    recipe = json.loads(json.dumps(dict(plan.recipe.source)))
    for group, key in (("model", "weights"), ("data", "data"), ("data", "data_root")):
        if recipe[group].get(key):
            recipe[group][key] = Path(recipe[group][key]).name  # no paths of a machine
    own = {"name": options.name, "commits": commits, "recipe": recipe, "hardware": options.hardware}
    summary = asdict(summarise(plan, rows)) | own
    (RESULTS / f"{options.name}.json").write_text(json.dumps(summary, indent=1) + "\n")
    write_csv(rows, RESULTS / f"{options.name}.csv")
    print(f"{len(rows)} of {sum(len(trial.methods) for trial in plan.trials)} rows, commits {', '.join(commits)}")


if __name__ == "__main__":
    main()
