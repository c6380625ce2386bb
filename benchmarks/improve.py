"""What ``pof improve`` gains over seeds, beside single methods that spend the same budget.

    python benchmarks/improve.py recipes/improve-digits.yaml --out runs/improve-digits --budget 60 [--jobs 2]

1. The recipe is run: the incoming networks, and every single method for the recipe's budget.
2. ``pof improve`` starts from each incoming network, with its validation data.
3. Test errors are compared, paired over seeds: what was handed back, the best single training of the search (what
   putting weights together adds), and each method of the recipe.

Killed, it goes on where it was.  Writes results/NAME.json, NAME being that of the recipe, after each search, with the
seeds that are finished; those that the file has of the same recipe and budget stay in it, so that machines can share
the seeds: --set 'seeds=[3, 4]'.  --collect writes what is finished and runs nothing.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from pof.app import job
from pof.app.engine.processes import Processes
from pof.app.experiment.executor import execute
from pof.app.experiment.plan import RUNS, Plan, Trial, make_plan
from pof.app.experiment.recipe import read_recipe
from pof.app.experiment.statistics import corrected, paired, spread
from pof.app.experiment.table import ResultRow, rows_of
from pof.app.improve.job import improve_network
from pof.app.options import DataOptions, ImproveOptions, ModelOptions
from pof.app.run_folder import environment, write_json
from pof.app.splits import load
from pof.data import eval_loader
from pof.training.evaluation import evaluate
from pof.training.fit import find_device

ROOT = Path(__file__).resolve().parents[1]
MEASURES = ("error", "nll", "ece")


def search(model: ModelOptions, data: DataOptions, options: ImproveOptions) -> None:
    """One search, and the test figures of its best single training, which no choice has seen."""
    torch.set_num_threads(1)
    result, _ = improve_network(model, data, options, lambda row: None)
    device = find_device(options.device)
    test = eval_loader(load(data), "test", batch_size=job.EVAL_BATCH, workers=0, device=device)
    write_json(Path(options.out) / "single.json", {**vars(evaluate(result.single, test)), "environment": here()})


def folder_of(out: Path, trial: Trial, budget: float) -> Path:
    return out / f"improve-{budget:g}" / f"{trial.setting}-{trial.seed}"


def searches(plan: Plan, out: Path, budget: float, jobs: int, device: str | None) -> Iterator[str]:
    """Run them; tells of each that ends."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = []
        for trial in plan.trials:
            folder, stage = folder_of(out, trial, budget), plan.stages[str(trial.pretrain)]
            if (folder / "single.json").exists():
                continue
            model = replace(stage.model, weights=str(out / RUNS / stage.name))
            options = ImproveOptions(str(folder), resume=True, budget=budget, seed=trial.seed, device=device)
            waiting.append(pool.submit(search, model, replace(stage.data, workers=0), options))
        for number, future in enumerate(as_completed(waiting), start=1):
            future.result()
            yield f"{number} of {len(waiting)} searches"


def collect(plan: Plan, out: Path, budget: float, before: Mapping[str, Any]) -> dict[str, Any]:
    """Test figures by seed: incoming, handed back, single, and every method of the recipe; with those from before."""
    rows = rows_of(plan, out)
    found: dict[str, dict[str, Any]] = {}
    for setting in plan.recipe.settings:
        part = dict(before.get(setting.name, {}))
        for trial in (trial for trial in plan.trials if trial.setting == setting.name):
            own = {row.method: row for row in rows if (row.setting, row.seed) == (trial.setting, trial.seed)}
            folder = folder_of(out, trial, budget)
            if (folder / "single.json").exists() and own.keys() == trial.methods.keys():
                part[str(trial.seed)] = of_seed(folder, own)
        if not part:
            raise SystemExit(f"no seed of {setting.name} is finished yet")
        columns = {name: [one["test"][name] for one in part.values()] for name in next(iter(part.values()))["test"]}
        found[setting.name] = {
            "seeds": part,
            "handed_back": Counter(one["chosen"].split(", lr")[0] for one in part.values()),
            "compared": {measure: compared(columns, measure) for measure in MEASURES},
        }
    return found


def of_seed(folder: Path, own: Mapping[str, ResultRow]) -> dict[str, Any]:
    """All that is kept of one seed."""
    result, test, single = (json.loads((folder / f"{name}.json").read_text()) for name in ("result", "test", "single"))
    figures = {"incoming": test["before"], "improve": test["after"], "improve, single training": single}
    figures |= {name: vars(row) for name, row in own.items()}
    kept = {name: {measure: values[measure] for measure in MEASURES} for name, values in figures.items()}
    return {
        **{key: result[key] for key in ("chosen", "passes", "p_error", "confirmation")},
        "test": kept,
        "tried": [
            {key: row[key] for key in ("name", "passes", "error", "scaled_nll", "note")} for row in result["table"]
        ],
        "environment": single.get("environment") or here(),
    }


def here() -> dict[str, Any]:
    return {name: value for name, value in environment().items() if name != "command"}


def compared(columns: Mapping[str, list[Mapping[str, float]]], measure: str) -> dict[str, Any]:
    """Mean and spread of each; the gain over the incoming network, and of ``improve`` over each, after Holm."""
    values = {name: [row[measure] for row in rows] for name, rows in columns.items()}
    others = [name for name in values if name != "incoming"]
    gains = corrected([paired(values["incoming"], values[name]) for name in others])
    rivals = [name for name in others if name != "improve"]
    over = corrected([paired(values[name], values["improve"]) for name in rivals])
    return {
        "mean": {name: asdict(spread(column)) for name, column in values.items()},
        "against incoming": {name: asdict(gain) for name, gain in zip(others, gains, strict=True)},
        "improve against": {name: asdict(gain) for name, gain in zip(rivals, over, strict=True)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--out", required=True)
    parser.add_argument("--budget", type=float, default=20.0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--device", help="of the searches; found if not given")
    parser.add_argument("--set", action="append", default=[], help="as in pof experiment")
    parser.add_argument("--collect", action="store_true", help="write what is finished, and run nothing")
    options = parser.parse_args()
    plan, out = make_plan(read_recipe(options.recipe, options.set)), Path(options.out)
    if not options.collect:
        failed = execute(plan, out, Processes(options.jobs))
        if failed:
            raise SystemExit(f"failed: {failed}")
        for told in searches(plan, out, options.budget, options.jobs, options.device):
            write(plan, out, options.budget)
            print(told, flush=True)
    for setting, part in write(plan, out, options.budget).items():
        for name, gain in part["compared"]["error"]["against incoming"].items():
            interval = "" if gain["low"] is None else f"[{100 * gain['low']:+.2f}, {100 * gain['high']:+.2f}]"
            print(f"{setting}: {name}: {100 * gain['mean']:+.2f} {interval} p {gain['p_holm']}")


def write(plan: Plan, out: Path, budget: float) -> dict[str, Any]:
    """Write the seeds that are finished, and those of the file that are of the same question."""
    file = ROOT / "benchmarks" / "results" / f"{plan.recipe.name}.json"
    settings = {"recipe": {key: value for key, value in plan.recipe.source.items() if key != "seeds"}, "budget": budget}
    old = json.loads(file.read_text()) if file.exists() else {}
    before = {name: part["seeds"] for name, part in old["found"].items()} if old.get("settings") == settings else {}
    found = collect(plan, out, budget, before)
    question = "Does pof improve gain over the incoming network, and over single methods at the same total budget?"
    write_json(file, {"question": question, "settings": settings, "found": found})
    return found


if __name__ == "__main__":
    main()
