"""The command ``pof``: parsing and printing only; what a command does is in the package.

Bad input ends with exit code 2 and one line, with ``POF_TRACEBACK=1`` with a traceback.  Any exception counts as bad
input: models and data are a user's code, and torch raises a RuntimeError for a network that does not fit its data.
A help text imports no torch: each command imports what it needs when it runs.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pof.app.cli import _demo, _evaluate, _experiment, _report
from pof.app.documents import DocumentError, read_yaml, text_of
from pof.app.engine.options import EngineOptions
from pof.app.errors import one_line
from pof.app.methods import METHODS
from pof.app.options import DataOptions, ImproveOptions, ModelOptions, RunOptions, TrainOptions

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

BAD_INPUT, INTERRUPTED = 2, 130
REPEATED = {"runs", "set", "candidates"}
"""Options that take several values, without brackets."""
POSITIONAL = {"runs": "*", "recipe": "?"}
"""Options that may be given without their flag, and how many values they then take."""


@dataclass(frozen=True)
class Command:
    """A subcommand: groups of options, given to the function in this order."""

    help: str
    groups: tuple[type[Any], ...]
    run: str
    """``module:function`` in this package."""
    defaults: tuple[tuple[str, Any], ...] = ()


TRAINING = (ModelOptions, DataOptions, TrainOptions, RunOptions)
COMMANDS = {
    "demo": Command("Post-train a network on embedded data, in a minute.", (_demo.DemoOptions,), "_demo:demo"),
    "train": Command("Train a network.", TRAINING, "_train:train", (("method", "finetune"), ("lr", 0.1))),
    "post-train": Command(
        "Post-train a trained network.",
        TRAINING,
        "_train:post_train",
        (("method", "pof"), ("lr", 1.6e-4)),  # the paper's rate: the last one of its pre-training
    ),
    "fine-tune": Command(
        "Train a pre-trained backbone with a new head.",
        TRAINING,
        "_train:fine_tune",
        (("method", "adarand"), ("lr", 1e-2), ("source_classes", 1000)),
    ),
    "improve": Command(
        "Find out what makes a trained network better, and hand back that or nothing.",
        (ModelOptions, DataOptions, ImproveOptions, EngineOptions),
        "_improve:improve",
    ),
    "evaluate": Command(
        "Print error, NLL and calibration of a network.",
        (ModelOptions, DataOptions, _evaluate.EvaluateOptions),
        "_evaluate:evaluate_network",
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
    "data": Command("Print what a data set holds.", (DataOptions,), "_evaluate:show_data"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    try:
        command, options = parse(list(sys.argv[1:] if arguments is None else arguments))
        module, _, function = command.run.partition(":")
        run: Callable[..., int] = getattr(import_module(f"pof.app.cli.{module}"), function)
        return run(*options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("POF_TRACEBACK"):
            raise
        print(f"pof: error: {one_line(error)}", file=sys.stderr)
        return BAD_INPUT


def parse(arguments: Sequence[str]) -> tuple[Command, list[Any]]:
    """Read a command line: the subcommand, and its groups of options."""
    try:
        from jsonargparse import ArgumentError, ArgumentParser
    except ImportError as error:
        raise ImportError("the command line needs more than the library: pip install 'pof[app]'") from error
    parser = ArgumentParser(prog="pof", description="Post-training of feature extractors.", exit_on_error=False)
    parsers = parser.add_subcommands(dest="command")
    for name, command in COMMANDS.items():
        sub = ArgumentParser(exit_on_error=False)
        if name in arguments:  # reading the options of all commands takes longer than anything else here
            _add_options(sub, command)
        parsers.add_subcommand(name, sub, help=command.help)
    _check_configs(arguments)
    try:
        parsed = parser.parse_args(list(arguments))
    except ArgumentError as error:
        # The parser calls a flag "train.lr" where the user wrote --lr.
        raise ValueError(re.sub(rf"\b({'|'.join(COMMANDS)})\.(?=\w)", "--", str(error))) from error
    made = parser.instantiate(parsed)[parsed.command]
    command = COMMANDS[parsed.command]
    return command, [_group(group, made) for group in command.groups]


def _check_configs(arguments: Sequence[str]) -> None:
    """Refuse what the parser would take from a file without a word; all else it says itself."""
    files = [value for flag, value in pairwise(arguments) if flag == "--config"]
    files += [text.removeprefix("--config=") for text in arguments if text.startswith("--config=")]
    for file in files:
        try:
            read_yaml(text_of(file), file)
        except DocumentError:
            raise
        except Exception:  # the parser reads it again, and says it
            continue


def _add_options(parser: ArgumentParser, command: Command) -> None:
    parser.add_argument("--config", action="config", help="YAML file with any of these options.")
    for group in command.groups:
        by_hand = {f.name: f for f in fields(group) if f.type is bool or f.name in {*REPEATED, *POSITIONAL, "method"}}
        parser.add_class_arguments(group, None, skip=set(by_hand))
        help_of = dict(_help(group))
        for name, option in by_hand.items():
            default = option.default_factory() if option.default_factory is not MISSING else option.default
            if option.type is bool:
                flags = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
                parser.add_argument(*flags, type=bool, nargs="?", const=True, default=default, help=help_of[name])
            elif name == "method":
                parser.add_argument("--method", type=str, help=f"{help_of[name]}: {', '.join(METHODS)}.")
            elif name in REPEATED:
                parser.add_argument(f"--{name}", nargs="+", action="extend", type=str, default=[], help=help_of[name])
            if name in POSITIONAL:
                parser.add_argument(
                    f"{name}_" if name in REPEATED else name, nargs=POSITIONAL[name], help=help_of[name]
                )
    parser.set_defaults(dict(command.defaults))


def _group(group: type[Any], made: Any) -> Any:
    values = {f.name: made[f.name] for f in fields(group) if f.name in made}
    for name in REPEATED & values.keys():
        values[name] = [*(made.get(f"{name}_") or ()), *(values[name] or ())]
    return group(**values)


def _help(group: type[Any]) -> Iterator[tuple[str, str]]:
    """Names of options and what their classes' docstrings say of them."""
    from docstring_parser import parse

    for kind in reversed(group.__mro__):
        for parameter in parse(kind.__doc__ or "").params:
            yield parameter.arg_name, (parameter.description or "").rstrip(".")
