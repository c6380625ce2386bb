"""Write docs/cli.md, the reference of the command line, anew from its parser.

python scripts/cli_page.py
"""

from __future__ import annotations

import re
from argparse import SUPPRESS, Action
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pof.app.cli import COMMANDS
from pof.app.cli._parser import make_parser

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
INTRODUCTION = """\
# Command line

Every command and every option, as the parser has them; what commands share is described where it comes first.
`pof COMMAND --help-all` prints the same, without `-all` what is needed most. An option without a default is not set
unless it is given; `true` may be left out (`--resume`). `--config FILE`, of every command, reads options from YAML or
from the config.yaml of a run, and those on the command line count more. `pof --version` prints the version.
[Completion](runs.md#help-and-completion) is for your shell.
"""
WORDS = {bool: "true, false", int: "integer", float: "number", str: "text", dict: "JSON"} | {
    tuple: "[number, ...]",
    list: "[text, ...]",
}


def values(kind: Any) -> str:
    """What an option of a type takes."""
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    if (origin := get_origin(kind)) in WORDS:
        return WORDS[origin]
    if parts := [part for part in get_args(kind) if part is not NoneType]:
        return ", ".join(map(values, parts))
    return WORDS.get(kind, "" if kind is None else str(kind))


def default(option: Action) -> str:
    """What is taken if an option is not given."""
    if option.required and option.option_strings:
        return "required"
    value = option.default
    if value in (None, [], {}):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else list(value) if isinstance(value, tuple) else value}`"


def row(option: Action) -> str:
    """A row of a command's table: flags, values, default, and what the option is."""
    flags = option.option_strings or [str(option.metavar or option.dest)]
    helped = re.sub(r"([|<*_\[\]])", r"\\\1", " ".join((option.help or "").split()).replace("``", ""))
    kind = getattr(option, "_typehint", None) or option.type
    return f"| {', '.join(f'`{flag}`' for flag in flags)} | {values(kind)} | {default(option)} | {helped} |"


def section(name: str, options: list[Action], known: dict[str, str]) -> str:
    """A command's table, without the rows of commands before it; ``known``, from rows to commands, gets its own."""
    texts = [row(option) for option in options]
    earlier: dict[str, list[str]] = {}
    for text in texts:
        if known.setdefault(text, name) != name:
            earlier.setdefault(known[text], []).append(flag(text))
    rows = [text for text in texts if known[text] == name]
    own = ["| option | values | default | |", "| --- | --- | --- | --- |", *rows, ""] if rows else []
    others = []
    for of, flags in earlier.items():
        every = {flag(text) for text, command in known.items() if command == of} <= set(map(flag, texts))
        said = "all its other options" if every else ", ".join(f"`{name}`" for name in flags)
        others.append(f"As in [pof {of}](#pof-{of}): {said}.\n")
    return "\n".join([f"## pof {name}\n", f"{COMMANDS[name].help}\n", *own, *others])


def flag(text: str) -> str:
    """The name of an option, from its row."""
    return text.split("`")[1]


def rendered() -> str:
    """The page."""
    parser = make_parser(COMMANDS, COMMANDS, full=True)
    (commands,) = (action for action in parser._actions if action.dest == "command")
    known: dict[str, str] = {}
    page = [INTRODUCTION]
    for name in COMMANDS:
        options = commands.choices[name]._actions  # type: ignore[index]
        shown = [option for option in options if option.default != SUPPRESS and option.dest != "config"]
        page.append(section(name, shown, known))
    return "\n".join(page)


if __name__ == "__main__":
    PAGE.write_text(rendered(), encoding="utf-8")
