"""``pof experiment``."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pof._support.checks import MOST_PROCESSES, whole_number

if TYPE_CHECKING:
    from pof.app.engine.base import Engine
    from pof.app.engine.options import EngineOptions
    from pof.app.experiment.estimate import Forecast
    from pof.app.experiment.executor import Ended
    from pof.app.experiment.plan import Plan
    from pof.app.experiment.recipe import Recipe
    from pof.app.experiment.table import ResultRow

HIDDEN = {"epochs", "p", "p (Wilcoxon)"}


@dataclass
class ExperimentOptions:
    """An experiment.

    Args:
        recipe: YAML file of the experiment.
        out: Folder of the experiment. The same command goes on with what is there.
        set: Overrides of the recipe, such as train.lr=0.01.
        jobs: Number of runs at a time. By default it is as many as there are cores for their threads, one with an
            accelerator, and on a cluster all that it has room for.
        threads: Threads of torch, per worker.
        shard: Part of the work as i/n: only the i-th (from 0) of n parts of the seeds and settings.
        measure: What the tables compare: error, nll, ece (test set); val_error, val_nll; the same of the last epoch
            (val_error_last, val_nll_last: to choose by, as nothing was selected by them).
        dry_run: Only print what there is to do, and about how long it takes.
        probe: Read the data for a dry run, and time a few steps if no finished run tells.
    """

    recipe: str | None
    out: str
    set: list[str] = field(default_factory=list)
    jobs: int | None = None
    threads: int = 1
    shard: str | None = None
    measure: Literal["error", "nll", "ece", "val_error", "val_nll", "val_error_last", "val_nll_last"] = "error"
    dry_run: bool = False
    probe: bool = True


def experiment(options: ExperimentOptions, where: "EngineOptions") -> int:
    """Run a recipe, and write its tables."""
    from pof.app.engine.options import opened
    from pof.app.experiment.recipe import importable, read_recipe
    from pof.app.experiment.summary import check_measure

    if options.recipe is None:
        raise ValueError("give the recipe: pof experiment RECIPE.yaml --out FOLDER")
    out, path = Path(options.out), Path(options.recipe)
    jobs = _jobs(options)
    recipe = read_recipe(path, options.set)
    check_measure(recipe, options.measure)
    with importable(path.parent), opened(where, local=jobs, jobs=options.jobs) as engine:
        return _run(options, recipe, out, engine)


def _run(options: ExperimentOptions, recipe: "Recipe", out: Path, engine: "Engine") -> int:
    from pof.app.cli._display import console
    from pof.app.experiment.estimate import forecast
    from pof.app.experiment.executor import check_places, execute
    from pof.app.experiment.pages import check_replaceable
    from pof.app.experiment.plan import RUNS, make_plan, shard
    from pof.app.experiment.table import rows_of

    whole = engine.call(partial(make_plan, threads=options.threads), recipe)
    check_replaceable(whole, out / recipe.name)
    check_places(whole, out / RUNS)
    mine = whole if options.shard is None else shard(whole, *_part(options.shard))
    if options.dry_run:
        _show_plan(engine.call(partial(forecast, probe=options.probe), mine, out), engine.slots())
        return 0
    try:
        failed = execute(mine, out, engine, _show)
    finally:
        _write(whole, out / recipe.name, rows_of(whole, out), options)
    for name, reason in failed.items():
        console.print(f"failed: {name}: {reason}", soft_wrap=True, style="red")
    if failed:
        console.print(f"{len(failed)} runs failed; tracebacks are in {out / 'failed'}", soft_wrap=True)
    return 1 if failed else 0


def _part(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not index.isdecimal() or not count.isdecimal():
        raise ValueError(f"shard: give i/n, such as 0/4; got {text!r}")
    return int(index), int(count)


def _jobs(options: ExperimentOptions) -> int:
    whole_number("threads", options.threads, 1, MOST_PROCESSES)
    if options.jobs is not None:
        whole_number("jobs", options.jobs, 1, MOST_PROCESSES)
        return options.jobs
    import torch

    if torch.accelerator.is_available():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // options.threads)


def _show(ended: "Ended") -> None:
    from pof.app.cli._display import console

    what = f"{ended.seconds:.0f} s" if ended.reason is None else f"failed: {ended.reason}"
    line = f"[{ended.done}/{ended.total}] {ended.stage.name} (seed {ended.stage.training.seed}): {what}"
    console.print(line, soft_wrap=True, highlight=False)


def _show_plan(forecasts: "Sequence[Forecast]", jobs: int) -> None:
    from pof.app.cli._display import console, duration
    from pof.app.experiment.estimate import total_seconds

    for line in forecasts:
        size = f"{line.units:.4g} units" + ("" if line.samples is None else f" x {line.samples} samples")
        about = "" if line.seconds is None or line.state == "finished" else f", about {duration(line.seconds)}"
        text = f"{line.state:<9}  {line.stage.name}  seed {line.stage.training.seed}  {size}{about}"
        console.print(text, soft_wrap=True, highlight=False)
    counts = Counter(line.state for line in forecasts)
    console.print(", ".join(f"{count} {state}" for state, count in counts.items()))
    seconds = total_seconds(forecasts, jobs)
    if seconds is None:
        console.print("time unknown: no finished run of this kind here, and --probe false")
    elif seconds:
        console.print(f"about {duration(seconds)} with {jobs} worker{'s' if jobs > 1 else ''}")


def _write(plan: "Plan", folder: Path, rows: "Sequence[ResultRow]", options: ExperimentOptions) -> None:
    from pof.app.cli._display import console
    from pof.app.experiment.pages import cells, header, headline, write_pages

    if not rows:
        console.print("no run of a method is finished: no tables")
        return
    summary = write_pages(plan, rows, folder, options.measure)
    console.print(f"{summary.name}: {summary.runs} of {summary.planned} runs")
    for line in _columns([header(summary), *(cells(entry, summary) for entry in summary.entries)]):
        console.print(line, soft_wrap=True, highlight=False)
    console.print(headline(summary), soft_wrap=True, highlight=False)
    if summary.diverged:
        console.print(f"diverged: {'; '.join(summary.diverged)}", soft_wrap=True, highlight=False, style="red")
    console.print(f"tables: {folder} (results.csv, summary.md, summary.tex, summary.json, report.html)", soft_wrap=True)


def _columns(lines: Sequence[Sequence[str]]) -> list[str]:
    """Align what fits a terminal; the files have all columns."""
    shown = [number for number, name in enumerate(lines[0]) if name not in HIDDEN]
    widths = {number: max(len(line[number]) for line in lines) for number in shown}
    return ["  ".join(line[number].rjust(widths[number]) for number in shown) for line in lines]
