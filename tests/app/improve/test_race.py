"""Short runs choose, and the best candidate starts again for a long one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pof
from pof.app.improve.candidates import Candidate
from pof.app.improve.judge import Figures
from pof.app.improve.race import JUDGED, Race, Run
from pof.app.improve.result import rows_of
from pof.app.improve.rungs import Rung
from pof.app.options import TrainOptions
from pof.app.run_files import RunError
from tests.app.improve.test_improve import FAST, Killed, loaders, network

NINE = {f"sgd {n}": {"method": "finetune", "lr": 0.02 * n} for n in range(1, 10)}


def race(folder: Path, plan: list[Rung], *lrs: float) -> tuple[Race, list[Run], list[Any]]:
    """A race that has ended, and what it told."""
    train, held_out = loaders()
    targets = torch.cat([y for _, y in held_out])
    told: list[Any] = []
    one = Race(network(), None, train, held_out, torch.arange(20), targets, 3, len(train), folder, 0, told.append)
    return one, one.go([Candidate(f"sgd, lr {lr:g}", TrainOptions("finetune", lr=lr)) for lr in lrs], plan), told


def weights(of: Race, run: Run) -> dict[str, Tensor]:
    return of.network(run).state_dict()


def test_the_long_run_is_a_run_of_that_length_from_the_incoming_network(tmp_path: Path) -> None:
    raced, runs, told = race(tmp_path / "a", [Rung(3, 1.0), Rung(1, 4.0, anew=True)], 0.001, 0.1, 1e-5)
    best = runs[0]
    assert best.passes == pytest.approx(5.0) and [run.passes for run in runs[1:]] == pytest.approx([1.0, 1.0])
    alone, (only,), _ = race(tmp_path / "b", [Rung(1, 4.0)], best.candidate.options.lr)
    assert only.figures == best.figures
    wanted = weights(alone, only)
    assert all(torch.equal(value, wanted[name]) for name, value in weights(raced, best).items())
    steps = [row["passes"] for row in told if row["event"] == "step" and row["run"] == best.candidate.name]
    assert steps == sorted(steps) and steps[-1] == pytest.approx(5.0)
    assert told[0]["passes"] == pytest.approx(7.0)


def test_a_short_run_that_goes_on_starts_its_rate_again_where_it_was(tmp_path: Path) -> None:
    plan = [Rung(3, 1.0), Rung(2, 3.0), Rung(1, 4.0, anew=True)]
    _, runs, _ = race(tmp_path / "a", plan, 0.001, 0.1, 1e-5)
    assert [run.passes for run in runs] == pytest.approx([7.0, 3.0, 1.0])
    _, (only,), _ = race(tmp_path / "b", [Rung(1, 1.0), Rung(1, 3.0)], runs[1].candidate.options.lr)
    assert only.figures == runs[1].figures


def test_where_the_long_run_comes_apart_the_short_ones_are_still_there(tmp_path: Path) -> None:
    class Apart(Race):
        def _judge(self, candidate: Candidate, number: int) -> dict[str, Any]:
            row = super()._judge(candidate, number)
            return row | {"dropped": "diverged: its loss", **dict.fromkeys(JUDGED)} if number else row

    train, held_out = loaders()
    targets = torch.cat([y for _, y in held_out])
    given = (network(), None, train, held_out, torch.arange(20), targets, 3, len(train), tmp_path, 0, lambda row: None)
    candidates = [Candidate(f"sgd, lr {lr:g}", TrainOptions("finetune", lr=lr)) for lr in (0.001, 0.1, 1e-5)]
    runs = Apart(*given).go(candidates, [Rung(3, 1.0), Rung(1, 4.0, anew=True)])
    assert [run.dropped[:8] for run in runs] == ["diverged", "place 2 ", "place 3 "]
    assert [run.figures is None for run in runs] == [True, False, False]


@pytest.mark.parametrize("after", [4, 12, 14])
def test_a_search_of_three_rungs_that_is_killed_ends_the_same(after: int, tmp_path: Path) -> None:
    """Nine short runs, five that go on, and a long one: killed in each, in the middle of a run too."""
    rows: list[Any] = []

    def die(row: Any) -> None:
        rows.extend([row] if row["event"] == "rung" else [])
        if len(rows) == after and row["event"] == "step":
            raise Killed

    given: dict[str, Any] = {**FAST, "candidates": NINE, "budget": 20.0}
    whole = pof.improve(network(), *loaders(), out=tmp_path / "a", **given)
    with pytest.raises(Killed):
        pof.improve(network(), *loaders(), out=tmp_path / "b", log=die, **given)
    resumed = pof.improve(network(), *loaders(), out=tmp_path / "b", resume=True, **given)
    assert whole.table == resumed.table
    values = zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in values)


def test_a_search_whose_rungs_meant_something_else_does_not_go_on(tmp_path: Path) -> None:
    given: dict[str, Any] = {**FAST, "candidates": ["sgd"], "out": tmp_path}
    pof.improve(network(), *loaders(), **given)
    question = tmp_path / "improve.json"
    asked = json.loads(question.read_text())
    del asked["format"]  # as it was before there was one
    question.write_text(json.dumps(asked))
    with pytest.raises(RunError, match="format was 1 and is now 3"):
        pof.improve(network(), *loaders(), resume=True, **given)


def test_a_run_is_ahead_by_the_network_halfway_too(tmp_path: Path) -> None:
    """SAM and head ascent raise the loss first, and are ahead there before they are at their end."""

    class Halfway(Race):
        def _judge(self, candidate: Candidate, number: int) -> dict[str, Any]:
            last, halfway = {"a": (2.0, 2.0), "b": (3.0, 1.0), "c": (2.5, 2.5)}[candidate.name]
            figures = [{"error": 0.1, "nll": nll, "scaled_nll": nll, "temperature": 1.0} for nll in (last, halfway)]
            row = {"run": candidate.name, "rung": number, "passes": 1.0, "dropped": ""}
            return row | dict(zip(JUDGED, [figures[0], figures[0], figures[1]], strict=True))

    x, y = torch.randn(6, 6), torch.tensor([0, 1, 2, 0, 1, 2])
    one = Halfway(network(), None, [(x, y)], [(x, y)], y, y, 3, 1, tmp_path, 0, lambda row: None)
    runs = one.go([Candidate(name, TrainOptions("finetune")) for name in "abc"], [Rung(3, 1.0), Rung(1, 2.0, True)])
    assert [run.candidate.name for run in runs] == ["b", "a", "c"] and runs[0].best == "last"


@pytest.mark.parametrize("bad", JUDGED)
def test_a_network_halfway_that_is_not_finite_drops_no_run(bad: str, tmp_path: Path) -> None:
    class Judged(Race):
        calls = 0

        def judged(self, network: nn.Module) -> Figures:
            found = super().judged(network)
            self.calls += 1
            return replace(found, nll=math.nan, scaled_nll=math.nan) if JUDGED[self.calls - 1] == bad else found

    train, held_out = loaders()
    targets = torch.cat([y for _, y in held_out])
    given = (network(), None, train, held_out, torch.arange(20), targets, 3, len(train), tmp_path, 0, lambda row: None)
    one = Judged(*given)
    (run,) = one.go([Candidate("sgd", TrainOptions("finetune", lr=0.1))], [Rung(1, 1.0)])
    assert run.dropped == ("" if bad == "halfway" else "its outputs are not finite")
    assert set(run.figures or ()) == ({"last", "ema"} if bad == "halfway" else set())


def test_the_network_halfway_is_the_one_of_the_table(tmp_path: Path) -> None:
    raced, (run,), _ = race(tmp_path, [Rung(1, 2.0)], 0.1)
    assert run.figures is not None
    trained = raced._networks(raced._trained(run.candidate, 0)[0])["last"]
    between = raced.estimate(pof.interpolate(network(), trained, 0.5))
    assert raced.judged(between) == run.figures["halfway"] != run.figures["last"]
    rows = {row.name: row for row in rows_of([run])}
    assert list(rows) == ["sgd, lr 0.1, last", "sgd, lr 0.1, ema", "0.5 of the way to sgd, lr 0.1, last"]
    assert [row.passes for row in rows.values()] == [run.passes, run.passes, 0.0]
