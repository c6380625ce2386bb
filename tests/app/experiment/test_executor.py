"""Whole experiments in their worker processes: killed, interrupted, in parallel, with failures; and what they write."""

from __future__ import annotations

import csv
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.datasets import load_digits

from pof.app.cli import main
from pof.app.engine.base import Ended, Numerics, Workers
from pof.app.experiment import worker
from pof.app.experiment.estimate import forecast, total_seconds
from pof.app.experiment.executor import execute
from pof.app.experiment.plan import Plan, make_plan, shard
from pof.app.experiment.recipe import parse_recipe
from pof.app.experiment.table import COLUMNS, INCIDENTAL, rows_of
from pof.app.experiment.worker import Outcome, appears
from pof.app.run_files import read_rows
from tests.processes import PATIENCE, Process, pof, start

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "seeds": 2,
    "data": {"data": "digits", "train_size": 100},
    "model": {"model": "small-cnn"},
    # Long enough for a signal to meet a slow machine inside of a run.
    "pretrain": {"epochs": 16, "batch_size": 20, "lr": 0.05},
    "train": {"lr": 1e-2, "batch_size": 20},
    "budget": 3,
    "methods": {"sgd": {"method": "finetune"}, "pof": {"method": "pof"}},
    "control": "sgd",
}
FILES = {"results.csv", "summary.json", "summary.md", "summary.tex", "report.html"}


