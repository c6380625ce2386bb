"""``pof improve``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pof.app.options import DataOptions, ModelOptions


@dataclass
class ImproveOptions:
    """How to look for a better network.

    Args:
        out: folder of the search.
        resume: go on with the search that is in ``out``.
        budget: passes over the training data (forward and backward) that may be spent in all.
        candidates: what to try, by name; by default as many of the usual ones as the budget pays.
        batch_size: samples per mini-batch; that of the network's own run if it has a folder, else 128.
        lr: learning rate that the network was trained with; its run's if it has a folder, else searched for.
        optimizer: sgd or adamw; its run's if it has a folder, else sgd.
        weight_decay: of the optimizer.
        precision: auto, fp32, bf16 or fp16.
        device: cpu, cuda, ...; found by itself if not given.
        seed: of everything random.
        validation_data: image folder with validation data; without it they are held out of the training data.
    """

    out: str
    resume: bool = False
    budget: float = 20.0
    candidates: list[str] = field(default_factory=list)
    batch_size: int | None = None
    lr: float | None = None
    optimizer: Literal["sgd", "adamw"] | None = None
    weight_decay: float = 5e-4
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: str | None = None
    seed: int = 0
    validation_data: str | None = None


def improve(model: ModelOptions, data: DataOptions, options: ImproveOptions) -> int:
    """Find out what makes a network better, and print it."""
    from pof.app.cli._display import console, metrics_table
    from pof.app.improve.job import improve_network
    from pof.app.improve.page import HEAD, intervals, lines_of

    def show(row: Mapping[str, Any]) -> None:
        figures = row["dropped"] or f"NLL {row['last']['scaled_nll']:.4f}, averaged {row['ema']['scaled_nll']:.4f}"
        console.print(f"rung {row['rung']}: {row['run']}: {figures}", markup=False, highlight=False, soft_wrap=True)

    result, test = improve_network(model, data, options, show)
    lines = [list(HEAD), *lines_of(result.table)]
    widths = [max(len(line[number]) for line in lines) for number in range(len(HEAD) - 1)]
    console.print("on the validation samples that choose:")
    for line in lines:
        numbers = (text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=False))
        text = "  ".join([line[0].ljust(widths[0]), *numbers, line[-1]]).rstrip()
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    columns = {"incoming": result.before, "handed back": result.after}
    console.print(metrics_table(f"{result.before.n} validation samples that chose nothing", columns))
    console.print(metrics_table("test set", dict(zip(columns, test, strict=True))))
    for sentence in (f"{result.message}.", *intervals(result), *(f"note: {note}." for note in result.notes)):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    console.print(f"written to {Path(options.out)} (model.safetensors, result.json, report.html)", soft_wrap=True)
    return 0
