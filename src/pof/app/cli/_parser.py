"""From the words of a command line to typed options; no torch is imported here."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from importlib import metadata
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pof.app.cli._wording import reworded
from pof.app.documents import DocumentError, read_yaml, text_of
from pof.app.errors import shortened
from pof.app.method_options import MethodOptions
from pof.app.methods import GROUPS, METHODS, entry_of, users_of

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

REPEATED = {"runs", "set", "candidates", "images"}
"""Options that take several values, without brackets."""
LISTS = REPEATED - {"set"}
"""Those of which a command line says all; settings of ``--set`` are added to those of a file."""
POSITIONAL = {"runs": "*", "recipe": "?"}
"""Options that may be given without their flag, and how many values they then take."""
FOUND = {"model", "data"}
"""What a run folder says itself: asked for where there is none."""
NUMBERS = tuple[float, ...] | None
CONFIG = "YAML file with any of these options, or the config.yaml of a run."
FULL = "--help-all"


@dataclass(frozen=True)
class Command:
    """A subcommand: groups of options, given to the function in this order."""

    help: str
    groups: tuple[type[Any], ...]
    run: str
    """``module:function`` in this package."""
    defaults: tuple[tuple[str, Any], ...] = ()
    shown: tuple[str, ...] = ()
    """The options that ``--help`` shows; all if there are none."""
    positional: tuple[str, ...] = ()
    """Options that may be given without their flag too."""


@dataclass(frozen=True)
class Parsed:
    """A command line that was read."""

    command: Command
    options: list[Any]
    """Of the command's groups, in their order."""
    given: frozenset[str]
    """Names of the options that were given, by flags or in a file; nested ones with dots."""


def read(arguments: Sequence[str], commands: Mapping[str, Command]) -> Parsed:
    """Read a command line; a ValueError says what does not fit."""
    try:
        from jsonargparse import ArgumentError
    except ImportError as error:
        raise ImportError("the command line needs more than the library: pip install 'pof[app]'") from error
    words = ["--help" if word == FULL else word for word in _with_configs(_resuming(arguments, commands))]
    completes = any(word.startswith("--print_completion") for word in words)
    wanted = frozenset(commands if completes else commands.keys() & set(words))
    parser = _made(tuple(commands.items()), wanted, not {"-h", "--help"} & set(arguments), completes)
    try:
        parsed = parser.parse_args(words)
        own = parser.parse_args(words, defaults=False)
    except ArgumentError as error:
        raise ValueError(reworded(str(error), commands, _options_of(parser, words))) from error
    name = parsed.command
    made, command = parser.instantiate(parsed)[name], commands[name]
    given = frozenset(key.removeprefix(f"{name}.").removesuffix("_") for key, value in own.items() if value is not None)
    _check_method(made, given, words)
    return Parsed(command, [_group(group, made, command) for group in command.groups], given)


def _options_of(parser: ArgumentParser, words: Sequence[str]) -> list[str]:
    """Names of the options of the command that the words are of."""
    (choices,) = (action.choices for action in parser._actions if action.dest == "command")
    subs: Mapping[str, ArgumentParser] = choices or {}  # type: ignore[assignment]
    name = next((word for word in words if word in subs), None)
    return [] if name is None else [flag.removeprefix("--") for flag in subs[name]._option_string_actions]


@cache
def _made(
    commands: tuple[tuple[str, Command], ...], wanted: frozenset[str], full: bool, completes: bool
) -> ArgumentParser:
    """Make a parser once: it serves all command lines of the process, and to make it takes longer than to read one."""
    from jsonargparse import set_parsing_settings

    set_parsing_settings(add_print_completion_argument=completes)
    return make_parser(dict(commands), wanted, full=full)


