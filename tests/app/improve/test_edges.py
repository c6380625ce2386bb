"""``improve`` where a search could be wrong in silence: data that fail, other questions, no errors, what is spent."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pof
from pof.app.improve import rate
from pof.app.improve.candidates import Candidate, families
from pof.app.improve.judge import figures
from pof.app.improve.race import Race, Run, rank
from pof.app.improve.rungs import Rung
from pof.app.method_options import SAMOptions
from pof.app.options import TrainOptions
from pof.app.run_files import RunError
from pof.training.interrupt import Interrupts
from pof.training.loop import Loop
from pof.training.schedules import Schedule
from pof.training.settings import Timetable
from pof.training.step import Stepper
from pof.training.stream import micro_batches
from tests.app.improve.test_improve import FAST, Killed, data, loaders, network

SGD: Any = {"budget": 3.0, "candidates": ["sgd"], "lr": 0.1, "device": "cpu"}


class Broken:
    """A loader that fails once, in the middle of a pass."""

    def __init__(self, good_passes: int) -> None:
        x, y = data(96, 1)
        self.batches, self.good = list(zip(x.split(16), y.split(16), strict=True)), good_passes

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        yield from self.batches[:2]
        if self.good == 0:
            self.good = -1
            raise ValueError("truncated file")
        self.good -= 1
        yield from self.batches[2:]


@pytest.mark.parametrize("method", ["finetune", "sam"])
def test_data_that_cannot_be_read_end_the_search_and_drop_no_candidate(method: str, tmp_path: Path) -> None:
    own: Any = {
        **SGD,
        "candidates": {"own": {"method": method, "sam": {"rho": "auto", "level_kind": "rise"}}},
        "out": tmp_path,
    }
    # The first pass measures how well the network fits, and the next one trains, or calibrates.
    with pytest.raises({"finetune": ValueError, "sam": RuntimeError}[method], match="truncated file"):
        pof.improve(network(40), Broken(1), loaders()[1], **own)
    resumed = pof.improve(network(40), Broken(99), loaders()[1], **own, resume=True)
    assert all(row.error is not None for row in resumed.table)
    whole = pof.improve(network(40), Broken(99), loaders()[1], **{**own, "out": None})
    assert whole.table == resumed.table


def test_data_that_cannot_be_read_end_the_search_for_rates(tmp_path: Path) -> None:
    given: Any = {**SGD, "candidates": ["adarand"], "lr": None}
    with pytest.raises(RuntimeError, match="truncated file"):
        # Read before: to see how well the network fits, and for the mini-batches of the trials.
        pof.improve(network(), Broken(2), loaders()[1], **given)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_method_that_refuses_a_step_is_dropped_and_the_others_go_on(jobs: int) -> None:
    """One reference sample is too few for batch norm."""
    own: Any = {"sgd": {"method": "finetune"}, "own": {"method": "pof", "pof": {"reference_size": 1}}}
    result = pof.improve(network(), *loaders(), **{**SGD, "candidates": own}, jobs=jobs)
    dropped = [row for row in result.table if row.error is None]
    assert [row.method for row in dropped] == ["pof", "pof"]  # one at each rate
    assert all("too few for batch norm" in row.note and row.passes == 0 for row in dropped)


class Drawing:
    """A loader whose order comes from a generator of its own."""

    def __init__(self) -> None:
        self.batches, self.rng = list(Broken(0).batches), random.Random(0)
        self.seen: list[float] = []

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for number in self.rng.sample(range(len(self.batches)), len(self.batches)):
            self.seen.append(float(self.batches[number][0].sum()))
            yield self.batches[number]


def test_a_radius_from_the_data_moves_no_generator_of_the_loader(tmp_path: Path) -> None:
    seen = []
    for method in ("finetune", "sam"):
        train, held_out = Drawing(), loaders()[1]
        targets = torch.cat([y for _, y in held_out])
        given = (network(40), None, train, held_out, torch.arange(20), targets, 3, len(train), tmp_path / method, 0)
        options = TrainOptions(method, lr=0.01, sam=SAMOptions(rho="auto", level_kind="rise"))
        race = Race(*given, log=lambda row: None)
        race._plan = [Rung(1, 2.0)]
        _, loop = race._loop(Candidate(method, options), 0)
        train.seen.clear()
        list(loop.stream.iterate(0, None))
        seen.append(train.seen)
    assert len(seen[0]) == 6 and seen[0] == seen[1]


def of_errors(wrong: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (100, 3) of a network that is as sure where it is wrong."""
    torch.manual_seed(0)
    targets = torch.arange(100) % 3
    told = targets.clone()
    told[:wrong] = (told[:wrong] + 1) % 3
    return scale * (F.one_hot(told, 3) + 0.3 * torch.rand(100, 3)).double(), targets


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_a_network_without_errors_is_ahead_of_one_with_some_however_its_logits_are_scaled(scale: float) -> None:
    none, one = (figures(*of_errors(wrong, scale)) for wrong in (0, 1))
    assert rank(none) < rank(one)
    # At the scale of the logits it has a temperature as one with an error has: not 0, nor that of no scaling.
    assert none.temperature is not None and one.temperature is not None
    assert 0.2 < none.temperature / one.temperature < 1.0
    assert none.temperature == pytest.approx(scale * (figures(*of_errors(0, 1.0)).temperature or 0.0), rel=1e-6)
    assert figures(*of_errors(100, scale)).temperature is None


