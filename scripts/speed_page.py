"""Write the tables of docs/speed.md anew from the JSONs that the benchmarks wrote.

python scripts/speed_page.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "speed.md"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def origin(found: dict[str, Any]) -> str:
    where = found["environment"]
    torch = where["packages"]["torch"]
    processor = f"{where['processor']}, {where['threads']} threads"
    hardware = f"{processor if where['device'] == 'cpu' else where['device']}, torch {torch}"
    return f"{hardware}, commit {where['commit']}, {where['time'][:10]}."


def steps(found: dict[str, Any]) -> str:
    methods = [name for name in next(iter(found["steps"].values())) if name != "plain"]
    rows = [
        [network, f"{per['plain']['median_ms']:.2f} ms, {per['plain']['calls']}"]
        + [f"{per[name]['ratio']:.2f}, {per[name]['calls']}" for name in methods]
        for network, per in found["steps"].items()
    ]
    return table(["network", "plain", *methods], rows)


def search(found: dict[str, Any]) -> str:
    one, head, many = found["search"], found["head"], found["problems"]
    rows = [
        ["search, 128 samples of 10 classes", f"{one['median_ms']:.2f} ms, {one['calls']} operator calls"],
        ["direction, response and search, 1,000 classes of 2,048 features", f"{head['products']:.2f} head products"],
        [
            f"{many['problems']:,} random problems",
            f"largest relative error {many['largest_error']:.1e}; {many['wrongly_told']} wrongly called (un)bounded",
        ],
    ]
    return table(["what", "found"], rows)


def trainers(found: dict[str, Any]) -> str:
    rows = [[name, f"{row['median_ms']:.2f}", f"{row['ratio']:.2f}"] for name, row in found["trainers"].items()]
    return table(["trainer", "ms per step", "ratio to the bare loop"], rows)


def sam(found: dict[str, Any]) -> str:
    rows = [
        [
            name,
            *(f"{row[key]:.2f}" for key in ("pof_ms", "pytorch_optimizer_ms", "ratio")),
            f"{row['weights_apart']:.0e}",
        ]
        for name, row in found["sam"].items()
    ]
    return table(["network", "pof.SAM, ms", "pytorch_optimizer, ms", "ratio", "weights apart after 50 steps"], rows)


def hessian(found: dict[str, Any]) -> str:
    rows = [
        [name, f"{row['eigenvalue']:.4f}", f"{row['eigenvalue_s']:.2f}", f"{row['trace']:.2f}", f"{row['trace_s']:.2f}"]
        for name, row in found["hessian"].items()
    ]
    return table(["package", "largest eigenvalue", "s", "trace, 30 probes", "s"], rows)


def gpu(found: dict[str, Any]) -> str:
    methods = [name for name in next(iter(found["networks"].values())) if name != "plain"]
    rows = [
        [network.removesuffix(", eager"), f"{per['plain']['median_ms']:.1f} ms, {per['plain']['launches']}"]
        + [f"{per['plain']['images_per_second']:,.0f}"]
        + [f"{per[name]['ratio']:.2f}, {per[name]['launches']}" for name in methods]
        for network, per in found["networks"].items()
    ]
    return table(["network", "plain", "images / s", *methods], rows)


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "steps": ("speed", steps),
    "gpu": ("gpu_speed", gpu),
    "search": ("speed", search),
    "trainers": ("trainers", trainers),
    "sam": ("peers", sam),
    "hessian": ("peers", hessian),
}


def rendered(page: str) -> str:
    """The page with every table as its JSON has it."""
    for name, (file, make) in TABLES.items():
        found = json.loads((ROOT / "benchmarks" / "results" / f"{file}.json").read_text())
        text = f"<!-- {name} -->\n{make(found)}\n\n{origin(found)}\n<!-- end -->"
        page, count = re.subn(rf"<!-- {name} -->\n.*?<!-- end -->", lambda _, text=text: text, page, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"docs/speed.md must have one place for the table {name!r}; it has {count}")
    return page


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))
