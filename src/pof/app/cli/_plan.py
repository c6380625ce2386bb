"""``--dry_run``: what a run or a search would do, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import ceil, floor

from pof._support.precision import find_precision
from pof._support.text import number_of
from pof.app import job
from pof.app.budget import passes
from pof.app.cards import load_network
from pof.app.cli._display import console, duration
from pof.app.experiment.estimate import time_pass
from pof.app.experiment.plan import Stage
from pof.app.improve.candidates import UNFITTED, families
from pof.app.improve.rungs import most_candidates
from pof.app.methods import average_of
from pof.app.options import (
    DataOptions,
    ImproveOptions,
    ModelOptions,
    RunOptions,
    TrainOptions,
    check_numbers,
    schedule_of,
)
from pof.app.run_folder import Run
from pof.data.batch_sampler import drops_last
from pof.training.fit import find_device


def show_run(
    model: ModelOptions, data: DataOptions, training: TrainOptions, run: RunOptions, purpose: str | None = None
) -> None:
    """Print what would be trained, and about how long it takes; the checks are those of the run itself."""
    check_numbers(training)
    if not run.resume:
        Run(run.out, {}, overwrite=run.overwrite).close()
    rate = job.find_learning_rate(model, training)
    precision = find_precision(training.precision, find_device(training.device))
    schedule = schedule_of(training)
    training = replace(training, lr=rate, schedule=schedule, precision=precision)
    about, samples, seconds = _about(model, data, training, purpose)
    steps = _steps(samples, training)
    units = float(passes(training))
    average = average_of(training)
    _show(
        {
            **about,
            "method": training.method + ("" if average in {"none", training.method} else f", delivered by {average}"),
            "steps": f"{steps * training.epochs} ({number_of(training.epochs, 'epoch')} of {steps})",
            "learning rate": f"{rate:g}, {schedule.kind}, {training.optimizer}, {precision}",
            "cost": f"{units:.4g} forward-backward passes over the training data",
            "time": f"about {duration(units * seconds)} on this machine, without validation",
            "folder": run.out,
        }
    )


def show_search(model: ModelOptions, data: DataOptions, options: ImproveOptions, training: TrainOptions) -> None:
    """Print what a search would try, and about how long it takes."""
    about, samples, seconds = _about(model, data, training, "improve")
    possible = most_candidates(options.budget, _steps(samples, training))
    names, condition = options.candidates, ""
    if not names:
        names = list(families(None))[:possible]
        condition = f" (only {', '.join(UNFITTED)} if the network does not fit its training data)"
        condition += "; fewer, if finding the rates takes much"
    _show(
        {
            **about,
            "candidates": ", ".join(names) + condition,
            "cost": f"{options.budget:g} forward-backward passes over the training data, all candidates together",
            "time": f"about {duration(options.budget * seconds)} on this machine in one process, without validation",
            "folder": options.out,
        }
    )


def _about(
    model: ModelOptions, data: DataOptions, training: TrainOptions, purpose: str | None
) -> tuple[dict[str, str], int, float]:
    """Network and data in words, the number of training samples, and seconds of a pass over them."""
    loaded, splits = job.load_for(model, data, training, purpose)
    network = load_network(model, loaded, training.loss)
    if training.freeze_head:
        job.freeze_head(network, model)
    samples, seconds = time_pass(Stage("", model, data, training, None), None, timed=True)
    assert seconds is not None
    held = 0 if splits.validation is None else len(splits.validation)
    inputs = " x ".join(map(str, loaded.image_shape))
    counts = f"{samples} for training, {held} for validation, {len(loaded.test_labels)} for the test at the end"
    return (
        {
            "network": f"{model.model}, {sum(p.numel() for p in network.parameters()):,} parameters",
            "weights": str(model.weights or "none: from scratch"),
            "data": f"{data.data}: {loaded.num_classes} classes, inputs of {inputs}",
            "samples": counts,
        },
        samples,
        seconds,
    )


def _steps(samples: int, training: TrainOptions) -> int:
    """Optimizer steps of an epoch."""
    batches = samples / training.batch_size
    whole = floor(batches) if drops_last(samples, training.batch_size) else ceil(batches)
    return ceil(whole / training.accumulation)


def _show(rows: Mapping[str, str]) -> None:
    width = max(map(len, rows))
    for name, text in rows.items():
        console.print(f"{name.ljust(width)}  {text}", highlight=False, soft_wrap=True)
