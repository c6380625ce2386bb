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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from scipy.optimize import brentq
from scipy.stats import nct, t
from torch import nn

from pof.app import job
from pof.app.cli import main as pof
from pof.app.experiment.plan import RUNS, Plan, make_plan
from pof.app.experiment.recipe import importable, read_recipe
from pof.app.experiment.statistics import corrected, paired, spread
from pof.app.runs import load_run
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
        shift = effect * seeds**0.5
        return float(nct.sf(bound, seeds - 1, shift) + nct.cdf(-bound, seeds - 1, shift) - power)

    return sd * float(brentq(lacking, 1e-3, 20.0))


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


def put_together(plan: Plan, out: Path) -> dict[str, list[dict[str, Any]]]:
    """Test errors of interpolations and soups by setting, one row a seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    device = find_device(None)
    for trial in plan.trials:
        stages = {name: plan.stages[stage] for name, stage in trial.methods.items()}
        stage = stages[HALFWAY]
        loaded = job.load(stage.data, stage.model)
        splits = job.split(loaded, stage.data)
        part = eval_loader(loaded, "train", batch_size=500, workers=0, device=device, indices=splits.train)
        test = eval_loader(loaded, "test", batch_size=500, workers=0, device=device)

        def network(name: str, out: Path = out) -> nn.Module:
            return load_run(out / RUNS / name, trust_factories=True).model.to(device)

        incoming = network(str(trial.pretrain))
        trained = {name: network(stages[name].name) for name in {*SOUP, HALFWAY}}
        made = {
            f"halfway to {HALFWAY}": interpolate(incoming, trained[HALFWAY], 0.5),
            "soup": soup([trained[name] for name in SOUP]),
        }
        row: dict[str, Any] = {"seed": trial.seed, "incoming": evaluate(incoming, test).error}
        for name, model in made.items():
            estimate_statistics(model, part)
            row[name] = evaluate(model, test).error
        found.setdefault(trial.setting, []).append(row)
    return found


def compared(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    names = [name for name in rows[0] if name not in {"seed", "incoming"}]
    tests = corrected([paired([row["incoming"] for row in rows], [row[name] for row in rows]) for name in names])
    return {
        name: {"figures": asdict(spread([row[name] for row in rows])), "to_incoming": asdict(test)}
        for name, test in zip(names, tests, strict=True)
    }


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
    parser.add_argument(
        "--only", nargs="+", choices=("strengths", "birds", "post"), default=("strengths", "birds", "post")
    )
    parser.add_argument("--set", nargs="+", default=[], help="as in pof experiment")
    options = parser.parse_args()
    out = Path(options.out)
    chosen = strengths(options, out)
    sd = sampling_sd(0.25, 2999)
    before = {"disagreement": 0.25, "sd": sd, "difference at power 0.8": detectable(sd, 5)}
    print(f"five seeds show a difference of {100 * before['difference at power 0.8']:.1f} points", flush=True)
    if "birds" in options.only:
        run("birds", options, overrides(chosen))
        keep("birds", out, {"power": before, "strengths": chosen})
    if "post" in options.only:
        run("birds-post", options, [])
        plan = make_plan(read_recipe(RECIPES / "birds-post.yaml", [f"data.data={options.data}", *options.set]))
        with importable(RECIPES):
            rows = put_together(plan, out)
        keep("birds-post", out, {"put together": {name: compared(part) for name, part in rows.items()}, "rows": rows})


if __name__ == "__main__":
    main()
