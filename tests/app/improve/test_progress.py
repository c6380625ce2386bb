"""What ``pof improve`` shows on the way: how far, how long still, and the best so far."""

from __future__ import annotations

import io
from typing import Any

import pytest

import pof
from pof.app.cli._display import PlainConsole
from pof.app.cli._progress import SearchProgress
from pof.app.improve.race import JUDGED
from tests.app.improve.test_improve import FAST, loaders, network


def rung(run: str, nll: float, passes: float, **other: Any) -> dict[str, Any]:
    figures = {"scaled_nll": nll}
    row = {"event": "rung", "rung": 1, "known": False, "run": run, "passes": passes, "dropped": ""}
    return row | {"last": figures, "ema": {"scaled_nll": nll + 0.1}, "halfway": {"scaled_nll": nll + 0.2}} | other


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(rows: list[tuple[float, dict[str, Any]]], terminal: bool = False) -> str:
    clock, output = Clock(), io.StringIO()
    console = PlainConsole(file=output, force_terminal=terminal, width=200, markup=False)
    with SearchProgress(console, clock) as progress:
        for clock.now, row in rows:
            progress(row)
    return output.getvalue()


PLAN = {"event": "plan", "runs": ["a", "b"], "passes": 20.0}


def step(passes: float, run: str = "a") -> dict[str, Any]:
    return {"event": "step", "run": run, "passes": passes}


def test_without_a_terminal_there_are_plain_lines_every_ten_seconds() -> None:
    text = shown(
        [(0, PLAN), (4, step(1.0)), (10, step(2.0)), (12, step(2.5)), (20, rung("a", 0.25, 5.0)), (31, step(5.0))]
    )
    lines = text.splitlines()
    assert lines == [
        "2.0 of 20.0 passes, 1:30 left; racing",
        "rung 1: a: scaled NLL last 0.2500  ema 0.3500  halfway 0.4500",
        "5.0 of 20.0 passes, 1:00 left; best 0.2500 (a, last)",
        "5.0 of 20.0 passes, 1:33 left; best 0.2500 (a, last)",
    ]


def test_what_an_earlier_process_did_does_not_count_for_the_speed() -> None:
    rows = [(0, PLAN), (0, rung("a", 0.5, 10.0, known=True)), (10, step(2.0, "b"))]
    # Two passes in ten seconds, eight are left.
    assert "12.0 of 20.0 passes, 0:40 left; best 0.5000 (a, last)" in shown(rows)


def test_a_dropped_run_says_why_and_the_best_is_the_smallest() -> None:
    dropped = rung("c", 0.0, 1.0, dropped="diverged: x", **dict.fromkeys(JUDGED))
    text = shown([(0, PLAN), (1, rung("a", 0.5, 1.0)), (2, rung("b", 0.3, 1.0)), (3, dropped), (14, step(2.0))])
    assert "rung 1: c: diverged: x" in text and "best 0.3000 (b, last)" in text


def test_on_a_terminal_there_is_a_bar() -> None:
    text = shown([(0, PLAN), (10, step(5.0)), (11, rung("a", 0.25, 6.0))], terminal=True)
    assert "6.0 of 20.0 passes" in text and "best 0.2500 (a, last)" in text and "━" in text


def test_a_search_tells_its_plan_its_steps_and_its_rungs() -> None:
    rows: list[Any] = []
    pof.improve(network(), *loaders(), candidates=["sgd", "sam auto", "pof"], log=rows.append, **FAST)
    assert rows[0]["event"] == "plan" and rows[0]["passes"] == pytest.approx(FAST["budget"], abs=0.1)
    assert {row["event"] for row in rows} == {"plan", "step", "rung"}
    assert {row["rung"] for row in rows if row["event"] == "rung"} == {1, 2}
    for place, row in enumerate(rows):
        if row["event"] == "rung" and not row["dropped"]:
            steps = [r["passes"] for r in rows[:place] if r["event"] == "step" and r["run"] == row["run"]]
            assert steps == sorted(steps) and steps[-1] == pytest.approx(row["passes"])
