"""What the parser says of a command line that it cannot read, in words of the user's."""

from __future__ import annotations

import re
from collections.abc import Collection
from difflib import get_close_matches

TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "NoneType": "null"}
TYPES |= {"tuple": "a list", "dict": "keys and values"}
SEVERAL = "of several values in one option, write commas between them; put a value with spaces in quotes"


def reworded(message: str, commands: Collection[str], options: Collection[str]) -> str:
    """A message of the parser with flags as they are typed, types in words, and names that are similar.

    Args:
        message: of the parser; it calls a flag ``train.lr`` where the user wrote ``--lr``.
        commands: names of subcommands.
        options: names of the command's options, nested ones with dots.
    """
    text = re.sub(rf"\b({'|'.join(commands)})\.(?=\w)", "--", message)
    text = re.sub(r'^Parser key "(?:--)?([^"]+)":\s*', r"--\1: ", text)
    text = re.sub(
        r"Does not validate .*?Errors:\s*- (.*?)\s*Given value type: .*?Given value: ", _union, text, flags=re.S
    )
    text = re.sub(r"Expected an? (.+?)\. Got value: ", lambda found: f"give {_words(found[1])}; got ", text, flags=re.S)
    text = re.sub(r"Subcommand '\S+' does not accept option '(.+)'", r"unknown option '\1'", text)
    unknown = re.match(r"unrecognized arguments: (\S+)|unknown option '(.+)'", text)
    if unknown is None:
        return text
    if unknown[1] and not unknown[1].startswith("-"):
        return f"{text} ({SEVERAL})"
    name = (unknown[1] or unknown[2]).partition("=")[0].lstrip("-")
    similar = get_close_matches(name.replace("-", "_"), options, n=2)
    dashes = "--" if unknown[1] else ""
    return f"{text}; similar: {', '.join(dashes + found for found in similar)}" if similar else text


def _union(found: re.Match[str]) -> str:
    kinds = [re.sub(r"^Expected (an? )?", "", kind) for kind in re.split(r"\s*\n\s*- ", found[1])]
    *others, last = [word for kind in kinds for word in _choices(kind) or [_words(kind)]]
    return f"give {', '.join(others)} or {last}; got "


def _words(kind: str) -> str:
    if choices := _choices(kind):
        return f"one of {', '.join(choices)}"
    found = re.fullmatch(r"<class '(\w+)'>", kind.strip())
    return TYPES.get(found[1], kind) if found else kind


def _choices(kind: str) -> list[str]:
    return re.findall(r"'([^']*)'", kind) if "Literal" in kind else []
