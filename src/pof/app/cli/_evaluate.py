"""``pof evaluate`` and ``pof data``."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pof.app.options import DataOptions, ModelOptions

MOST_CLASSES = 50
"""Classes whose samples ``pof data`` counts line by line."""
MOST_UNREADABLE = 100
"""Samples that it names."""

if TYPE_CHECKING:
    import torch

    from pof.data import Data
    from pof.data.description import DataSplit, Loader


@dataclass
class EvaluateOptions:
    """How to evaluate.

    Args:
        split: Part of the data to evaluate on: test; validation, which is the data set's own or what --validation and
            --split_seed hold out of its training set; or train, what is left of that (--train_size, --fraction). A run
            says itself what it was trained on.
        batch_size: Samples per forward pass.
        device: Device to compute on, such as cpu or cuda. It is found by itself if not given.
        loss: Loss: cross-entropy, bce, mse, ordinal or package.module:callable. It is that of the run if --weights is
            its folder.
        metric: Another figure: error, rmse, mae, r2, loss or package.module:callable.
        per_class: Print the figures of each class and the confusion matrix.
        worst: Number of samples with the largest losses to print.
        json: File for all of these figures, those of each class in any case. With - they are printed as JSON.
    """

    split: Literal["test", "validation", "train"] = "test"
    batch_size: int = 500
    device: str | None = None
    loss: str | None = None
    metric: str | None = None
    per_class: bool = False
    worst: int = 0
    json: str | None = None


def evaluate_network(model: ModelOptions, data: DataOptions, options: EvaluateOptions) -> int:
    """Print the figures of a network on a data set, or write them as JSON."""
    from pof._support.checks import whole_number
    from pof.app.assess import MARK, assessment
    from pof.app.cards import load_network
    from pof.app.cli._display import console, metrics_table
    from pof.app.inherit import check_split, check_trained
    from pof.app.methods import named_function
    from pof.app.run_folder import check_replaceable, write_json
    from pof.app.splits import load
    from pof.data import check_countable
    from pof.data.description import path_of
    from pof.training.evaluation import evaluate, figures_of, judged, warn_of_unusable
    from pof.training.fit import find_device

    check_trained(model, "evaluate")
    whole_number("worst", options.worst, 0)
    file = None if options.json in {None, "-"} else Path(str(options.json))
    if file is not None:
        check_replaceable(file, MARK)
    device = find_device(options.device)
    check_split(model, data)
    loaded = load(data, model)
    loss = _loss(model, options)
    network = load_network(model, loaded, loss, purpose="evaluate").to(device)
    loader, indices, part = _loader(loaded, data, options, device)
    check_countable(loaded, loss if options.metric is None else "", {part})
    asked = {"model": model.model, "weights": model.weights, "data": data.data, "split": options.split}
    title = f"{model.model} on {data.data}, {options.split} set"
    if loss != "cross-entropy" or options.metric is not None:
        if options.per_class or options.worst:
            raise ValueError(f"--per_class and --worst are of classes and the cross-entropy; the loss is {loss}")
        figures = evaluate(
            network, loader, head=model.head, loss=named_function(loss), metric=named_function(options.metric)
        )
        values = {"written_by": MARK, **asked, "loss": loss, "metrics": figures.named()}
    else:
        found = judged(network, loader, head=model.head)
        found = found if indices is None else replace(found, index=indices[found.index.cpu()])
        name_of = partial(path_of, loaded, part)
        values = assessment(found, loaded.classes, largest=options.worst, path_of=name_of, asked=asked)
        warn_of_unusable(measured := figures_of(found))
        figures = measured.metrics
    if options.json == "-":
        print(json.dumps(values, indent=2))
        return 0
    console.print(metrics_table(title, {"": figures}))
    if note := _which(loaded, options, indices):
        console.print(note, soft_wrap=True)
    _print_details(values, loaded.classes, options)
    if file is not None:
        write_json(file, values)
    return 0


def _loss(model: ModelOptions, options: EvaluateOptions) -> str:
    """The loss that is asked for, or that of the run whose folder the weights are."""
    from pof.app.inherit import loss_of

    loss = options.loss or loss_of(model.weights)
    if options.loss is None and ":" in loss:
        raise ValueError(
            f"{model.weights} was trained with the loss {loss!r}, whose code would run: give --loss {loss}"
        )
    return loss


def _loader(
    loaded: "Data", data: DataOptions, options: EvaluateOptions, device: "torch.device"
) -> tuple["Loader", "torch.Tensor | None", "DataSplit"]:
    """The mini-batches of the split; which samples of which part of the data set they are (None: all)."""
    from pof.app.splits import split, validation_of
    from pof.data import eval_loader

    part, indices = options.split, None
    if part == "validation":
        part, indices = validation_of(loaded, data)
    elif part == "train":
        indices = split(loaded, data).chosen
    size = options.batch_size
    made = eval_loader(loaded, part, batch_size=size, indices=indices, workers=data.workers, device=device)
    return made, indices, part


def _which(loaded: "Data", options: EvaluateOptions, indices: "torch.Tensor | None") -> str:
    """Which samples these are, where the name of the split does not say it."""
    if options.split == "test" and loaded.test_taken:
        number = len(loaded.train_labels) + len(loaded.test_labels)
        return f"note: a fifth of the {number} samples, as these data have no test part"
    if options.split == "train" and indices is not None and len(indices) < len(loaded.train_labels):
        return f"note: {len(indices)} of the {len(loaded.train_labels)} training samples, those that are trained on"
    return ""


def _print_details(values: dict[str, Any], classes: Sequence[str], options: EvaluateOptions) -> None:
    from pof.app.cli._display import console, rows_table

    if options.per_class:
        console.print(rows_table("per class", values["per_class"]))
        matrix = zip(classes, values["confusion"], strict=True)
        rows = [{"true": name, **dict(zip(classes, row, strict=True))} for name, row in matrix]
        console.print(rows_table("confusion matrix: true classes in rows, predicted ones in columns", rows))
    if options.worst:
        console.print(rows_table("largest losses", values["worst"]))


@dataclass
class CheckOptions:
    """What to check.

    Args:
        read_all: Read every sample of image files and custom data sets, and name those that cannot be read.
    """

    read_all: bool = False


def show_data(data: DataOptions, options: CheckOptions) -> int:
    """Print what a data set holds: its parts, how many samples of each class, and what is to be said of it."""
    from itertools import islice

    from rich.table import Table

    from pof.app.cli._display import console
    from pof.app.splits import load
    from pof.data import summary
    from pof.data.overview import class_counts

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loaded = load(data)
    table = Table(show_header=False)
    for name, text in summary(loaded).items():
        table.add_row(name, text)
    console.print(table)
    if counts := class_counts(loaded):
        table = Table("class", *counts)
        rows = zip(loaded.classes, *counts.values(), strict=True)
        for name, *numbers in islice(rows, MOST_CLASSES):
            table.add_row(name, *map(str, numbers))
        console.print(table)
        if (more := loaded.num_classes - MOST_CLASSES) > 0:
            console.print(f"and {more} more classes")
    for warning in said:
        console.print(f"warning: {warning.message}", soft_wrap=True)
    return _read_all(loaded, data.workers) if options.read_all else 0


def _read_all(loaded: "Data", workers: int) -> int:
    """Name what cannot be read; 1 where there is anything."""
    from pof._support.text import number_of
    from pof.app.cli._display import console
    from pof.data.overview import unreadable
    from pof.data.streaming import StreamData

    problems = unreadable(loaded, workers=workers)
    for problem in problems[:MOST_UNREADABLE]:
        console.print(problem, highlight=False, soft_wrap=True)
    if (more := len(problems) - MOST_UNREADABLE) > 0:
        console.print(f"and {more} more")
    but = " but the training stream" if isinstance(loaded, StreamData) else ""
    console.print(f"{number_of(len(problems), 'sample')} cannot be used" if problems else f"every sample was read{but}")
    return 1 if problems else 0
