"""``pof improve``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pof.app.options import DataOptions, ImproveOptions, ModelOptions


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
