"""Tables of one experiment from several machines become the table that one machine would have written."""

from __future__ import annotations

import math
import runpy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from pof.app.experiment.plan import RUNS, make_plan
from pof.app.experiment.recipe import read_recipe
from pof.app.experiment.table import ResultRow, write_csv

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "digits.yaml"
CHANGES = ["seeds=2"]
JOIN = runpy.run_path(str(ROOT / "benchmarks" / "join_tables.py"))


def rows_of(seed: int, *changes: str, threads: int = 1) -> list[ResultRow]:
    """Made up, but for the folders, which are those of the recipe's runs."""
    plan = make_plan(read_recipe(RECIPE, [*CHANGES, *changes]), threads=threads)
    (trial,) = [trial for trial in plan.trials if trial.seed == seed]
    figures: dict[str, Any] = {
        field.name: None if str(field.type).endswith("None") else 0.25 if field.type == "float" else 1
        for field in fields(ResultRow)
    }
    own = {"setting": trial.setting, "seed": seed, "commit": "abc", "error_before": 0.5, "val_nll": math.nan}
    return [
        ResultRow(**{**figures, **own, "method": method, "folder": f"{RUNS}/{name}", "error": 0.1 + place / 7})
        for place, (method, name) in enumerate(trial.methods.items())
    ]


@pytest.fixture
def tables(tmp_path: Path) -> list[Path]:
    """Seed 1 before seed 0, and a part of seed 0 twice, the second time in another number of seconds."""
    again = [replace(row, seconds=9.0) for row in rows_of(0)[:2]]
    for place, rows in enumerate((rows_of(1), rows_of(0), again)):
        write_csv(rows, tmp_path / f"{place}.csv")
    return sorted(tmp_path.glob("*.csv"))


def run(monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: object) -> None:
    monkeypatch.setitem(JOIN["main"].__globals__, "RESULTS", out)
    monkeypatch.setattr("sys.argv", ["join_tables.py", *map(str, arguments), "--name", "both", "--hardware", "two"])
    JOIN["main"]()


def test_tables_are_joined_in_the_order_of_the_recipe(
    tables: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, tmp_path, RECIPE, *tables, "--set", *CHANGES)
    found = JOIN["read_table"](tmp_path / "both.csv")
    assert [(row.seed, row.method, row.error) for row in found] == [
        (row.seed, row.method, row.error) for row in [*rows_of(0), *rows_of(1)]
    ]


@pytest.mark.parametrize("change", ["train.lr=0.7", "budget=8", "pretrain.epochs=7"])
def test_a_recipe_of_other_options_is_refused(
    change: str, tables: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=r"0\.csv: the recipe would not run digits, .*, seed 1 so"):
        run(monkeypatch, tmp_path, RECIPE, *tables, "--set", *CHANGES, change)
    assert not (tmp_path / "both.json").exists()


def test_machines_may_have_folders_devices_and_threads_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here.csv", tmp_path / "there.csv"
    write_csv(rows_of(0, "data.data_root=/home", threads=2), here)
    write_csv(rows_of(1, "data.data_root=/mnt", "train.device=cuda", threads=2), there)
    shared: list[Any] = ["--threads", 2, "--set", *CHANGES, "data.data_root=/home"]
    with pytest.raises(SystemExit, match=r"there\.csv: the recipe would not run digits"):
        run(monkeypatch, tmp_path, RECIPE, here, there, *shared)
    its = "@data.data_root=/mnt@train.device=cuda"
    run(monkeypatch, tmp_path, RECIPE, here, f"{there}{its}", *shared)
    once = (tmp_path / "both.csv").read_text()
    # What was joined may be joined again.
    run(monkeypatch, tmp_path, RECIPE, tmp_path / "both.csv", f"{there}{its}", *shared)
    assert (tmp_path / "both.csv").read_text() == once and "/mnt" not in (tmp_path / "both.json").read_text()
    with pytest.raises(SystemExit, match=r"train\.lr=0\.7: machines may differ in data\.data, .*train\.device; --set"):
        run(monkeypatch, tmp_path, RECIPE, here, f"{there}@train.lr=0.7", *shared)


def test_tables_that_disagree_are_refused(tables: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv([replace(row, error=0.9) for row in rows_of(0)[:1]], tables[2])
    with pytest.raises(SystemExit, match=r"two tables have digits, .*, seed 0, with other figures"):
        run(monkeypatch, tmp_path, RECIPE, *tables, "--set", *CHANGES)


def test_no_path_of_a_machine_is_left_in_a_recipe() -> None:
    source = {"model": {"weights": "/w/a.th"}, "settings": {"few": {"data": {"data": "/d/birds", "mean": [0.5]}}}}
    assert JOIN["bare"](source) == {
        "model": {"weights": "a.th"},
        "settings": {"few": {"data": {"data": "birds", "mean": [0.5]}}},
    }
    assert JOIN["bare"]({"model": "timm:a/b", "data": {"data_root": "here/there"}})["data"]["data_root"] == "here/there"
