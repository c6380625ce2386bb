"""Trackers through the ``log`` hook, with stand-ins instead of their libraries."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pof.app.cli import main
from pof.app.loggers import scalars, tracking

Calls = list[tuple[str, tuple[Any, ...], dict[str, Any]]]
ROWS = [
    {"event": "start", "step": 0, "epoch": 0, "steps": 2, "epochs": 1},
    {"event": "step", "step": 1, "epoch": 1, "lr": 0.5, "loss": 2.0},
    {"event": "epoch", "step": 1, "epoch": 1, "best": True, "val_nll": 0.25, "seconds": 1.0},
    {"event": "end", "step": 1, "epoch": 1, "stopped": None, "best_epoch": 1, "message": "done"},
]


def stand_in(name: str, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """A module that notes every call of its functions, and of those of what ``init`` gives."""
    calls: Calls = []

    class Recorder(ModuleType):
        def __getattr__(self, function: str) -> Any:
            if function.startswith("__"):
                raise AttributeError(function)

            def call(*args: Any, **options: Any) -> Recorder:
                calls.append((function, args, options))
                return self

            return call

    module = Recorder(name)
    module.__spec__ = ModuleSpec(name, None)  # accelerate asks for it
    monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_the_figures_of_a_row() -> None:
    assert [scalars(row) for row in ROWS] == [
        {},
        {"step/lr": 0.5, "step/loss": 2.0},
        {"epoch/val_nll": 0.25, "epoch/seconds": 1.0},
        {},
    ]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_wandb_and_trackio(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(name, monkeypatch)
    with tracking(name, "run-1", {"model": {"model": "m"}}) as log:
        assert calls == []  # nothing is started before the first row
        for row in ROWS:
            log(row)
    assert calls == [
        ("init", (), {"project": "pof", "name": "run-1", "config": {"model": {"model": "m"}}}),
        ("log", ({"step/lr": 0.5, "step/loss": 2.0},), {"step": 1}),
        ("log", ({"epoch/val_nll": 0.25, "epoch/seconds": 1.0},), {"step": 1}),
        ("finish", (), {}),
    ]


def test_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in("mlflow", monkeypatch)
    with tracking("mlflow", "run-1", {"model": {"model": "m"}, "training": {"lr": 0.5}}) as log:
        for row in ROWS:
            log(row)
    assert calls == [
        ("set_experiment", ("pof",), {}),
        ("start_run", (), {"run_name": "run-1"}),
        ("log_params", ({"model.model": "m", "training.lr": 0.5},), {}),
        ("log_metrics", ({"step/lr": 0.5, "step/loss": 2.0},), {"step": 1}),
        ("log_metrics", ({"epoch/val_nll": 0.25, "epoch/seconds": 1.0},), {"step": 1}),
        ("end_run", ("FINISHED",), {}),
    ]


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("wandb", ("finish", (), {"exit_code": 1})),
        ("trackio", ("finish", (), {})),
        ("mlflow", ("end_run", ("FAILED",), {})),
    ],
)
def test_a_run_that_fails_is_closed_as_failed(name: Any, last: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(name, monkeypatch)
    with pytest.raises(RuntimeError, match="out of memory"), tracking(name, "run-1", {}) as log:
        log(ROWS[0])
        raise RuntimeError("out of memory")
    assert calls[-1] == last
    calls.clear()
    with pytest.raises(RuntimeError, match="bad data"), tracking(name, "run-1", {}):
        raise RuntimeError("bad data")
    assert calls == []


TRAIN = ["train", "--data", "digits", "--train_size", "60", "--model", "small-cnn", "--batch_size", "32"]
TRAIN += ["--epochs", "1", "--device", "cpu", "--precision", "fp32"]


def test_the_command_line_sends_the_rows_of_metrics_jsonl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = stand_in("wandb", monkeypatch)
    assert main([*TRAIN, "--out", str(tmp_path / "run"), "--logger", "wandb"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    wanted = [(scalars(row), row["step"]) for row in rows if scalars(row)]
    assert [(args[0], options["step"]) for name, args, options in calls if name == "log"] == wanted
    assert len(wanted) == 4  # epoch 0, two steps, epoch 1
    assert calls[0][2]["name"] == "run" and calls[0][2]["config"]["training"]["epochs"] == 1


def test_a_missing_library_is_one_sentence_and_nothing_is_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    assert main([*TRAIN, "--out", str(tmp_path / "run"), "--logger", "trackio"]) == 2
    error = capsys.readouterr().err
    assert error == "pof: error: --logger trackio needs trackio, which is not installed: pip install trackio\n"
    assert not (tmp_path / "run").exists()
    assert main([*TRAIN, "--out", str(tmp_path / "run"), "--logger", "visdom"]) == 2
    assert "visdom" in capsys.readouterr().err