def written(folder: Path, recipe: dict[str, Any]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{recipe['name']}.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return str(file)


def table(out: Path, name: str = "tiny") -> list[dict[str, str]]:
    """What must be the same whenever the experiment is repeated."""
    with (out / name / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key not in INCIDENTAL} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiment in two shards, the second with two workers."""
    folder = tmp_path_factory.mktemp("whole")
    recipe, out = written(folder, RECIPE), folder / "out"
    first = pof("experiment", recipe, "--out", str(out), "--shard", "0/2", "--jobs", "1")
    assert first.code == 0, first.err
    assert "2 of 4 runs" in first.out
    second = pof("experiment", recipe, "--out", str(out), "--shard", "1/2", "--jobs", "2")
    assert second.code == 0, second.err
    assert "4 of 4 runs" in second.out
    return out


def test_table_and_pages_of_a_finished_experiment(whole: Path) -> None:
    assert {path.name for path in (whole / "tiny").iterdir()} == FILES
    plan = make_plan(parse_recipe(RECIPE))
    rows = rows_of(plan, whole)
    assert [(row.method, row.seed, row.units) for row in rows] == [
        ("sgd", 0, 3.0), ("pof", 0, pytest.approx(8 / 3)), ("sgd", 1, 3.0), ("pof", 1, pytest.approx(8 / 3))
    ]  # fmt: skip
    with (whole / "tiny" / "results.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert tuple(lines[0]) == COLUMNS
    for row, line in zip(rows, lines[1:], strict=True):
        folder = whole / row.folder
        result = json.loads((folder / "result.json").read_text())
        epochs = [r for r in read_rows(folder) if r["event"] == "epoch"]
        # Written so that reading gives the same bits.
        assert float(line[COLUMNS.index("error")]) == row.error == result["test_after"]["error"]
        assert row.error_before == result["test_before"]["error"]
        assert row.val_error_before == epochs[0]["val_error"]
        assert row.val_error_last == epochs[-1]["val_error"]
        assert row.val_error == epochs[row.best_epoch]["val_error"]
        assert row.radius == epochs[-1].get("train_radius")
        assert (row.radius is None) == (row.method == "sgd")
        assert not (folder / "state").exists()
    before = {row.seed: json.loads((whole / "runs" / cell.pretrain / "result.json").read_text())  # type: ignore[operator]
              for cell in plan.trials for row in rows if row.seed == cell.seed}  # fmt: skip
    assert all(row.error_before == before[row.seed]["test_after"]["error"] for row in rows)


def test_a_finished_experiment_is_not_repeated(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stamps() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in (whole / "runs").rglob("*") if path.is_file()}

    before, figures = stamps(), table(whole)
    arguments = ["experiment", str(whole.parent / "tiny.yaml"), "--out", str(whole), "--measure", "val_nll"]
    assert main(arguments) == 0
    assert stamps() == before
    assert table(whole) == figures
    assert "validation NLL" in capsys.readouterr().out


def test_another_set_into_the_same_folder_is_refused_before_anything_runs(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in (whole / "tiny").iterdir()}
    recipe = str(whole.parent / "tiny.yaml")
    assert main(["experiment", recipe, "--out", str(whole), "--set", "train.lr=0.003"]) == 2
    assert "of their rows would be lost" in (error := capsys.readouterr().err) and "--set name=tiny-2" in error
    assert {path: path.read_bytes() for path in (whole / "tiny").iterdir()} == before
    assert main(["experiment", recipe, "--out", str(whole), "--dry_run", "--set", "train.lr=0.003", "name=tiny-2"]) == 0


def test_runs_of_other_files_of_the_same_relative_name_are_not_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = load_digits()
    for name, step in (("a", 1), ("b", -1)):
        (tmp_path / name).mkdir()
        x, y = digits.images[::step].astype("uint8"), digits.target[::step]
        np.savez(tmp_path / name / "own.npz", x_train=x[:200], y_train=y[:200], x_test=x[200:300], y_test=y[200:300])
    model, data = {"model": "small-cnn"}, {"data": "own.npz"}
    small = RECIPE | {"seeds": 1, "data": data, "model": model, "pretrain": {"epochs": 1, "batch_size": 50}}
    words = ["experiment", written(tmp_path, small), "--out", str(tmp_path / "out"), "--jobs", "1"]
    monkeypatch.chdir(tmp_path / "a")
    assert main(words) == 0
    monkeypatch.chdir(tmp_path / "b")
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"is a run of {tmp_path}/a/own.npz, and from the current folder the recipe means {tmp_path}/b/own" in said
    monkeypatch.chdir(tmp_path)  # with no such file
    assert main(words) == 0
    monkeypatch.chdir(tmp_path / "b")
    (tmp_path / "b" / "own.npz").unlink()  # as on a machine with the runs alone
    (tmp_path / "b" / "own.npz").symlink_to(tmp_path / "a" / "own.npz")
    assert main(words) == 0


def test_killed_and_interrupted_it_goes_on_to_the_same_table(whole: Path, tmp_path: Path) -> None:
    recipe, out = written(tmp_path, RECIPE), tmp_path / "out"
    command = ("experiment", recipe, "--out", str(out), "--jobs", "1")

    killed = start(*command)
    within_a_run(killed, out, steps=8)
    workers = children(killed)
    os.kill(killed.process.pid or 0, signal.SIGKILL)
    assert killed.wait().code == -signal.SIGKILL
    wait_until(lambda: not any(map(alive, workers)), "workers go with their parent")
    assert not list(out.rglob("result.json"))

    interrupted = start(*command)
    within_a_run(interrupted, out, steps=35)
    workers = children(interrupted)
    os.kill(interrupted.process.pid or 0, signal.SIGINT)
    done = interrupted.wait()
    assert done.code == 130, done.err
    assert "Traceback" not in done.err
    assert not any(map(alive, workers))
    assert len(list(out.rglob("result.json"))) < 6

    last = pof(*command)
    assert last.code == 0, last.err
    assert table(out) == table(whole)
    assert not list(out.rglob("*.partial"))


FACTORIES = """
import os, signal, sys
import torch
from sklearn.datasets import load_digits
from pof.models import SmallCNN

def good(num_classes, in_channels):
    assert os.environ["OMP_NUM_THREADS"] == "2" and torch.get_num_threads() == 2
    return SmallCNN(num_classes=num_classes, in_channels=in_channels)

def dying(num_classes, in_channels):
    os.kill(os.getpid(), signal.SIGKILL)

def raising(num_classes, in_channels):
    raise RuntimeError("no such layer")
"""


def test_a_failed_run_is_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    (tmp_path / "beside_the_recipe.py").write_text(FACTORIES)
    settings = {name: {"model": {"model": f"beside_the_recipe:{name}"}} for name in ("dying", "raising", "good")}
    parts = {"seeds": [3], "model": {}, "settings": settings, "methods": {"sgd": {"method": "finetune"}}}
    recipe, out = written(tmp_path, RECIPE | parts), tmp_path / "out"
    done = pof("experiment", recipe, "--out", str(out), "--jobs", "1", "--threads", "2")
    assert done.code == 1
    assert "out of memory?" in done.out
    assert "no such layer" in done.out
    assert done.out.count("which it starts from, failed") == 4  # said at once, and listed at the end
    assert [row["setting"] for row in table(out)] == ["good"]
    assert "4 runs failed" in done.out
    reports = [file.read_text() for file in (out / "failed").iterdir()]
    assert len(reports) == 2
    assert any("Traceback" in text and "RuntimeError" in text for text in reports)


class Elsewhere(Workers):
    """As an engine and its workers: another machine that finishes everything, and writes nothing here."""

    room = 1

    @contextmanager
    def workers(self, sent: bytes, numerics: Numerics, folder: Path) -> Iterator[Workers]:
        yield self

    def slots(self) -> int:
        return 1

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def submit(self, task: Any) -> None:
        self.task = task

    def wait(self) -> Ended:
        return Ended(self.task, 1.0, Outcome())


def test_what_another_machine_has_finished_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = tmp_path / "pof-1"
    stage.mkdir()
    threading.Timer(0.1, (stage / "result.json").touch).start()
    assert appears(stage)
    monkeypatch.setattr(worker, "LATE", 0.0)
    failed = execute(make_plan(parse_recipe(RECIPE | {"seeds": 1})), tmp_path, Elsewhere())
    assert [reason.split(",")[1] for reason in failed.values()] == [
        f" and {tmp_path / 'runs'} does not show it", *[" which it starts from"] * 2
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("part", "found"),
    [
        ({"data": {"data": "digit"}}, r"unknown data set 'digit', and no such folder or file: digit; known are digits"),
        ({"model": {"model": "small-ccn"}}, r"unknown model 'small-ccn'; similar: small-cnn"),
    ],
)
def test_names_that_nobody_knows_are_refused_before_anything_runs(
    part: Any, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "LATE", 0.0)
    plan = make_plan(parse_recipe(RECIPE | {"settings": {"first": {}, "last": part}}))
    with pytest.raises(ValueError, match=found):
        execute(plan, tmp_path, Elsewhere())
    assert not any(tmp_path.iterdir())


def test_dry_run_says_what_is_left_and_writes_nothing(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(whole.parent / "tiny.yaml")
    new = whole.parent / "new"
    assert main(["experiment", recipe, "--out", str(new), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.count("to do") == 7
    assert "3 units x 100 samples, about" in out
    assert "6 to do" in out
    assert not new.exists()
    assert main(["experiment", recipe, "--out", str(new), "--dry-run", "--probe", "false"]) == 0
    assert "time unknown" in capsys.readouterr().out
    assert main(["experiment", recipe, "--out", str(whole), "--dry-run"]) == 0
    assert "6 finished" in capsys.readouterr().out


def test_estimate_takes_the_time_of_finished_runs(whole: Path) -> None:
    """Of the same method where there are some, in proportion to the units."""
    plan = make_plan(parse_recipe(RECIPE | {"seeds": [7], "budget": 6}))
    lines = forecast(plan, whole, probe=False)
    rows = rows_of(make_plan(parse_recipe(RECIPE)), whole)
    pof_rate = sum(row.seconds / row.units for row in rows if row.method == "pof") / 2
    assert [line.state for line in lines] == ["to do"] * 3
    assert lines[2].seconds == pytest.approx(pof_rate * 16 / 3)
    seconds = [line.seconds or 0.0 for line in lines]
    assert total_seconds(lines, 1) == pytest.approx(sum(seconds))
    assert total_seconds(lines, 3) == pytest.approx(seconds[0] + max(seconds[1:]))
    unlike = make_plan(parse_recipe(RECIPE | {"model": {"model": "resnet20"}}))
    assert total_seconds(forecast(unlike, whole, probe=False), 1) is None


def test_part_of_a_plan_has_part_of_the_table(whole: Path) -> None:
    plan: Plan = make_plan(parse_recipe(RECIPE))
    assert [row.seed for row in rows_of(shard(plan, 1, 2), whole)] == [1, 1]
    assert rows_of(plan, whole / "elsewhere") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard", "2/2"], "got 2/2"),
        (["--shard", "half"], "shard: give i/n"),
        (["--num_gpus", "1"], "--num_gpus is of the engine ray: give --engine ray too"),
        (["--engine", "slurm"], "slurm"),
        (["--jobs", "0"], "jobs must be a whole number >= 1; got 0"),
        (["--set", "train.lrr=1"], "lrr"),
        (["--measure", "val_error", "--set", "data.validation=0"], "setting 'tiny' has data.validation 0"),
        (["--measure", "accuracy"], "accuracy"),
    ],
)
def test_bad_input_is_named_and_nothing_is_run(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["experiment", written(tmp_path, RECIPE), "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def within_a_run(process: Process, out: Path, *, steps: int) -> None:
    """Wait until the runs that the process writes to have made so many steps together.

    Rows of a process that was killed do not count: a signal that came before the next one trains would meet its start.
    """
    since = time.time()

    def made() -> int:
        assert process.process.is_alive(), process.wait()
        logs = [log for log in (out / "runs").glob("*-*/metrics.jsonl") if log.stat().st_mtime > since]
        return sum(row["event"] == "step" for log in logs for row in read_rows(log.parent))

    wait_until(lambda: made() >= steps, f"{steps} steps")


def wait_until(happened: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def children(process: Process) -> list[int]:
    pid = process.process.pid
    found = [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    assert found
    return found


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
