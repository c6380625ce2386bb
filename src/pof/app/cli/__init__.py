"""The command ``pof``: parsing and printing only; what a command does is in the package.

Bad input ends with exit code 2 and one line; a traceback is a bug, or wanted: ``POF_TRACEBACK=1``.  A RuntimeError
counts as bad input: torch raises it for a network that does not fit its data, a device that is not there, no memory.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

BAD_INPUT, INTERRUPTED = 2, 130


@dataclass(frozen=True)
class Command:
    """A subcommand: groups of options, given to ``run`` in this order."""

    help: str
    groups: tuple[type[Any], ...]
    run: Callable[..., int]
    defaults: tuple[tuple[str, Any], ...] = ()


def commands() -> dict[str, Command]:
    """List the subcommands; imports what they need.

    Returns:
        Name -> command.
    """
    from pof.app.cli import _demo, _evaluate, _experiment, _report, _train
    from pof.app.options import DataOptions, ModelOptions, RunOptions, TrainOptions

    training = (ModelOptions, DataOptions, TrainOptions, RunOptions)
    # The paper's rate: the last one of its pre-training.
    after = (("method", "pof"), ("lr", 1.6e-4))
    return {
        "demo": Command("Post-train a network on embedded data, in a minute.", (_demo.DemoOptions,), _demo.demo),
        "train": Command("Train a network.", training, _train.train, (("method", "finetune"), ("lr", 0.1))),
        "post-train": Command("Post-train a trained network.", training, _train.post_train, after),
        "fine-tune": Command(
            "Train a pre-trained backbone with a new head.",
            training,
            _train.fine_tune,
            (("method", "adarand"), ("lr", 1e-2), ("source_classes", 1000)),
        ),
        "evaluate": Command(
            "Print error, NLL and calibration of a network.",
            (ModelOptions, DataOptions, _evaluate.EvaluateOptions),
            _evaluate.evaluate_network,
        ),
        "flatness": Command(
            "Print flatness, radii, features and calibration of networks.",
            (_report.FlatnessOptions, _report.MeasureOptions, _report.CheckpointOptions, _report.CheckpointData),
            _report.print_flatness,
        ),
        "report": Command(
            "Write one page about runs: before, after, rivals.",
            (_report.ReportOptions, _report.MeasureOptions),
            _report.make_report,
        ),
        "experiment": Command(
            "Compare methods over seeds and settings, as a recipe says.",
            (_experiment.ExperimentOptions,),
            _experiment.experiment,
        ),
        "data": Command("Print what a data set holds.", (DataOptions,), _evaluate.show_data),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None takes those of the process.

    Returns:
        Exit code: 0, 2 for bad input, 130 after Ctrl-C, or what the command says.

    Raises:
        ValueError: for bad input, where ``POF_TRACEBACK`` is set.
        OSError: likewise.
        ImportError: likewise.
        RuntimeError: likewise.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(_with_plain_resume(given))
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("POF_TRACEBACK"):
            raise
        print(f"pof: error: {_one_line(error)}", file=sys.stderr)
        return BAD_INPUT


def _run(arguments: list[str]) -> int:
    try:
        from jsonargparse import ArgumentError, ArgumentParser
    except ImportError as error:
        raise ImportError("the command line needs more than the library: pip install 'pof[app]'") from error
    from pof.app.cli._experiment import with_plain_recipe
    from pof.app.cli._report import with_plain_runs

    known = commands()
    parser = ArgumentParser(prog="pof", description="Post-training of feature extractors.", exit_on_error=False)
    parsers = parser.add_subcommands(dest="command")
    for name, command in known.items():
        sub = ArgumentParser(exit_on_error=False)
        sub.add_argument("--config", action="config", help="YAML file with any of these options.")
        for group in command.groups:
            sub.add_class_arguments(group, None)
        sub.set_defaults(dict(command.defaults))
        parsers.add_subcommand(name, sub, help=command.help)
    try:
        parsed = parser.parse_args(with_plain_recipe(with_plain_runs(arguments)))
    except ArgumentError as error:
        # The parser calls a flag "train.lr" where the user wrote --lr.
        raise ValueError(re.sub(rf"\b({'|'.join(known)})\.(?=\w)", "--", str(error))) from error
    options = parsed[parsed.command]
    made = parser.instantiate(parsed)[parsed.command]
    groups = [
        group(**{name: made[name] for name in group.__dataclass_fields__ if name in options})
        for group in known[parsed.command].groups
    ]
    return known[parsed.command].run(*groups)


def _with_plain_resume(arguments: list[str]) -> list[str]:
    """``--resume`` alone means ``--resume true``."""
    result = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=False):
        result.append(argument)
        if argument == "--resume" and following.startswith("--"):
            result.append("true")
    return result


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    hint = " (POF_TRACEBACK=1 shows where)" if isinstance(error, RuntimeError) else ""
    return " ".join(str(error).split()) + hint
