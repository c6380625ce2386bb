"""How many steps show that a learning rate is too large, and which rates ``pof improve`` finds with so many.

    python benchmarks/rate_search.py recipes/improve-fashion-mnist.yaml --out runs/improve-fashion-mnist [--jobs 2]

``--out`` is the folder of benchmarks/improve.py, or of ``pof experiment``.  For each incoming network: the training
loss of plain steps at four rates, and the rates of the usual candidates after trials of 8 steps and of as many as the
search takes at a budget of 20, with the passes that they cost.  Nothing here sees validation or test data.
Writes results/rate-search.json.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from improve import here

from pof._support.modules import copied
from pof.app.experiment.plan import RUNS, Stage, make_plan
from pof.app.experiment.recipe import read_recipe
from pof.app.improve.candidates import FAMILIES
from pof.app.improve.rate import STEPS, RateSearch, steps_of
from pof.app.improve.rungs import most_candidates
from pof.app.job import make_optimizer
from pof.app.options import TrainOptions
from pof.app.run_folder import write_json
from pof.app.runs import load_run
from pof.app.splits import load, split, training_batches
from pof.methods import Finetune
from pof.training.step import Stepper
from pof.training.stream import Micro

ROOT = Path(__file__).resolve().parents[1]
RATES, TRIED, SHOWN, BUDGET = (0.5, 0.25, 0.125, 0.0625), 40, 4, 20.0


def losses(network: torch.nn.Module, micros: list[Micro], training: TrainOptions) -> list[float]:
    """The training loss of every ``SHOWN`` steps, their mean."""
    method = Finetune(copied(network)).train()
    stepper = Stepper(method, make_optimizer(method, training))
    values = [float(stepper.step([micro]).means["loss"]) for micro in micros]
    return [sum(values[end - SHOWN : end]) / SHOWN for end in range(SHOWN, len(values) + 1, SHOWN)]


def measure(stage: Stage, folder: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    loaded = load(stage.data)
    training = TrainOptions("finetune", batch_size=stage.training.batch_size)
    batches = training_batches(loaded, split(loaded, stage.data), stage.data, training, torch.device("cpu"))
    network = load_run(folder / stage.name).model.to(memory_format=torch.channels_last)
    micros = [Micro(*batch, None) for batch, _ in zip(batches.iterate(0), range(TRIED), strict=False)]
    found: dict[str, Any] = {"loss": {}, "rates": {}}
    for rate in RATES:
        found["loss"][f"{rate:g}"] = losses(network, micros, TrainOptions("finetune", lr=rate))
    kinds = dict(list(FAMILIES.items())[: most_candidates(BUDGET, len(batches))])
    for steps in (STEPS, steps_of(BUDGET, len(batches))):
        start = time.perf_counter()
        search = RateSearch(network, None, batches, lambda: None, loaded.num_classes, len(batches), steps)
        rates = search.rates(kinds, training)
        seconds = round(time.perf_counter() - start, 1)
        found["rates"][steps] = {"rates": rates, "passes": search.spent, "seconds": seconds}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--out", required=True)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    plan, runs = make_plan(read_recipe(options.recipe)), Path(options.out) / RUNS
    stages = [plan.stages[str(trial.pretrain)] for trial in plan.trials]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(partial(measure, folder=runs), stages))
    written = {
        "question": "How many steps show that a rate is too large, and which rates does pof improve find with so many?",
        "settings": {"recipe": plan.recipe.name, "steps": TRIED, "mean over": SHOWN, "budget": BUDGET},
        "environment": here(),
        "found": {str(trial.seed): figures for trial, figures in zip(plan.trials, found, strict=True)},
    }
    write_json(ROOT / "benchmarks" / "results" / "rate-search.json", written)


if __name__ == "__main__":
    main()
