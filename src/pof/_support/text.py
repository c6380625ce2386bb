"""Texts for the sentences that say what is wrong."""

from __future__ import annotations

from collections.abc import Iterable


def reason(error: BaseException | None, most: int = 300) -> str:
    """What an error says, in one line of at most so many characters."""
    return " ".join(str(error).split())[:most]


def first_of(items: Iterable[object], most: int = 5) -> str:
    """The first few of some names, and how many more there are."""
    names = [str(item) for item in items]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def number_of(count: int, word: str) -> str:
    """So many of a thing, which is one or several: ``1 epoch``, ``2 epochs``."""
    return f"{count} {word}{'' if count == 1 else 's'}"
