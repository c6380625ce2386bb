"""Run the stages of a plan with an engine: each as soon as its parent is there; a failure stops its children only."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pof.app.engine import base
from pof.app.engine.base import Engine, Numerics, packed
from pof.app.experiment.plan import RUNS, Plan, Stage
from pof.app.experiment.worker import Outcome, appears, discard_state, is_finished, stage_runner
from pof.app.places import identified
from pof.app.run_files import RunError, read_config, read_result, section_of
from pof.data.registry import check_known
from pof.models.sources import find_source


@dataclass(frozen=True)
class Ended:
    """A stage ended."""

    stage: Stage
    reason: str | None
    """Why it failed; None if it is finished."""
    seconds: float
    done: int
    total: int
    """Stages of the plan."""


Report = Callable[[Ended], None]


@dataclass
class _Progress:
    """What is known of the stages."""

    plan: Plan
    runs: Path
    report: Report
    finished: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    waiting: list[Stage] = field(default_factory=list)

    def __post_init__(self) -> None:
        for stage in self.plan.stages.values():
            if not is_finished(self.runs / stage.name):
                self.waiting.append(stage)
                continue
            discard_state(self.runs / stage.name)  # a kill came between the result and that
            if (reason := unusable(self.runs, stage)) is not None:
                self.failed[stage.name] = reason
            else:
                self.finished.add(stage.name)

    def next(self) -> Stage | None:
        """Take the first stage whose parent is there; children of failed ones fail on the way."""
        for stage in list(self.waiting):
            if stage.parent in self.failed:
                self.waiting.remove(stage)
                self.end(stage, f"{stage.parent}, which it starts from, failed", 0.0)
            elif stage.parent is None or stage.parent in self.finished:
                self.waiting.remove(stage)
                return stage
        return None

    def end(self, stage: Stage, reason: str | None, seconds: float) -> None:
        """Note how a stage ended, and tell."""
        if reason is None:
            seen = appears(self.runs / stage.name)
            reason = unusable(self.runs, stage) if seen else f"it was finished, and {self.runs} does not show it"
        if reason is None:
            self.finished.add(stage.name)
        else:
            self.failed[stage.name] = reason
        done = len(self.finished) + len(self.failed)
        self.report(Ended(stage, reason, seconds, done, len(self.plan.stages)))


def execute(plan: Plan, out: Path, engine: Engine, report: Report = lambda ended: None) -> Mapping[str, str]:
    """Run what is not finished yet of a plan; gives the stages that failed, and why.

    Raises:
        ValueError: before anything runs, if nobody knows a network or the data of one of them.
    """
    progress = _Progress(plan, out / RUNS, report)
    if not progress.waiting:
        return progress.failed
    engine.call(_check_sources, list(progress.waiting))
    with engine.workers(packed(stage_runner, out / RUNS), Numerics(plan.threads), out) as workers:
        for ended in workers.run(progress.next):
            _take_back(ended, progress, out / "failed")
    return progress.failed


def check_places(plan: Plan, runs: Path) -> None:
    """Refuse to take up runs of other files, whose names are the same as seen from another folder."""
    for stage in plan.stages.values():
        folder = runs / stage.name
        try:
            config = read_config(folder)
            model, data = section_of(config, folder, "model"), section_of(config, folder, "data")
        except RunError:
            continue  # there is none yet, or it is damaged, which is said where it is taken up
        was, now = (identified(each.data, each.data_root) for each in (data, stage.data))
        if was == now or not os.path.exists(now):  # what is not here is not taken for it
            was, now = model.model, stage.model.model
        if was != now:
            raise ValueError(
                f"{folder} is a run of {was}, and from the current folder the recipe means {now}: give another --out,"
                " or start this from the folder where that was started"
            )


def _check_sources(stages: Sequence[Stage]) -> None:
    """Refuse stages of a network or of data that nobody knows, wherever in the plan they come."""
    for model, data in dict.fromkeys((s.model.model, (s.data.data, s.data.data_root)) for s in stages):
        find_source(model)
        check_known(*data)


def unusable(runs: Path, stage: Stage) -> str | None:
    """Tell what is wrong with a finished stage's network: one from scratch that diverged has learned nothing."""
    result = read_result(runs / stage.name)
    if (
        stage.parent is not None
        or stage.model.is_trained
        or result["stopped"] != "diverged"
        or result["best_epoch"] != 0
    ):
        return None
    return str(result["message"])


def _take_back(ended: base.Ended, progress: _Progress, failed: Path) -> None:
    """Note how a stage ended, and keep the traceback of one that failed."""
    stage: Stage = ended.task
    outcome: Outcome = Outcome(ended.lost) if ended.value is None else ended.value
    log = failed / f"{stage.name}.txt"
    log.unlink(missing_ok=True)
    if outcome.reason is not None:
        failed.mkdir(parents=True, exist_ok=True)
        log.write_text(f"{outcome.reason}\n\n{outcome.details}", encoding="utf-8")
    progress.end(stage, outcome.reason, ended.seconds)
