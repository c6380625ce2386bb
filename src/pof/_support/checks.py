"""Numbers checked in one place, for the command line and for Python alike."""

from __future__ import annotations

import operator


def whole_number(name: str, value: object, least: int) -> None:
    """Refuse what is no integer, or below ``least``."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise ValueError(f"{name} must be a whole number >= {least}; got {value!r}")
