"""``pof evaluate`` and ``pof data``."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pof.app.options import DataOptions, ModelOptions

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pof.data import Data
    from pof.training.evaluation import Judged


@dataclass
class EvaluateOptions:
    """How to evaluate.

    Args:
        split: Part of the data to evaluate on: test, train, or validation, which is the data set's own or what
            --validation and --split_seed hold out of its training set.
        batch_size: Samples per forward pass.
        device: Device to compute on, such as cpu or cuda. It is found by itself if not given.
        per_class: Print the figures of each class and the confusion matrix.
        worst: Number of samples with the largest losses to print.
        json: File for all of these figures, those of each class in any case. With - they are printed as JSON.
    """

    split: Literal["test", "validation", "train"] = "test"
    batch_size: int = 500
    device: str | None = None
    per_class: bool = False
    worst: int = 0
    json: str | None = None


def evaluate_network(model: ModelOptions, data: DataOptions, options: EvaluateOptions) -> int:
    """Print the figures of a network on a data set, or write them as JSON."""
    from pof._support.checks import whole_number
    from pof.app.assess import MARK, assessment
    from pof.app.job import load, load_network
    from pof.app.run_folder import check_replaceable, write_json
    from pof.training.fit import find_device

    if model.weights is None:
        raise ValueError("evaluate needs a trained network: give --weights FILE (or the folder of a run)")
    whole_number("worst", options.worst, 0)
    file = None if options.json in {None, "-"} else Path(str(options.json))
    if file is not None:
        check_replaceable(file, MARK)
    device = find_device(options.device)
    loaded = load(data, model.weights)
    network = load_network(model, loaded).to(device)
    found, path_of = _judged(network, model, loaded, data, options, device)
    asked = {"model": model.model, "weights": model.weights, "data": data.data, "split": options.split}
    values = assessment(found, loaded.classes, largest=options.worst, path_of=path_of, asked=asked)
    if options.json == "-":
        print(json.dumps(values, indent=2))
        return 0
    _print(found, values, loaded.classes, options)
    if file is not None:
        write_json(file, values)
    return 0


def _judged(
    network: "nn.Module",
    model: ModelOptions,
    loaded: "Data",
    data: DataOptions,
    options: EvaluateOptions,
    device: "torch.device",
) -> tuple["Judged", Callable[[int], str | None]]:
    """What the network says of the samples, numbered as in the data set, and their files by these numbers."""
    from pof.app.inherit import check_split
    from pof.app.job import split
    from pof.data import eval_loader
    from pof.data.description import path_of
    from pof.training.evaluation import judged

    part, indices = options.split, None
    if part == "validation":
        check_split(model, data)
        held = split(loaded, data)
        if held.validation is None:
            raise ValueError("no validation samples: give --validation, the share of the training set held out")
        part, indices = held.held_in, held.validation
    size = options.batch_size
    loader = eval_loader(loaded, part, batch_size=size, indices=indices, workers=data.workers, device=device)
    found = judged(network, loader, head=model.head)
    if indices is not None:
        found = replace(found, index=indices[found.index.cpu()])
    return found, partial(path_of, loaded, part)


def _print(found: "Judged", values: dict[str, Any], classes: Sequence[str], options: EvaluateOptions) -> None:
    from pof.app.cli._display import console, metrics_table, rows_table
    from pof.training.evaluation import figures_of

    if found.unusable:
        console.print(f"warning: the logits of {found.unusable} samples are not finite: these figures mean nothing")
    console.print(
        metrics_table(f"{values['model']} on {values['data']}, {options.split} set", {"": figures_of(found).metrics})
    )
    if options.per_class:
        console.print(rows_table("per class", values["per_class"]))
        matrix = zip(classes, values["confusion"], strict=True)
        rows = [{"true": name, **dict(zip(classes, row, strict=True))} for name, row in matrix]
        console.print(rows_table("confusion matrix: true classes in rows, predicted ones in columns", rows))
    if options.worst:
        console.print(rows_table("largest losses", values["worst"]))


def show_data(data: DataOptions) -> int:
    """Print what a data set holds."""
    from rich.table import Table

    from pof.app.cli._display import console
    from pof.app.job import load
    from pof.data import summary

    table = Table(show_header=False)
    for name, text in summary(load(data)).items():
        table.add_row(name, text)
    console.print(table)
    return 0
