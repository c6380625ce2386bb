"""What ``fit(progress=True)`` shows: plain lines without a terminal or without rich, a bar with them."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.utils.data import DataLoader, TensorDataset

import pof
from pof._support import distributed
from pof.training.progress import Progress, telling
from tests.cases import mlp


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


START = {"event": "start", "step": 0, "epoch": 0, "steps": 40, "epochs": 2}
EPOCH = {"event": "epoch", "epoch": 1, "step": 20, "best": True, "train_loss": 0.5, "val_error": 0.1, "val_nll": 0.4}


def step(number: int, loss: float = 0.25) -> dict[str, Any]:
    return {"event": "step", "step": number, "epoch": 1, "lr": 0.1, "loss": loss}


def shown(rows: list[tuple[float, dict[str, Any]]], terminal: bool = False) -> str:
    clock, output = Clock(), io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=120)
    with Progress(console, clock=clock) as progress:
        for clock.now, row in rows:
            progress(row)
    return output.getvalue()


def test_without_a_terminal_there_is_a_line_every_ten_seconds() -> None:
    end = {"event": "end", "message": "done [so]"}
    rows = [(5, START), (9, step(4)), (15, step(10)), (16, step(12)), (20, EPOCH), (26, step(21)), (27, end)]
    assert shown(rows).splitlines() == [
        "step 10 of 40  epoch 1  loss 0.2500  0:30 left",
        "epoch   1  val error 10.00 %  loss 0.5000  val nll 0.4000  best so far",
        "step 21 of 40  epoch 1  loss 0.2500  0:19 left",
        "done [so]",
    ]


def test_the_steps_before_a_resume_do_not_count_for_the_speed() -> None:
    lines = shown([(0, START | {"step": 20}), (10, step(30))]).splitlines()
    assert lines == ["going on at step 20 of 40", "step 30 of 40  epoch 1  loss 0.2500  0:10 left"]


def test_on_a_terminal_there_is_a_bar() -> None:
    text = shown([(0, START), (30, step(10)), (31, EPOCH)], terminal=True)
    assert "loss 0.2500" in text and "10/40" in text and "━" in text and "val error 10.00 %" in text
    assert "step 10 of 40" not in text


def run(**options: Any) -> pof.FitResult:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(12, 5).double(), torch.arange(12) % 3)
    return pof.fit(pof.Finetune(mlp()), DataLoader(data, 4), epochs=2, device="cpu", **options)


def test_fit_shows_each_epoch_and_the_end_and_still_logs(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[Any] = []
    result = run(progress=True, log=rows.append)
    said = capsys.readouterr()
    assert said.out == ""
    assert [line.split()[:2] for line in said.err.splitlines()[:3]] == [["epoch", str(n)] for n in range(3)]
    assert said.err.splitlines()[3] == result.message
    assert [row["event"] for row in rows].count("step") == 6
    run()
    assert capsys.readouterr() == ("", "")


def test_only_the_first_process_shows_something(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Any] = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        with telling(rows.append, True) as tell:
            tell(EPOCH)
    assert rows == [EPOCH, EPOCH]
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_without_rich_there_are_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    run(progress=1e-9)
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("step ") for line in lines) == 6
    assert lines[1].startswith("step 1 of 6  epoch 1  loss ")


def test_seconds_that_cannot_be_are_refused() -> None:
    for seconds in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="progress must be"):
            run(progress=seconds)


def test_the_display_is_closed_when_training_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    leave = Progress.__exit__
    monkeypatch.setattr(Progress, "__exit__", lambda self, *e: (closed.append(True), leave(self, *e))[1])

    def full(row: Any) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run(progress=True, log=full)
    assert closed == [True]
