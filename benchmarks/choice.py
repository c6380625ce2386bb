"""What choosing and confirming cost in ``pof improve``, and how often a worse network is handed back.

    python benchmarks/choice.py recipes/improve-digits.yaml --out runs/improve-digits --budget 60 --validation 300

Takes the finished searches of benchmarks/improve.py.  Each network that a search may hand back gives its logits on
training images that it was neither trained nor validated on; no test image is seen.  Of these, validation data are
drawn many times, half to choose and half to confirm, and the error of what each rule hands back is taken on the rest.
Writes results/choice-NAME.json, NAME being that of the recipe.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

import torch
from improve import folder_of, here
from torch import Tensor

from pof._support.random import seeded
from pof.app import job
from pof.app.experiment.plan import RUNS, Plan, Trial, make_plan
from pof.app.experiment.recipe import read_recipe
from pof.app.experiment.statistics import paired, spread
from pof.app.improve import improve as improving
from pof.app.improve.job import improve_network
from pof.app.improve.judge import Confirmation, Figures, confirm, figures, logits_on
from pof.app.improve.race import rank
from pof.app.options import ImproveOptions
from pof.app.run_folder import write_json
from pof.app.splits import load, split
from pof.data import eval_loader

ROOT = Path(__file__).resolve().parents[1]
OF_A_RESULT = ("result.json", "test.json", "single.json", "model.safetensors", "report.html", "config.yaml")


class Pooled(Exception):
    """What a search might hand back is known, and the rest of it not wanted: no test image is read."""


@dataclass(frozen=True)
class Rule:
    """Which networks may be chosen, by the smallest NLL, and whether the choice is handed back."""

    may: Callable[[Figures, Figures], bool]
    back: Callable[[Confirmation], bool]


RULES = {
    "the search's": Rule(lambda new, old: True, lambda found: found.better),
    "no more errors and a better NLL": Rule(
        lambda new, old: True, lambda found: found.nll[1] < 0 and found.fixed >= found.broken
    ),
    "errors within chance and a better NLL": Rule(
        lambda new, old: True, lambda found: found.nll[1] < 0 and found.within_chance
    ),
    "a better NLL": Rule(lambda new, old: True, lambda found: found.nll[1] < 0),
    "no more errors in choosing; fewer errors, or as many with an NLL better beyond its interval": Rule(
        lambda new, old: new.error <= old.error,
        lambda found: (
            found.nll[1] < 0 if found.fixed > found.broken else found.fixed == found.broken and found.nll[2] < 0
        ),
    ),
    "without confirmation": Rule(lambda new, old: True, lambda found: True),
}


def pool(plan: Plan, trial: Trial, out: Path, budget: float, most: int) -> tuple[list[Tensor], Tensor]:
    """Logits (N, C) of the incoming network and of all that the search might hand back, and targets (N,)."""
    stage, kept = plan.stages[str(trial.pretrain)], {}
    data, pool_of = replace(stage.data, workers=0), improving._pool

    def keep(race: Any, runs: Any) -> Any:
        kept["race"], kept["pool"] = race, pool_of(race, runs)
        raise Pooled

    with tempfile.TemporaryDirectory() as folder, patch.object(improving, "_pool", keep):
        shutil.copytree(folder_of(out, trial, budget), folder, dirs_exist_ok=True)
        for name in OF_A_RESULT:
            (Path(folder) / name).unlink(missing_ok=True)
        options = ImproveOptions(folder, resume=True, budget=budget, seed=trial.seed)
        model = replace(stage.model, weights=str(out / RUNS / stage.name))
        with suppress(Pooled):
            improve_network(model, data, options, lambda row: None)
    loaded = load(data, stage.model)
    splits = split(loaded, data)
    assert splits.validation is not None
    unseen = torch.ones(len(loaded.train_labels), dtype=torch.bool)
    unseen[torch.cat([splits.train, splits.validation])] = False
    indices = unseen.nonzero().flatten()
    indices = indices[torch.randperm(len(indices), generator=seeded(0))[:most]].sort().values
    device = torch.device("cpu")
    images = eval_loader(loaded, "train", batch_size=job.EVAL_BATCH, workers=0, device=device, indices=indices)
    networks = [kept["race"].incoming, *(entry.network for entry in kept["pool"])]
    read = [logits_on(network, images) for network in networks]
    return [logits for logits, _ in read], read[0][1]


def judged(logits: Sequence[Tensor], targets: Tensor, validation: int, draws: int) -> dict[str, list[float]]:
    """By rule and draw, the error of what is handed back minus the incoming network's, on the images not drawn."""
    wrong = torch.stack([one.argmax(1) != targets for one in logits]).double()
    gains: dict[str, list[float]] = {name: [] for name in RULES}
    for draw in range(draws):
        order = torch.randperm(len(targets), generator=seeded(1 + draw))
        chooses, confirms, rest = order.tensor_split([validation // 2, validation])
        found = [figures(one[chooses], targets[chooses]) for one in logits]
        errors = wrong[:, rest].mean(1).tolist()
        known: dict[int, Confirmation] = {}
        for name, rule in RULES.items():
            allowed = [k for k, one in enumerate(found) if k == 0 or rule.may(one, found[0])]
            best = min(allowed, key=lambda k: rank(found[k]))
            if best and best not in known:
                temperatures = (found[0].temperature, found[best].temperature)
                known[best] = confirm(
                    logits[0][confirms], logits[best][confirms], targets[confirms], temperatures, draw
                )
            gains[name].append(errors[best] - errors[0] if best and rule.back(known[best]) else 0.0)
    return gains


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--out", required=True)
    parser.add_argument("--budget", type=float, default=20.0)
    parser.add_argument("--validation", type=int, required=True, help="images that choose and confirm")
    parser.add_argument("--most", type=int, default=6000, help="images that are looked at")
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--set", action="append", default=[], help="as in pof experiment")
    options = parser.parse_args()
    plan, out = make_plan(read_recipe(options.recipe, options.set)), Path(options.out)
    seeds: dict[str, Any] = {}
    for trial in plan.trials:
        if (folder_of(out, trial, options.budget) / "single.json").exists():
            logits, targets = pool(plan, trial, out, options.budget, options.most)
            gains = judged(logits, targets, options.validation, options.draws)
            seeds[str(trial.seed)] = {
                name: {"gain": fmean(values), "worse": fmean(value > 0 for value in values)}
                for name, values in gains.items()
            }
            print(
                trial.seed,
                {name: f"{100 * one['gain']:+.2f}" for name, one in seeds[str(trial.seed)].items()},
                flush=True,
            )
    columns = {name: [one[name]["gain"] for one in seeds.values()] for name in RULES}
    first, *others = RULES
    question = "What do choosing and confirming cost, and how often is a network handed back that is worse?"
    found = {
        "seeds": seeds,
        "gain": {name: asdict(spread(column)) for name, column in columns.items()},
        "worse": {name: fmean(one[name]["worse"] for one in seeds.values()) for name in RULES},
        "the search's against": {name: asdict(paired(columns[name], columns[first])) for name in others},
    }
    write_json(
        ROOT / "benchmarks" / "results" / f"choice-{plan.recipe.name}.json",
        {"question": question, "settings": {**vars(options), "out": None}, "environment": here(), "found": found},
    )


if __name__ == "__main__":
    main()
