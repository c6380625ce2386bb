"""AdaRand and its rivals on 100 bird species, then post-training of the plainly fine-tuned networks, in one command.

    python benchmarks/birds.py --data FOLDER --out runs/birds [--jobs 2] [--only strengths birds post]

1. ``strengths``: recipes/birds-strengths.yaml, one seed, validation images only; of each method the strength with the
   lowest error in the last epoch (of equal ones the middle one) is taken.
2. ``birds``: recipes/birds.yaml with these strengths, five seeds.  Before: which difference that can show.
3. ``post``: recipes/birds-post.yaml; without training, interpolation halfway to the incoming network and the soup of
   three methods, batch-norm statistics estimated anew.

Killed, it goes on where it was.  Writes results/birds-strengths.json, birds.json and birds-post.json, and CSVs of the
last two.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import yaml
from scipy.optimize import brentq
from scipy.stats import nct, t

from pof._support.precision import float32_products
from pof.app import job
from pof.app.cli import main as pof
from pof.app.experiment.plan import RUNS, Plan, Stage, make_plan
from pof.app.experiment.recipe import importable, read_recipe
from pof.app.experiment.statistics import corrected, paired, spread
from pof.app.runs import load_run
from pof.app.splits import load, split
from pof.combine import estimate_statistics, interpolate, soup
from pof.data import eval_loader
from pof.training.evaluation import evaluate
from pof.training.fit import find_device

ROOT = Path(__file__).resolve().parents[1]
RECIPES, RESULTS = ROOT / "recipes", ROOT / "benchmarks" / "results"
SOUP = ("finetune", "head-ascent", "sam auto")
HALFWAY = "sam auto"
PARTS = ("strengths", "birds", "post")


def detectable(sd: float, seeds: int, power: float = 0.8, level: float = 0.05) -> float:
    """The mean difference that a paired t-test over ``seeds`` finds with this power, differences having this sd."""
    bound = t.ppf(1 - level / 2, seeds - 1)

    def lacking(effect: float) -> float:
        return float(nct.sf(bound, seeds - 1, effect * seeds**0.5) - power)  # the other tail has no mass there

    return sd * float(brentq(lacking, 0.1, 3.0))


def sampling_sd(disagreement: float, images: int) -> float:
    """Standard deviation of the difference of two error rates on the same images, of networks of equal error."""
    return (disagreement / images) ** 0.5


def choose(rows: Sequence[Mapping[str, str]]) -> dict[str, tuple[str, float]]:
    """Of each method the row with the lowest last validation error; of equal ones the middle."""
    found: dict[str, list[tuple[str, float]]] = {}
    for row in rows:
        found.setdefault(row["method"].split()[0], []).append((row["method"], float(row["val_error_last"])))
    chosen = {}
    for method, tried in found.items():
        best = [one for one in tried if one[1] == min(error for _, error in tried)]
        chosen[method] = best[len(best) // 2]
    return chosen


def overrides(chosen: Mapping[str, tuple[str, float]]) -> list[str]:
    """The chosen strengths, as ``--set`` takes them."""
    tried = yaml.safe_load((RECIPES / "birds-strengths.yaml").read_text())["methods"]
    return [f"methods.{method}={json.dumps(tried[row])}" for method, (row, _) in chosen.items()]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run(name: str, options: argparse.Namespace, sets: Sequence[str], measure: str = "error") -> None:
    arguments = ["experiment", str(RECIPES / f"{name}.yaml"), "--out", options.out, "--jobs", str(options.jobs)]
    if pof([*arguments, "--measure", measure, "--set", f"data.data={options.data}", *options.set, *sets]):
        raise SystemExit(f"{name} has failed runs")


def keep(name: str, out: Path, more: Mapping[str, Any]) -> None:
    """The summary, with what is particular to it, and the table; no paths."""
    summary = json.loads((out / name / "summary.json").read_text())
    summary["recipe"]["data"]["data"] = "cub100"
    (RESULTS / f"{name}.json").write_text(json.dumps({**summary, **more}, indent=1) + "\n")
    shutil.copyfile(out / name / "results.csv", RESULTS / f"{name}.csv")


def put_together(setting: str, seed: int, incoming: Path, trained: Mapping[str, Path], stage: Stage) -> dict[str, Any]:
    """Test errors of an interpolation and a soup of trained networks of one setting and seed."""
    torch.set_num_threads(1)
    device = find_device(None)
    loaded = load(stage.data, stage.model)
    part = split(loaded, stage.data).train
    batches = eval_loader(loaded, "train", batch_size=job.EVAL_BATCH, workers=0, device=device, indices=part)
    test = eval_loader(loaded, "test", batch_size=job.EVAL_BATCH, workers=0, device=device)
    with importable(RECIPES), float32_products(device, "high"):
        networks = {name: load_run(path, trust_factories=True).model.to(device) for name, path in trained.items()}
        start = load_run(incoming, trust_factories=True).model.to(device)
    made = {
        f"halfway to {HALFWAY}": interpolate(start, networks[HALFWAY], 0.5),
        "soup": soup([networks[name] for name in SOUP]),
    }
    row: dict[str, Any] = {"setting": setting, "seed": seed, "incoming": evaluate(start, test).error}
    for name, model in made.items():
        estimate_statistics(model, batches)
        row[name] = evaluate(model, test).error
    return row


def all_put_together(plan: Plan, out: Path, jobs: int) -> list[dict[str, Any]]:
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = []
        for trial in plan.trials:
            runs = {name: out / RUNS / stage for name, stage in trial.methods.items() if name in {*SOUP, HALFWAY}}
            stage = plan.stages[trial.methods[HALFWAY]]
            start = out / RUNS / str(trial.pretrain)
            waiting.append(pool.submit(put_together, trial.setting, trial.seed, start, runs, stage))
        return [future.result() for future in waiting]


def compared(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each against the incoming network, paired by seed, in every setting."""
    found: dict[str, Any] = {}
    names = [name for name in rows[0] if name not in {"setting", "seed", "incoming"}]
    for setting in dict.fromkeys(row["setting"] for row in rows):
        own = [row for row in rows if row["setting"] == setting]
        tests = corrected([paired([row["incoming"] for row in own], [row[name] for row in own]) for name in names])
        found[setting] = {
            name: {"figures": asdict(spread([row[name] for row in own])), "to_incoming": asdict(test)}
            for name, test in zip(names, tests, strict=True)
        }
    return found


