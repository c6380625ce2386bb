"""Texts for the sentences that say what is wrong."""

from __future__ import annotations

from collections.abc import Sequence


def reason(error: BaseException | None, most: int = 300) -> str:
    """What an error says, in one line of at most so many characters."""
    return " ".join(str(error).split())[:most]


def first_of(names: Sequence[str], most: int = 5) -> str:
    """The first few of some names, with dots where there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
