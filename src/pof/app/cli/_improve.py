"""``pof improve``."""

from pathlib import Path
from typing import TYPE_CHECKING

from pof.app.engine.options import EngineOptions
from pof.app.options import DataOptions, ImproveOptions, ModelOptions

if TYPE_CHECKING:
    from pof.app.improve.result import ImproveResult
    from pof.training.evaluation import Metrics


def improve(model: ModelOptions, data: DataOptions, options: ImproveOptions, where: EngineOptions) -> int:
    """Find out what makes a network better, and print it."""
    from pof.app.cli._progress import SearchProgress
    from pof.app.engine.options import opened
    from pof.app.improve.job import as_trained_before, improve_network

    if options.dry_run:
        from pof.app.cli._plan import show_search

        show_search(model, data, options, as_trained_before(model, options))
        return 0
    with opened(where, local=options.jobs or 1, jobs=options.jobs) as engine, SearchProgress() as progress:
        other = engine if where.engine != "local" else None
        result, test = improve_network(model, data, options, progress, engine=other)
    show(result, test, Path(options.out))
    return 0


def show(result: "ImproveResult", test: tuple["Metrics", "Metrics"], folder: Path) -> None:
    """Print what was handed back, what was tried, and where it is."""
    from pof.app.cli._display import console, metrics_table
    from pof.app.improve.page import HEAD, intervals, lines_of

    console.print(f"handed back: {result.chosen}", highlight=False, soft_wrap=True)
    for sentence in (f"{result.message}.", *intervals(result), *(f"note: {note}." for note in result.notes)):
        console.print(sentence, highlight=False, soft_wrap=True)
    columns = {"incoming": result.before, "handed back": result.after}
    console.print(metrics_table(f"{result.before.n} validation samples that chose nothing", columns))
    console.print(metrics_table("test set", dict(zip(columns, test, strict=True))))
    lines = [list(HEAD), *lines_of(result.table)]
    widths = [max(len(line[number]) for line in lines) for number in range(len(HEAD) - 1)]
    console.print("what was tried, on the validation samples that choose:")
    for line in lines:
        numbers = (text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=False))
        text = "  ".join([line[0].ljust(widths[0]), *numbers, line[-1]]).rstrip()
        console.print(text, highlight=False, soft_wrap=True)
    console.print(f"network and figures: {folder} (model.safetensors, result.json)", soft_wrap=True)
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)