@pytest.mark.parametrize("changes", [{"settings": None}, {"settings": {"x": 1, "y": 2}}, {"head": "3"}])
def test_a_search_does_not_go_on_with_more_or_less_than_it_was_asked(changes: dict[str, Any], tmp_path: Path) -> None:
    pof.improve(network(), *loaders(30), **SGD, settings={"x": 1}, out=tmp_path)
    (name,) = changes
    told = {"settings": "x was 1 and is now not given", "head": "head was None and is now '3'"}[name]
    told = "y was not given and is now 2" if changes == {"settings": {"x": 1, "y": 2}} else told
    with pytest.raises(RunError, match=told):
        pof.improve(network(), *loaders(30), **SGD, **{"settings": {"x": 1}, **changes}, out=tmp_path, resume=True)


def test_a_search_does_not_go_on_with_other_validation_inputs(tmp_path: Path) -> None:
    train, validation = loaders(30)
    pof.improve(network(), train, validation, **SGD, out=tmp_path)
    others = [(3 * x + 1, y) for x, y in validation]
    with pytest.raises(RunError, match="val_loader gives other samples"):
        pof.improve(network(), train, others, **SGD, out=tmp_path, resume=True)
    decoded = [(x + 1e-4, y) for x, y in validation]  # as another decoder would
    pof.improve(network(), train, decoded, **SGD, out=tmp_path, resume=True)


def test_validation_inputs_may_lack_values(tmp_path: Path) -> None:
    """NaN stands for a value that is missing, and the network knows it."""
    train, ((x, y),) = loaders(30)
    x[0, 0], x[1, 1], x[2, 2], x[3, 3] = torch.nan, torch.inf, torch.inf, -torch.inf
    model = nn.Sequential(Filled(), *network())
    pof.improve(model, train, [(x, y)], **SGD, out=tmp_path)
    assert pof.improve(model, train, [(x, y)], **SGD, out=tmp_path, resume=True).table
    with pytest.raises(RunError, match="val_loader gives other samples"):
        pof.improve(model, train, [(100 * x, y)], **SGD, out=tmp_path, resume=True)


class Filled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.nan_to_num(0.0, 0.0)


def test_a_search_that_goes_on_keeps_the_rates_that_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(row: Any) -> None:
        if row["event"] == "rung":
            raise Killed

    given: Any = {**FAST, "candidates": ["sgd", "head-ascent"]} | {"lr": None}
    whole = pof.improve(network(), *loaders(), **given)
    with pytest.raises(Killed):
        pof.improve(network(), *loaders(), **given, out=tmp_path, log=die)
    # Another machine would find others.
    monkeypatch.setattr(rate.RateSearch, "largest_stable", lambda *_: 1e-3)
    resumed = pof.improve(network(), *loaders(), **given, out=tmp_path, resume=True)
    assert resumed.table == whole.table and resumed.passes == whole.passes
    assert json.loads((tmp_path / "rates.json").read_text())["spent"] > 0


def test_a_rate_of_numpy_is_a_number(tmp_path: Path) -> None:
    pof.improve(network(), *loaders(30), **{**SGD, "lr": np.float32(0.1)}, out=tmp_path)
    assert json.loads((tmp_path / "rates.json").read_text())["rates"]["sgd"] == pytest.approx(0.05)


@pytest.mark.parametrize("budget", [3.0, 20.0])
def test_a_trial_on_few_mini_batches_costs_a_pass(budget: float) -> None:
    """Eight steps of one mini-batch would be eight passes, for each of several rates."""
    search = rate.RateSearch(network(), None, [data(96, 1)], lambda: None, 3, 1, rate.steps_of(budget, 1))
    search._is_stable(TrainOptions("finetune", lr=1e-3))
    assert search.spent == 1.0


