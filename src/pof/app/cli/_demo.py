"""``pof demo``."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from pof._support.checks import MOST_SEEDS, whole_number

if TYPE_CHECKING:
    from rich.table import Table

    from pof.app.demo import NetworkFigures, SeedResult


@dataclass
class DemoOptions:
    """The demonstration.

    Args:
        seeds: number of networks.
        out: folder of the runs; a number is added if it is there already.
    """

    seeds: int = 5
    out: str = "runs/demo"


ROWS: dict[str, tuple[Callable[["NetworkFigures"], float], str]] = {
    "test error": (lambda stage: 100 * stage.test.error, "{:.2f} %"),
    "test NLL": (lambda stage: stage.test.nll, "{:.4f}"),
    "test ECE": (lambda stage: 100 * stage.test.ece, "{:.2f} %"),
    "radius, median": (lambda stage: stage.radius, "{:.3f}"),
    "separable batches": (lambda stage: 100 * stage.separable, "{:.0f} %"),
}


def demo(options: DemoOptions) -> int:
    """Train and post-train small networks on few digits, print what changed, and write the report of one."""
    from pof.app.cli._display import console, showing_progress
    from pof.app.demo import DATA, POST_TRAINING, demonstrate, report

    whole_number("seeds", options.seeds, 1, MOST_SEEDS)
    folder = _unused(Path(options.out))
    console.print(
        f"{options.seeds} small CNNs, each trained on {DATA.train_size} digits and post-trained with"
        f" {POST_TRAINING.method} for {POST_TRAINING.epochs} epochs"
    )
    results = []
    for seed in range(options.seeds):
        result = demonstrate(folder / f"seed-{seed}", seed, lambda row: None)
        errors = [f"{100 * stage.test.error:.2f} %" for stage in (result.before, result.after)]
        console.print(f"seed {seed}: test error {errors[0]} -> {errors[1]}")
        results.append(result)
    console.print(_table(results))
    with showing_progress() as start:
        page = report(results[0], start)
    console.print(f"runs are in {folder}", soft_wrap=True)
    console.print(f"report of seed 0: {page}", soft_wrap=True)
    return 0


def _table(results: "list[SeedResult]") -> "Table":
    from rich.table import Table

    table = Table(title=f"digits, mean over {len(results)} seeds (standard deviation)")
    for name in ("", "before", "after", "paired difference"):
        table.add_column(name, justify="right" if name else "left")
    for name, (value, form) in ROWS.items():
        before, after = [value(r.before) for r in results], [value(r.after) for r in results]
        differences = [b - a for a, b in zip(before, after, strict=True)]
        table.add_row(name, *(_spread(values, form) for values in (before, after, differences)))
    return table


def _spread(values: list[float], form: str) -> str:
    deviation = f" ({form.format(statistics.stdev(values))})" if len(values) > 1 else ""
    return form.format(statistics.mean(values)) + deviation


def _unused(folder: Path) -> Path:
    candidates = (folder, *(folder.with_name(f"{folder.name}-{n}") for n in range(2, 10_000)))
    return next(candidate for candidate, _ in zip(candidates, count(), strict=False) if not candidate.exists())