def make_parser(commands: Mapping[str, Command], wanted: Collection[str], *, full: bool) -> ArgumentParser:
    """Make the parser, with the options of the ``wanted`` commands: those of all take longer than anything else here.

    Args:
        commands: by name.
        wanted: names of those whose options are read.
        full: whether all options are shown; what a help text hides is not printed by ``--print_config`` either.
    """
    from jsonargparse import ArgumentParser

    version = metadata.version("pof")
    # Abbreviations would reach the parser, and not those who look at the words before it.
    told: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
    parser = ArgumentParser(prog="pof", description="Post-training of feature extractors.", version=version, **told)
    parsers = parser.add_subcommands(dest="command")
    for name, command in commands.items():
        hides = bool(command.shown) and not full
        more = f"The other options, and those of the methods, are shown by: pof {name} {FULL}" if hides else None
        sub = ArgumentParser(description=command.help, epilog=more, **told)
        if name in wanted:
            _add_options(sub, command)
            if hides:
                _hide(sub, {"help", "config", *command.shown})
        parsers.add_subcommand(name, sub, help=command.help)
    return parser


def _hide(parser: ArgumentParser, shown: Collection[str]) -> None:
    from argparse import SUPPRESS

    for action in parser._actions:
        if action.dest.removesuffix("_") not in shown:
            action.help = SUPPRESS


def _resuming(arguments: Sequence[str], commands: Mapping[str, Command]) -> list[str]:
    """The words, and the config.yaml of a run or search that is to go on: what it was started with need not be said.

    A file that is given counts alone, and one that is no run's, or no search's for a search, is left to the command.
    """
    words = list(arguments)
    known = commands.get(words[0]) if words else None
    options = set() if known is None else {option.name for group in known.groups for option in fields(group)}
    resume, out = _value(words, "--resume"), _value(words, "--out")
    asked = "model" in options and resume is not None and resume.lower() not in {"false", "no", "off"}
    if not asked or not out or _value(words, "--config") is not None:
        return words
    values = _values(config := str(Path(out, "config.yaml"))) or {}
    found = ("improve" if "budget" in options else "training") in values  # else no search's, or no run's
    return [*words[:1], f"--config={config}", *words[1:]] if found else words


def _value(words: Sequence[str], flag: str) -> str | None:
    """The last value of a flag: "" where it stands alone, None where it is not given."""
    found = None
    for word, after in pairwise([*words, "--"]):
        name, equals, value = word.partition("=")
        if name == flag:
            found = value if equals else "" if after.startswith("--") else after
    return found


def _with_configs(arguments: Sequence[str]) -> list[str]:
    """The words, files of options first: what is given beside them counts, on either side of them.

    A file that is the config.yaml of a run has what is in that; errors say which file.
    """
    files, others, words = [], [], iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag != "--config" or not (equals or (value := next(words, ""))):
            others.append(word)
        else:
            files.append(value)
    given, method = {name for name in LISTS if _value(others, f"--{name}") is not None}, _value(others, "--method")
    return [*others[:1], *(f"--config={_config(file, given, method)}" for file in files), *others[1:]]


def _values(file: str) -> dict[str, Any] | None:
    """What a file of options holds; None where there is no such file, which the parser says."""
    import yaml

    try:
        values = read_yaml(text_of(file), file)
    except OSError:
        return None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise DocumentError(f"{file} is no YAML: {shortened(str(error))}") from error
    if not isinstance(values, dict):
        raise DocumentError(f"{file} holds no options")
    return values


def _config(file: str, given: Collection[str], method: str | None) -> str:
    """What a file says, without lists that are given beside it: the parser would add to them."""
    import yaml

    values = _values(file)
    if values is None:
        return file
    if "improve" in values:
        values = _of_search(values, file)
    elif "training" in values:
        values = _of_run(values, file, method)
    elif not given & values.keys():
        return file
    return yaml.safe_dump({name: value for name, value in values.items() if name not in given})


def _sections(config: Mapping[str, Any], file: str, *names: str) -> dict[str, Any]:
    """The options in some sections of a config.yaml, with its paths as they are from here."""
    from pof.app.places import located_options

    found: dict[str, Any] = {}
    for name in names:
        if not isinstance(section := config.get(name, {}), dict):
            raise DocumentError(f"{file}: {name!r} holds no options")
        found |= section
    return located_options(found, config, Path(file).parent)


def _of_search(config: Mapping[str, Any], file: str) -> dict[str, Any]:
    """What the config.yaml of ``pof improve`` says, as its options: without where it was written to, and how."""
    options = _sections(config, file, "model", "data", "improve")
    return {name: value for name, value in options.items() if name not in {"out", "resume", "overwrite", "dry_run"}}


