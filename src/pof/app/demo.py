"""The demonstration: a small network that fits its few digits completely, post-trained, over several seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pof.app import job
from pof.app.options import DataOptions, ModelOptions, RunOptions, TrainOptions
from pof.app.report import Bounds, Start, read_run, write_report
from pof.data import train_loader
from pof.flatness.radius import radius_distribution
from pof.training.evaluation import Metrics
from pof.training.fit import find_device
from pof.training.schedules import Schedule

# Few digits leave a gap between training and test error, which is what post-training is to close.
DATA = DataOptions(data="digits", train_size=300)
PRE_TRAINING = TrainOptions(method="finetune", epochs=40, batch_size=64, lr=0.1)
POST_TRAINING = TrainOptions(method="pof", epochs=20, batch_size=64, lr=1e-2, schedule=Schedule("cosine"))
RADIUS_BATCHES = 40
REPORT_BATCHES = 10


@dataclass(frozen=True)
class NetworkFigures:
    """A network before or after post-training."""

    test: Metrics
    radius: float
    """Median xi* over training mini-batches."""
    separable: float
    """Share of separable training mini-batches, in [0, 1]."""


@dataclass(frozen=True)
class SeedResult:
    """One seed of the demonstration."""

    seed: int
    before: NetworkFigures
    after: NetworkFigures
    folder: Path


def demonstrate(
    folder: Path,
    seed: int,
    log: Callable[[Mapping[str, Any]], None],
) -> SeedResult:
    """Train and post-train the network for one seed."""
    start, end = folder / "train", folder / "post-train"
    pre, post = replace(PRE_TRAINING, seed=seed), replace(POST_TRAINING, seed=seed)
    model = ModelOptions(model="small-cnn")
    first = job.train(model, DATA, pre, RunOptions(str(start)), log)
    model = ModelOptions(model="small-cnn", weights=str(start))
    second = job.train(model, DATA, post, RunOptions(str(end)), log)
    return SeedResult(seed, _stage(first, pre), _stage(second, post), end)


def report(result: SeedResult, start: Start) -> Path:
    """Write the report of one seed: the network before and after post-training."""
    out = result.folder / "report.html"
    bounds = Bounds(REPORT_BATCHES, POST_TRAINING.batch_size, find_device(POST_TRAINING.device))
    write_report([read_run(result.folder)], out, bounds, start=start)
    return out


def _stage(result: job.JobResult, training: TrainOptions) -> NetworkFigures:
    if result.after is None:
        raise KeyboardInterrupt
    data = job.load(DATA)
    loader = train_loader(data, batch_size=training.batch_size, seed=0, indices=job.split(data, DATA).train)
    radii = radius_distribution(result.fit.model, loader, batches=RADIUS_BATCHES).train
    return NetworkFigures(result.after, radii.median, radii.separable_share)