def test_what_a_method_spends_once_is_counted_once() -> None:
    of = {name: Candidate(name, replace(TrainOptions(name), lr=0.1)) for name in ("adarand", "ema", "sam", "finetune")}
    spent = {name: (one.passes_once, one.passes_per_epoch) for name, one in of.items()}
    assert spent == {
        "adarand": (pytest.approx(1 / 3), 1.0),
        "ema": (0.0, 1.0),
        "sam": (0.0, 2.0),
        "finetune": (0.0, 1.0),
    }


def raced(folder: Path, plan: list[Rung], **candidates: dict[str, Any]) -> tuple[Race, list[Run]]:
    train, held_out = loaders()
    targets = torch.cat([y for _, y in held_out])
    race = Race(
        network(40), None, train, held_out, torch.arange(20), targets, 3, len(train), folder, 0, lambda row: None
    )
    tried = [
        Candidate(name, rate.candidate_options({**options, "lr": 0.01}, TrainOptions("finetune"), name))
        for name, options in families(candidates).items()
    ]
    return race, race.go(tried, plan)


def test_a_run_spends_what_its_method_costs_and_a_refused_one_nothing(tmp_path: Path) -> None:
    plan = [Rung(3, 4.0)]
    _, runs = raced(tmp_path, plan, adarand={}, ema={}, refused={"method": "co-tuning"})
    spent = {run.candidate.name: run.passes for run in runs}
    assert spent == {"adarand": pytest.approx(4.0), "ema": pytest.approx(4.0), "refused": 0.0}
    assert "source" in {run.candidate.name: run.dropped for run in runs}["refused"]


def test_an_average_of_epochs_has_the_last_one_too(tmp_path: Path) -> None:
    """Also where the run pauses at the end of an epoch, and goes on from there."""
    swa: Any = {"swa": {"average": {"start": 0.0}}}
    race, (run,) = raced(tmp_path / "a", [Rung(1, 4.0)], **swa)
    method, _ = race._trained(run.candidate, 0)
    assert method._count == 4
    race, (again,) = raced(tmp_path / "b", [Rung(1, 2.0), Rung(1, 4.0)], **swa)
    method, _ = race._trained(again.candidate, 1)
    assert method._count == 4
    # The iterate is still the iterate, though the run has come to its end.
    pairs = zip(method.model.parameters(), method.candidate().parameters(), strict=True)
    assert not all(torch.equal(one, other) for one, other in pairs)


class Short:
    """A loader that says six mini-batches and gives five."""

    def __init__(self) -> None:
        self.batches = Broken(0).batches[:5]

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


@pytest.mark.parametrize(("stop", "epochs"), [(5, 1), (6, 1), (10, 2), (12, 2), (15, 3)])
def test_a_run_pauses_at_its_step_and_where_an_epoch_ends_behind_it(stop: int, epochs: int) -> None:
    loop = loop_of(Short(), None, stop)
    with pytest.warns(UserWarning, match="gave 5 steps"):
        result = loop.run(False, Interrupts())
    assert (result.stopped, result.steps, result.epochs) == ("paused", stop, epochs)


@pytest.mark.parametrize("stop", [6, 8])
def test_an_interrupt_at_the_step_of_the_pause_loses_no_epoch(stop: int, tmp_path: Path) -> None:
    whole = loop_of(Broken(99), tmp_path / "a", stop)
    whole.run(True, Interrupts())
    cut = loop_of(Broken(99), tmp_path / "b", stop)

    class At(Interrupts):
        def requested(self) -> bool:
            return cut.steps == stop

        name = "SIGTERM"

    assert cut.run(True, At()).stopped == "interrupted"
    resumed = loop_of(Broken(99), tmp_path / "b", stop)
    assert resumed.run(True, Interrupts()).stopped == "paused"
    assert resumed.epoch == whole.epoch == stop // 6
    assert resumed.method._count == whole.method._count == stop // 6  # type: ignore[attr-defined]


def loop_of(loader: Any, folder: Path | None, stop: int) -> Loop:
    method = pof.Averaged(pof.Finetune(network()), "swa", start=0.0)
    stepper = Stepper(method, torch.optim.SGD(method.trainable_parameters(), lr=0.01))
    times = Timetable(3, 6, 1, None, Schedule("constant"), stop_at=stop)
    stream = micro_batches(loader, False, torch.device("cpu"))
    return Loop(method, stepper, stream, times, None, folder, lambda row: None)
