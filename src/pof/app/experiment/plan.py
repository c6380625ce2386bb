"""The stages of an experiment: what has to be run, in run folders named by what determines them.

A stage's name ends in a hash of its model, data, training options, the stage or weights it starts from, and the
number of threads.  Stages that are the same are one, so that methods share their pre-trained networks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pof.app.experiment.recipe import Recipe, RecipeError, Regime
from pof.app.methods import GROUPS, entry_of, with_own_group_only
from pof.app.options import DataOptions, ModelOptions, TrainOptions, plain
from pof.models import PRETRAINED

RUNS = "runs"
DIGITS = 12


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
class Cell:
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
    cells: tuple[Cell, ...]
    stages: Mapping[str, Stage]
    """By name, parents before children."""


def make_plan(recipe: Recipe, *, threads: int = 1) -> Plan:
    """List the stages of a recipe.

    Args:
        recipe: what is compared.
        threads: of torch per process; on a CPU the bits depend on them.

    Returns:
        The plan.

    Raises:
        RecipeError: if there is no network to start from.
    """
    stages: dict[str, Stage] = {}
    cells = []
    for regime in recipe.regimes:
        origin = _fingerprint(regime.model.weights)
        cells += [_cell(regime, seed, origin, threads, stages) for seed in recipe.seeds]
    return Plan(recipe, threads, tuple(cells), stages)


def shard(plan: Plan, index: int, count: int) -> Plan:
    """Take a part of a plan; no stage is in two parts.

    Cells (settings and seeds) are numbered in order, those that share a stage by one number; the part has the cells
    whose number is ``index`` modulo ``count``.

    Args:
        plan: the whole.
        index: from 0.
        count: of parts.

    Returns:
        The part.

    Raises:
        ValueError: if there is no such part.
    """
    if not 0 <= index < count:
        raise ValueError(f"shard: give i/n with 0 <= i < n; got {index}/{count}")
    groups = _groups(plan.cells)
    cells = tuple(cell for cell, group in zip(plan.cells, groups, strict=True) if group % count == index)
    wanted = {name for cell in cells for name in cell.stages}
    return replace(plan, cells=cells, stages={name: s for name, s in plan.stages.items() if name in wanted})


def _groups(cells: tuple[Cell, ...]) -> list[int]:
    groups: list[set[str]] = []
    for cell in cells:
        own = set(cell.stages)
        for group in [g for g in groups if g & own]:
            own |= group
            groups.remove(group)
        groups.append(own)
    # Numbered by their first cells: merging has changed the order.
    firsts = [next(n for n, group in enumerate(groups) if group & set(cell.stages)) for cell in cells]
    numbers = {group: number for number, group in enumerate(dict.fromkeys(firsts))}
    return [numbers[first] for first in firsts]


def _cell(regime: Regime, seed: int, origin: str | None, threads: int, stages: dict[str, Stage]) -> Cell:
    data = replace(regime.data, split_seed=seed) if regime.split_by_seed else regime.data
    incoming = None
    if regime.pretrain is not None:
        incoming = _stage(regime.model, data, replace(regime.pretrain, seed=seed), None, origin, threads)
        stages[incoming.name] = incoming
    elif not regime.model.is_trained:
        raise RecipeError(
            f"setting {regime.name!r} has no network to start from: give 'pretrain', or model.weights (--set"
            " model.weights=FILE), or a factory that brings its weights together with model.source_classes"
        )
    methods = {}
    for label, training in regime.methods.items():
        stage = _stage(regime.model, data, replace(training, seed=seed), incoming, origin, threads)
        methods[label] = stages.setdefault(stage.name, stage).name
    return Cell(regime.name, seed, None if incoming is None else incoming.name, methods)


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
    training = with_own_group_only(training)
    content = {
        "model": plain({**vars(model), "weights": origin}),
        "data": plain(vars(data)),
        "training": plain({key: value for key, value in vars(training).items() if key == own or key not in GROUPS}),
        "device": training.device or _device(),
        "threads": threads,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:DIGITS]
    kind = training.method if parent is not None or model.is_trained else "pretrain"
    return Stage(f"{kind}-{digest}", model, data, training, None if parent is None else parent.name)


def _device() -> str:
    """The kind of device that is found where none is asked for: bits depend on it."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else accelerator.type


def _fingerprint(weights: str | None) -> str | None:
    """Weights by their content: a file may be replaced by another of the same name."""
    if weights is None or weights == PRETRAINED:
        return weights
    path = Path(weights)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise RecipeError(f"model.weights: no such file: {file}")
    return hashlib.sha256(file.read_bytes()).hexdigest()