def strengths(options: argparse.Namespace, out: Path) -> dict[str, tuple[str, float]]:
    run("birds-strengths", options, ["data.workers=0"], "val_error_last")
    rows = read_csv(out / "birds-strengths" / "results.csv")
    chosen = choose(rows)
    tried = {row["method"]: float(row["val_error_last"]) for row in rows}
    commits = sorted({row["commit"] for row in rows})
    written = {"validation error": tried, "chosen": chosen, "commits": commits, "seeds": [0]}
    (RESULTS / "birds-strengths.json").write_text(json.dumps(written, indent=1) + "\n")
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="image folder with train/ and test/")
    parser.add_argument("--out", required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--set", nargs="+", default=[], help="as in pof experiment")
    options = parser.parse_args()
    out = Path(options.out)
    chosen = strengths(options, out) if {"strengths", "birds"} & {*options.only} else {}  # post needs none
    sd = sampling_sd(0.25, 2999)
    before = {"disagreement": 0.25, "sd": sd, "difference at power 0.8": detectable(sd, 5)}
    print(f"five seeds show a difference of {100 * before['difference at power 0.8']:.1f} points", flush=True)
    if "birds" in options.only:
        run("birds", options, overrides(chosen))
        keep("birds", out, {"power": before, "strengths": chosen})
    if "post" in options.only:
        run("birds-post", options, [])
        plan = make_plan(read_recipe(RECIPES / "birds-post.yaml", [f"data.data={options.data}", *options.set]))
        rows = all_put_together(plan, out, options.jobs)
        keep("birds-post", out, {"put together": compared(rows), "rows": rows})


if __name__ == "__main__":
    main()
