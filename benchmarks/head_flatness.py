"""Is the head flatter afterwards?  The paper's two measures for every method of an experiment, over its seeds.

    python benchmarks/head_flatness.py recipes/digits.yaml --out runs/digits --name head-flatness-digits

``--out`` is the folder of ``pof experiment``.  For each network, incoming ones included: the largest eigenvalue of the
head's Hessian over training and test samples, and the median radius of 32 mini-batches drawn from each (of test
mini-batches along their own gradient, and along that of a training mini-batch).  Changes are factors against the
incoming network of the seed: geometric means with paired 95 % intervals, p after Holm over the table.
Writes results/NAME.json.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pof
from pof.app.experiment.plan import RUNS, Stage, make_plan
from pof.app.experiment.recipe import read_recipe
from pof.app.experiment.statistics import Paired, corrected, paired, spread
from pof.app.run_folder import environment, write_json
from pof.app.splits import load, split
from pof.data import eval_loader

ROOT = Path(__file__).resolve().parents[1]
DRAWN, BATCH = 32, 32
FACTORS = ("eigenvalue train", "eigenvalue test", "radius test", "radius test along train", "test error")


def samples_of(stage: Stage) -> dict[str, tuple[Tensor, Tensor]]:
    """The samples that were trained on, not augmented, and the test set."""
    data = load(stage.data)
    parts = split(data, stage.data)
    loaders = {
        "train": eval_loader(data, "train", batch_size=1000, indices=parts.train),
        "test": eval_loader(data, "test", batch_size=1000),
    }
    return {name: tuple(torch.cat(each) for each in zip(*loader, strict=True)) for name, loader in loaders.items()}


def drawn(inputs: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The same mini-batches each time, each drawn without replacement."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randperm(len(targets), generator=generator)[:BATCH] for _ in range(DRAWN)]
    return [(inputs[row], targets[row]) for row in rows]


def measure(network: nn.Module, samples: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """The figures of one network."""
    found: dict[str, float] = {}
    for part, (inputs, targets) in samples.items():
        values = pof.top_eigenvalues(network, nn.functional.cross_entropy, [(inputs, targets)], 1).values
        found[f"eigenvalue {part}"] = float(values[0])
    train, test = (drawn(*samples[part]) for part in ("train", "test"))
    for name, direction in (("radius test", "own"), ("radius test along train", "train")):
        radii = pof.radius_distribution(network, train, test_loader=test, direction=direction)
        assert radii.test is not None
        found |= {name: radii.test.median, f"{name}, separable": radii.test.separable_share}
        found |= {"radius train": radii.train.median, "radius train, separable": radii.train.separable_share}
    return found | {"test error": pof.evaluate(network, [samples["test"]]).error}


def change(before: list[dict[str, float]], after: list[dict[str, float]], name: str) -> Paired | None:
    """The paired difference of the logarithms, of the seeds in which both are positive numbers."""
    pairs = [
        (math.log(b[name]), math.log(a[name])) for b, a in zip(before, after, strict=True) if b[name] > 0 < a[name]
    ]
    return paired([b for b, _ in pairs], [a for _, a in pairs]) if pairs else None


def factor(found: Paired) -> dict[str, Any]:
    """A difference of logarithms as a factor."""
    raised = {name: None if value is None else math.exp(value) for name, value in asdict(found).items() if name in KEPT}
    return raised | {"n": found.n, "p_holm": found.p_holm}


KEPT = ("mean", "low", "high")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--out", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--set", action="append", default=[], help="as in pof experiment")
    options = parser.parse_args()
    torch.set_num_threads(1)
    plan, runs = make_plan(read_recipe(options.recipe, options.set)), Path(options.out) / RUNS
    rows: dict[str, list[dict[str, float]]] = {}
    for number, trial in enumerate(plan.trials, start=1):
        samples = samples_of(plan.stages[str(trial.pretrain)])
        for method, stage in {"incoming": str(trial.pretrain), **trial.methods}.items():
            rows.setdefault(method, []).append(measure(pof.load_run(runs / stage).model, samples))
        print(f"{number} of {len(plan.trials)} seeds", flush=True)
    tested = [(m, name, change(rows["incoming"], rows[m], name)) for m in rows if m != "incoming" for name in FACTORS]
    known = [(method, name, found) for method, name, found in tested if found is not None]
    values = corrected([found for _, _, found in known])
    factors: dict[str, dict[str, Any]] = {}
    for (method, name, _), found in zip(known, values, strict=True):
        factors.setdefault(method, {})[name] = factor(found)
    means = {method: {name: asdict(spread([row[name] for row in of])) for name in of[0]} for method, of in rows.items()}
    written = {
        "question": "Is the head flatter after each method: largest eigenvalue of its Hessian, radius on test data?",
        "settings": {"recipe": dict(plan.recipe.source), "mini_batches": DRAWN, "batch_size": BATCH},
        "environment": {name: value for name, value in environment().items() if name != "command"},
        "means": means,
        "factors against incoming": factors,
    }
    write_json(ROOT / "benchmarks" / "results" / f"{options.name}.json", written)
    for method, found in factors.items():
        print(method, {name: (round(v["mean"], 3), v["p_holm"]) for name, v in found.items()})


if __name__ == "__main__":
    main()