def _of_run(config: Mapping[str, Any], file: str, method: str | None) -> dict[str, Any]:
    """What the config.yaml of a run says, as options of its command: without groups of other methods than is given."""
    options = _sections(config, file, "model", "data", "training")
    method = method if method in METHODS else options.get("method")
    others = [group for group in GROUPS if method and group != entry_of(str(method)).group]
    return {name: value for name, value in options.items() if name not in others}


def _check_method(made: Namespace, given: Collection[str], words: Sequence[str]) -> None:
    """Refuse options of other methods than the chosen one, which would do nothing; a file may hold their defaults."""
    method = made.get("method")
    if method not in METHODS:
        return  # said where it is looked up
    usual, flags = MethodOptions(method), {word.partition("=")[0] for word in words}
    for name in sorted(given):
        users = users_of(name)
        if not users or {method, made.average.kind} & set(users):
            continue
        if f"--{name}" in flags or attrgetter(name)(made) != attrgetter(name)(usual):
            raise ValueError(
                f"--{name} is an option of {', '.join(users)}, and --method is {method}: leave it out, or choose one of"
                " them"
            )


class _Numbers:
    """Numbers with commas between them, as the type of an option."""

    __name__ = "numbers"

    def __call__(self, value: str | Sequence[float]) -> tuple[float, ...]:
        parts = value.strip("[]()").split(",") if isinstance(value, str) else value
        return tuple(float(part) for part in parts)

    def __repr__(self) -> str:
        return "numbers with commas between them"


def _add_options(parser: ArgumentParser, command: Command) -> None:
    parser.add_argument("--config", action="config", help=CONFIG)
    for group in command.groups:
        names = {*REPEATED, *POSITIONAL, *command.positional, *FOUND, "method", "model_args"}
        by_hand = [f for f in fields(group) if f.type in {bool, NUMBERS} or f.name in names]
        parser.add_class_arguments(group, None, skip={f.name for f in by_hand})
        helps = dict(_help(group))
        for option in by_hand:
            _add(parser, option, helps[option.name], command)
    parser.set_defaults(dict(command.defaults))


def _add(parser: ArgumentParser, option: Field[Any], text: str, command: Command) -> None:
    """Add an option that is more, or less, than its type says."""
    name, values = option.name, {**POSITIONAL, **dict.fromkeys(command.positional, "?")}
    if option.type is bool:
        flags = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
        parser.add_argument(*flags, type=bool, nargs="?", const=True, default=option.default, help=text)
    elif option.type == NUMBERS:
        parser.add_argument(f"--{name}", type=_Numbers(), default=None, help=text)
    elif name == "method":
        parser.add_argument("--method", type=str, help=f"{text} One of {', '.join(METHODS)}.")
    elif name == "model_args":
        parser.add_argument("--model_args", "--model.args", type=option.type, default={}, help=text)
    elif name in REPEATED:
        parser.add_argument(f"--{name}", nargs="+", action="extend", type=str, default=[], help=text)
    elif name not in POSITIONAL:
        default = None if option.default is MISSING else option.default
        parser.add_argument(f"--{name}", type=option.type, default=default, help=text)
    if name in values:
        both = name in REPEATED or name in command.positional
        metavar: dict[str, Any] = {"metavar": "RUN"} if name in {"runs", "weights"} else {}
        parser.add_argument(f"{name}_" if both else name, nargs=values[name], help=text, **metavar)


def _group(group: type[Any], made: Any, command: Command) -> Any:
    values = {f.name: made[f.name] for f in fields(group) if f.name in made}
    for name in REPEATED & values.keys():
        values[name] = [*(made.get(f"{name}_") or ()), *(values[name] or ())]
    values |= {name: values[name] or "" for name in FOUND & values.keys()}
    for name in set(command.positional) & values.keys():
        if (alone := made.get(f"{name}_")) is not None:
            if values[name] is not None:
                raise ValueError(f"{alone} and --{name} {values[name]}: give one of them")
            values[name] = alone
    return group(**values)


def _help(group: type[Any]) -> Iterator[tuple[str, str]]:
    """Names of options and what their classes' docstrings say of them."""
    from docstring_parser import parse

    for kind in reversed(group.__mro__):
        for parameter in parse(kind.__doc__ or "").params:
            yield parameter.arg_name, " ".join((parameter.description or "").split())
