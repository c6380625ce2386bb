"""What is left to do of a plan, and about how long it takes.

From finished runs of the same model and data if there are any, those of the same method first; otherwise from a few
timed steps of plain training on a network of its own.  Between methods the time is taken as proportional to the
forward-backward units.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, Literal

import torch

from pof._support.devices import torch_threads
from pof._support.precision import find_precision
from pof._support.random import isolated
from pof.app import job
from pof.app.budget import passes
from pof.app.cards import load_network
from pof.app.experiment.plan import RUNS, Plan, Stage
from pof.app.experiment.recipe import parse_section
from pof.app.experiment.worker import is_finished
from pof.app.method_options import AverageOptions
from pof.app.methods import Context, build_method
from pof.app.options import TrainOptions, plain
from pof.app.run_files import read_config, read_result
from pof.app.splits import load, split, training_batches
from pof.training.fit import find_device
from pof.training.step import Stepper
from pof.training.stream import micro_batches, windows

State = Literal["finished", "to resume", "to do"]
PROBE_STEPS = 4


@dataclass(frozen=True)
class Forecast:
    """A stage of a plan."""

    stage: Stage
    state: State
    units: float
    samples: int | None
    """Training samples; None if the data were not read."""
    seconds: float | None
    """What is still to be spent, about; None if nothing is known. A run to resume counts in full."""


def forecast(plan: Plan, out: Path, *, probe: bool) -> list[Forecast]:
    """Say for each stage what there is to do."""
    runs = out / RUNS
    known = _finished(runs)
    samples: dict[str, int | None] = {}
    result = []
    for stage in plan.stages.values():
        state = _state(runs / stage.name)
        key = _key(plain(vars(stage.model)), plain(vars(stage.data)), plain(vars(stage.training)))
        if key not in samples:
            samples[key] = None
            rate = None
            if probe:
                samples[key], rate = time_pass(stage, plan.threads, timed=key not in known)
            if rate is not None:
                known[key] = {"": [rate]}
        total = float(passes(stage.training))
        rate = _rate(known.get(key, {}), stage.training.method)
        seconds = 0.0 if state == "finished" else None if rate is None else rate * total
        result.append(Forecast(stage, state, total, samples[key], seconds))
    return result


def total_seconds(forecasts: Sequence[Forecast], jobs: int) -> float | None:
    """Add up, for workers side by side."""
    if any(f.seconds is None for f in forecasts):
        return None
    own = {f.stage.name: f.seconds or 0.0 for f in forecasts}
    chains = [own[f.stage.name] + own.get(f.stage.parent or "", 0.0) for f in forecasts]
    return max([sum(own.values()) / jobs, *chains])


def _state(folder: Path) -> State:
    if is_finished(folder):
        return "finished"
    return "to resume" if (folder / "config.yaml").exists() else "to do"


def _key(model: Mapping[str, Any], data: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """What decides the time of a forward-backward unit."""
    parts = {
        "model": model["model"],
        "data": {name: value for name, value in data.items() if name != "split_seed"},
        "training": {name: training[name] for name in ("batch_size", "precision", "device", "accumulation")},
    }
    return json.dumps(parts, sort_keys=True)


def _finished(runs: Path) -> dict[str, dict[str, list[float]]]:
    """Seconds per unit of the finished runs: key -> method -> one per run."""
    known: dict[str, dict[str, list[float]]] = {}
    seen: dict[str, float] = {}
    for file in sorted(runs.glob("*/result.json")):
        config, result = read_config(file.parent), read_result(file.parent)
        total = _planned_units(config["training"], seen)
        if not total or not result["epochs"]:
            continue
        rate = result["seconds"] / (total * result["epochs"] / config["training"]["epochs"])
        key = _key(config["model"], config["data"], config["training"])
        known.setdefault(key, {}).setdefault(config["training"]["method"], []).append(rate)
    return known


def _planned_units(training: Mapping[str, Any], seen: dict[str, float]) -> float:
    """Units of a run's configuration; 0 for one of another version, which tells nothing."""
    text = json.dumps({**training, "seed": 0})
    if text not in seen:
        try:
            seen[text] = float(passes(parse_section(TrainOptions, training, "training")))
        except ValueError:
            seen[text] = 0.0
    return seen[text]


def _rate(known: Mapping[str, Sequence[float]], method: str) -> float | None:
    """Seconds per unit: of this method, or of all."""
    rates = known.get(method) or [rate for rates in known.values() for rate in rates]
    return statistics.fmean(rates) if rates else None


def time_pass(stage: Stage, threads: int | None, *, timed: bool) -> tuple[int, float | None]:
    """Count the training samples of a stage, and time a few steps of plain training on a network made for that."""
    device = find_device(stage.training.device)
    loaded = load(stage.data, stage.model)
    splits = split(loaded, stage.data)
    # A stream's epoch is as long as one says.
    chosen, steps = splits.chosen, stage.training.steps_per_epoch
    samples = stage.training.batch_size * (steps or 0) if chosen is None else len(chosen)
    if not timed:
        return samples, None
    training = replace(stage.training, method="finetune", average=AverageOptions())
    with torch_threads(threads), isolated(0, device):
        network = load_network(stage.model, loaded, training.loss).to(device)
        method = build_method(Context(network, stage.model.head, training, loaded.num_classes, ()))
        precision = find_precision(training.precision, device)
        stepper = Stepper(method.to(device), job.make_optimizer(method, training), precision)
        batches = training_batches(loaded, splits, replace(stage.data, workers=0), training, device)
        stream = micro_batches(batches, False, device)
        epochs = (windows(stream, training.accumulation, epoch) for epoch in count())
        probes = islice(chain.from_iterable(epochs), PROBE_STEPS + 1)
        method.train()
        stepper.step(next(probes))  # the first one is slower
        _synchronise(device)
        start = time.perf_counter()
        done = sum(stepper.step(window).samples for window in probes)
        _synchronise(device)
    return samples, (time.perf_counter() - start) / done * samples


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
