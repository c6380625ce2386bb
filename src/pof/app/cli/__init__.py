"""The command ``pof``: parsing and printing only; what a command does is in the package.

Bad input ends with exit code 2 and one line, with ``POF_TRACEBACK=1`` with a traceback.  Any exception counts as bad
input: models and data are a user's code, and torch raises a RuntimeError for a network that does not fit its data.
A help text imports no torch: each command imports what it needs when it runs.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from pof.app.cli import _demo, _evaluate, _experiment, _report, _use
from pof.app.cli._parser import Command, Parsed, read
from pof.app.engine.options import EngineOptions
from pof.app.errors import one_line, shortened
from pof.app.options import DataOptions, ImproveOptions, ModelOptions, RunOptions, TrainOptions

BAD_INPUT, INTERRUPTED = 2, 130
TRAINING = (ModelOptions, DataOptions, TrainOptions, RunOptions)
NETWORK = ("model", "weights", "data")
OFTEN = (*NETWORK, "out", "method", "epochs", "lr", "batch_size", "validation", "seed", "device", "resume", "dry_run")
COMMANDS = {
    "demo": Command("Train a network on a few digits and improve it, in a minute.", (_demo.DemoOptions,), "_demo:demo"),
    "train": Command("Train a network.", TRAINING, "_train:train", (("method", "finetune"), ("lr", 0.1)), OFTEN),
    "post-train": Command(
        "Post-train a trained network.",
        TRAINING,
        "_train:post_train",
        (("method", "pof"), ("lr", 1.6e-4)),  # the paper's rate: the last one of its pre-training
        OFTEN,
    ),
    "fine-tune": Command(
        "Train a pre-trained backbone with a new head.",
        TRAINING,
        "_train:fine_tune",
        (("method", "adarand"), ("lr", 1e-2), ("source_classes", 1000)),
        (*OFTEN, "source_classes", "fraction"),
    ),
    "improve": Command(
        "Find out what makes a trained network better, and hand back that or nothing.",
        (ModelOptions, DataOptions, ImproveOptions, EngineOptions),
        "_improve:improve",
        shown=(
            *NETWORK,
            "out",
            "budget",
            "candidates",
            "lr",
            "validation_data",
            "jobs",
            "seed",
            "device",
            "resume",
            "dry_run",
        ),
    ),
    "evaluate": Command(
        "Print error, NLL and calibration of a network.",
        (ModelOptions, DataOptions, _evaluate.EvaluateOptions),
        "_evaluate:evaluate_network",
        shown=(*NETWORK, "split", "per_class", "worst", "json", "batch_size", "device", "image_size", "mean", "std"),
        positional=("weights",),
    ),
    "predict": Command(
        "Classify image files with a trained network.",
        (_use.NetworkOptions, _use.NetworkData, _use.PredictOptions),
        "_use:predict_images",
        shown=("weights", "images", "out", "top", "calibrate", "temperature", "batch_size", "device", "model", "data"),
        positional=("weights",),
    ),
    "export": Command(
        "Write a trained network for other programs, and check what it gives there.",
        (_use.NetworkOptions, _use.NetworkData, _use.ExportOptions),
        "_use:export_network",
        shown=("weights", "format", "out", "model", "data"),
        positional=("weights",),
    ),
    "flatness": Command(
        "Print flatness, radii, features and calibration of networks.",
        (_report.FlatnessOptions, _report.MeasureOptions, _report.CheckpointOptions, _report.CheckpointData),
        "_report:print_flatness",
    ),
    "report": Command(
        "Write one page about runs: before, after, rivals.",
        (_report.ReportOptions, _report.MeasureOptions),
        "_report:make_report",
    ),
    "experiment": Command(
        "Compare methods over seeds and settings, as a recipe says.",
        (_experiment.ExperimentOptions, EngineOptions),
        "_experiment:experiment",
    ),
    "data": Command("Print what a data set holds.", (DataOptions, _evaluate.CheckOptions), "_evaluate:show_data"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    with warnings.catch_warnings():
        warnings.showwarning = _warn  # put back by catch_warnings
        return _run(arguments)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"pof: warning: {shortened(str(message))}", file=sys.stderr)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        parsed = parse(list(sys.argv[1:] if arguments is None else arguments))
        module, _, function = parsed.command.run.partition(":")
        run: Callable[..., int] = getattr(import_module(f"pof.app.cli.{module}"), function)
        return run(*settled(parsed))
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("POF_TRACEBACK"):
            raise
        print(f"pof: error: {one_line(error)}", file=sys.stderr)
        return BAD_INPUT


def parse(arguments: Sequence[str]) -> Parsed:
    """Read a command line: the subcommand, its groups of options, and which of them were given."""
    return read(arguments, COMMANDS)


def settled(parsed: Parsed) -> list[Any]:
    """The options, completed by what the run folder says that ``--weights`` names."""
    found = {type(options): options for options in parsed.options}
    place = found.get(RunOptions) or found.get(ImproveOptions)
    if place is not None and place.resume and not place.dry_run:
        from pof.app.cli._display import note_of_nothing_to_resume

        note_of_nothing_to_resume(place.out)
    if ModelOptions in found and DataOptions in found:
        from pof.app.inherit import inherited

        model, data = inherited(found[ModelOptions], found[DataOptions], parsed.given)
        found |= {ModelOptions: model, DataOptions: data}
    elif DataOptions in found and not found[DataOptions].data:
        raise ValueError("give --data")
    return list(found.values())
