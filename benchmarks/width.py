"""Does a perturbation of the head do more where the network is wide?  One JSON and one figure from experiments.

    python benchmarks/width.py 1=runs/width 4=runs/widthx4 16=runs/widthx16 --name width-digits  # --out of each

In wide networks of standard parametrisation SAM's perturbation moves into the last layer (mu-P squared, arXiv
2411.00075), where it is what PoF takes it for.  For each width, from the folders of `pof experiment`: the gain of every
method against the incoming network and against SGD, and which share of SAM's ||eps||^2 each layer has at the calibrated
radius (the median over the mini-batches of the calibration, mean over seeds).
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pof.app.run_files import read_rows

ROOT = Path(__file__).resolve().parents[1]
KEPT = ("method", "figures", "before", "to_incoming", "to_control")


def shares_of(out: Path, name: str) -> dict[str, dict[str, float]]:
    """Each layer's share of ||eps||^2, and the radius, of the runs of SAM on all layers: mean, sd and n over seeds."""
    found: dict[str, list[float]] = {}
    with (out / name / "results.csv").open(newline="") as file:
        folders = [out / row["folder"] for row in csv.DictReader(file) if row["method"] == "sam auto"]
    for run in folders:
        rows = read_rows(run)
        row = next(row for row in rows if row["event"] == "epoch" and row["epoch"] == 1)
        for key in row:
            if key.startswith("share_"):
                found.setdefault(key.removeprefix("share_"), []).append(row[key])
        found.setdefault("rho", []).append(next(row["radius"] for row in rows if row["event"] == "step"))
    return {
        name: {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else 0.0, "n": len(values)}
        for name, values in found.items()
    }


def hardware_of(out: Path) -> list[str]:
    """Devices and versions of torch of the runs."""
    found = [json.loads(file.read_text()) for file in sorted((out / "runs").glob("*/environment.json"))]
    device = [env["processor"] if env["device"] == "cpu" else env["device"] for env in found]
    return sorted({f"{name}, torch {env['packages']['torch']}" for name, env in zip(device, found, strict=True)})


def collect(out: Path, name: str) -> dict[str, Any]:
    summary = json.loads((out / name / "summary.json").read_text())
    entries = [{key: entry[key] for key in KEPT} for entry in summary["entries"]]
    own = {key: summary[key] for key in ("control", "measure", "commits", "recipe", "runs")}
    return {**own, "hardware": hardware_of(out), "entries": entries, "shares": shares_of(out, name)}


def draw(widths: dict[str, dict[str, Any]], methods: list[str], out: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from pof.flatness.plots import style_of

    mpl.rcParams["svg.hashsalt"] = "pof"
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    places = [float(width) for width in widths]
    for number, method in enumerate(methods):
        style = style_of(number)
        gains = [next(e["to_incoming"] for e in w["entries"] if e["method"] == method) for w in widths.values()]
        y = [100 * gain["mean"] for gain in gains]
        bars = [[100 * (g["mean"] - g["low"]) for g in gains], [100 * (g["high"] - g["mean"]) for g in gains]]
        # Beside each other, so that the bars can be told apart.
        x = [place * 1.03 ** (number - len(methods) / 2) for place in places]
        left.errorbar(x, y, bars, color=style.color, ls=style.line, marker=style.marker, ms=4, lw=1.2, label=method)
    left.axhline(0.0, color="0.6", lw=0.8)
    left.set(xscale="log", xlabel="width", ylabel="test error against incoming (points)")
    left.set_xticks(places, [f"x{place:g}" for place in places])
    left.minorticks_off()
    figure.legend(*left.get_legend_handles_labels(), fontsize=7, ncols=6, loc="outside lower left")
    layers = [name for name in next(iter(widths.values()))["shares"] if name != "rho"]
    for number, layer in enumerate(layers):
        style = style_of(number)
        y = [100 * w["shares"][layer]["mean"] for w in widths.values()]
        right.plot(places, y, color=style.color, ls=style.line, marker=style.marker, ms=4, label=layer)
    right.set(xscale="log", xlabel="width", ylabel="share of SAM's squared perturbation (%)", ylim=(0, 100))
    right.set_xticks(places, [f"x{place:g}" for place in places])
    right.minorticks_off()
    right.legend(fontsize=7)
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("widths", nargs="*", help="WIDTH=FOLDER, an experiment's --out; others in the JSON stay")
    parser.add_argument("--name", required=True, help="of the JSON in results/ and of the figure in docs/figures/")
    parser.add_argument("--methods", nargs="+", help="of the figure; all if not given")
    options = parser.parse_args()
    named = dict(item.split("=", 1) for item in options.widths)
    out = ROOT / "benchmarks" / "results" / f"{options.name}.json"
    known = json.loads(out.read_text())["widths"] if out.exists() else {}
    found = known | {width: collect(Path(folder), options.name) for width, folder in named.items()}
    widths = {width: found[width] for width in sorted(found, key=float)}
    out.write_text(json.dumps({"question": __doc__.partition("  ")[0], "widths": widths}, indent=2) + "\n")
    methods = options.methods or [entry["method"] for entry in next(iter(widths.values()))["entries"]]
    draw(widths, methods, ROOT / "docs" / "figures" / f"{options.name}.svg")


if __name__ == "__main__":
    main()
