"""The stages of an experiment: what has to be run, in run folders named by what determines them.

A stage's name ends in a hash of its model, data, training options, the stage or weights it starts from, and the
number of threads.  Stages that are the same are one, so that methods share their pre-trained networks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from pof._support.devices import accelerator
from pof._support.precision import find_precision
from pof.app.experiment.recipe import Recipe, RecipeError, Setting
from pof.app.inherit import check_split, split_seed_of
from pof.app.methods import GROUPS, entry_of, with_own_group_only
from pof.app.options import DataOptions, ModelOptions, TrainOptions, plain, schedule_of
from pof.app.run_folder import content_of
from pof.models import PRETRAINED

LATER: Mapping[str, Mapping[str, Any]] = {
    "model": {"model_args": {}},
    "data": {"interpolation": None, "crop": None},
    "schedule": {"warmup": 0.0},
    "regularizer": {"layers": None},
    "sam": {
        **{"budget": 0.05, "rho_max": 0.5, "anneal": 1.0, "level": 0.15, "level_kind": "level", "every": None},
        "layers": "all",
    },
}
"""Options by group that came after the first experiments, and what they are where they are off."""
RUNS = "runs"
DIGITS = 12


LATER_OPTIONS = {
    **{"steps_per_epoch": None, "class_weights": "none", "sampler": "shuffled", "mixup": None, "cutmix": None},
    **{"loss": "cross-entropy", "metric": None, "compile": False},
}
"""Options of the training that came later, and what they are where they are off."""
END = object()


@dataclass(frozen=True)
class Stage:
    """One training run."""

    name: str
    """Of its folder."""
    model: ModelOptions
    """Without the weights that come from ``parent``."""
    data: DataOptions
    training: TrainOptions
    parent: str | None
    """The stage whose network it starts from."""


@dataclass(frozen=True)
class Trial:
    """One seed in one setting."""

    setting: str
    seed: int
    pretrain: str | None
    methods: Mapping[str, str]
    """Method -> name of its stage."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of all its stages, parents first."""
        return (*(() if self.pretrain is None else (self.pretrain,)), *self.methods.values())


@dataclass(frozen=True)
class Plan:
    """What an experiment, or a shard of it, has to run."""

    recipe: Recipe
    threads: int
    trials: tuple[Trial, ...]
    stages: Mapping[str, Stage]
    """By name, parents before children."""


def make_plan(recipe: Recipe, *, threads: int = 1) -> Plan:
    """List the stages of a recipe."""
    stages: dict[str, Stage] = {}
    trials = []
    for setting in recipe.settings:
        origin = _fingerprint(setting.model.weights)
        trials += [_trial(setting, seed, origin, threads, stages) for seed in recipe.seeds]
    return Plan(recipe, threads, tuple(trials), stages)


def shard(plan: Plan, index: int, count: int) -> Plan:
    """Take a part of a plan; no stage is in two parts.

    Trials (settings and seeds) are numbered in order, those that share a stage by one number; the part has the trials
    whose number is ``index`` modulo ``count``.
    """
    if not 0 <= index < count:
        raise ValueError(f"shard: give i/n with 0 <= i < n; got {index}/{count}")
    groups = _groups(plan.trials)
    trials = tuple(trial for trial, group in zip(plan.trials, groups, strict=True) if group % count == index)
    wanted = {name for trial in trials for name in trial.stages}
    return replace(plan, trials=trials, stages={name: s for name, s in plan.stages.items() if name in wanted})


def _groups(trials: tuple[Trial, ...]) -> list[int]:
    groups: list[set[str]] = []
    for trial in trials:
        own = set(trial.stages)
        for group in [g for g in groups if g & own]:
            own |= group
            groups.remove(group)
        groups.append(own)
    # Numbered by their first trials: merging has changed the order.
    firsts = [next(n for n, group in enumerate(groups) if group & set(trial.stages)) for trial in trials]
    numbers = {group: number for number, group in enumerate(dict.fromkeys(firsts))}
    return [numbers[first] for first in firsts]


def _trial(setting: Setting, seed: int, origin: str | None, threads: int, stages: dict[str, Stage]) -> Trial:
    data = setting.data
    if setting.split_by_seed:
        own = split_seed_of(setting.model, data)
        data = replace(data, split_seed=seed if own is None else own)
    check_split(setting.model, data)
    incoming = None
    if setting.pretrain is not None:
        incoming = _stage(setting.model, data, replace(setting.pretrain, seed=seed), None, origin, threads)
        stages[incoming.name] = incoming
    elif not setting.model.is_trained:
        raise RecipeError(
            f"setting {setting.name!r} has no network to start from: give 'pretrain', or model.weights (--set"
            " model.weights=FILE), or a factory that brings its weights together with model.source_classes"
        )
    methods = {}
    for label, training in setting.methods.items():
        stage = _stage(setting.model, data, replace(training, seed=seed), incoming, origin, threads)
        methods[label] = stages.setdefault(stage.name, stage).name
    return Trial(setting.name, seed, None if incoming is None else incoming.name, methods)


def _stage(
    model: ModelOptions,
    data: DataOptions,
    training: TrainOptions,
    parent: Stage | None,
    origin: str | None,
    threads: int,
) -> Stage:
    if parent is not None:
        model, origin = replace(model, weights=None, source_classes=None), parent.name
    own = entry_of(training.method).group
    # Found here, not in the worker: the name says what was computed, and an explicit fp32 is the same stage.
    training = replace(with_own_group_only(training), schedule=schedule_of(training))
    if training.precision == "auto":
        found = find_precision("auto", torch.device(training.device or _device()))
        training = replace(training, precision=found)
    options = plain({key: value for key, value in vars(training).items() if key == own or key not in GROUPS})
    content = {
        "model": _as_before("model", plain({**vars(model), "weights": origin})),
        "data": _as_before("data", plain(vars(data))),
        "training": {
            key: _as_before(key, value) for key, value in options.items() if LATER_OPTIONS.get(key, END) != value
        },
        "device": training.device or _device(),
        "threads": threads,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:DIGITS]
    kind = training.method if parent is not None or model.is_trained else "pretrain"
    return Stage(f"{kind}-{digest}", model, data, training, None if parent is None else parent.name)


def _as_before(group: str, values: Any) -> Any:
    """Leave out what came later and is off: a stage that was computed before keeps its name."""
    if group not in LATER:
        return values
    return {key: value for key, value in values.items() if key not in LATER[group] or value != LATER[group][key]}


def _device() -> str:
    """The kind of device that is found where none is asked for: bits depend on it."""
    there = accelerator()
    return "cpu" if there is None else there.type


def _fingerprint(weights: str | None) -> str | None:
    """What a stage's name says of its weights: their content."""
    if weights is None or weights == PRETRAINED:
        return weights
    content = content_of(weights)
    if content is None:
        raise RecipeError(f"model.weights: no such file: {weights} (of a run folder: its model.safetensors)")
    return content
