"""``pof evaluate`` and ``pof data``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pof.app.options import DataOptions, ModelOptions

MOST_CLASSES = 50
"""Classes whose samples ``pof data`` counts line by line."""


@dataclass
class EvaluateOptions:
    """How to evaluate.

    Args:
        split: Part of the data to evaluate on: test or train.
        batch_size: Samples per forward pass.
        device: Device to compute on, such as cpu or cuda. It is found by itself if not given.
        loss: Loss: cross-entropy, bce, mse, ordinal or package.module:callable. It is that of the run if --weights is
            its folder.
        metric: Another figure: error, rmse, mae, r2, loss or package.module:callable.
    """

    split: Literal["test", "train"] = "test"
    batch_size: int = 500
    device: str | None = None
    loss: str | None = None
    metric: str | None = None


def evaluate_network(model: ModelOptions, data: DataOptions, options: EvaluateOptions) -> int:
    """Print the figures of a network on a data set."""
    from pof.app.cli._display import console, metrics_table
    from pof.app.job import load, load_network
    from pof.app.methods import named_function
    from pof.app.run_files import read_config
    from pof.data import eval_loader
    from pof.training.evaluation import evaluate
    from pof.training.fit import find_device

    if model.weights is None:
        raise ValueError("evaluate needs a trained network: give --weights FILE (or the folder of a run)")
    device = find_device(options.device)
    loaded = load(data, model)
    trained = read_config(Path(model.weights)).get("training", {}) if Path(model.weights).is_dir() else {}
    loss = options.loss or trained.get("loss", "cross-entropy")
    if options.loss is None and ":" in loss:
        raise ValueError(
            f"{model.weights} was trained with the loss {loss!r}, whose code would run: give --loss {loss}"
        )
    network = load_network(model, loaded, loss).to(device)
    loader = eval_loader(loaded, options.split, batch_size=options.batch_size, workers=data.workers, device=device)
    asked = {"loss": named_function(loss), "metric": named_function(options.metric)}
    found = evaluate(network, loader, head=model.head, **asked)
    console.print(metrics_table(f"{model.model} on {data.data}, {options.split} set", {"": found}))
    return 0


def show_data(data: DataOptions) -> int:
    """Print what a data set holds: its parts, how many samples of each class, and what is to be said of it."""
    import warnings
    from itertools import islice

    from rich.table import Table

    from pof.app.cli._display import console
    from pof.app.job import load
    from pof.data import summary
    from pof.data.description import class_counts

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loaded = load(data)
    table = Table(show_header=False)
    for name, text in summary(loaded).items():
        table.add_row(name, text)
    console.print(table)
    counts = class_counts(loaded)
    table = Table("class", *counts)
    rows = zip(loaded.classes, *counts.values(), strict=True)
    for name, *numbers in islice(rows, MOST_CLASSES):
        table.add_row(name, *map(str, numbers))
    console.print(table)
    if (more := loaded.num_classes - MOST_CLASSES) > 0:
        console.print(f"and {more} more classes")
    for warning in said:
        console.print(f"warning: {warning.message}", soft_wrap=True)
    return 0
