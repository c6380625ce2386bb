"""Numbers checked in one place, for the command line and for Python alike."""

from __future__ import annotations

import math
import operator


def whole_number(name: str, value: object, least: int) -> None:
    """Refuse what is no integer, or below ``least``."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise ValueError(f"{name} must be a whole number >= {least}; got {value!r}")


def finite_number(name: str, value: object, *, zero: bool = True) -> None:
    """Refuse what is no finite number >= 0, or > 0 if it cannot be ``zero``."""
    number = math.nan if isinstance(value, bool) or not hasattr(value, "__float__") else float(value)
    if not 0.0 <= number < math.inf or (number == 0 and not zero):
        raise ValueError(f"{name} must be a finite number {'>=' if zero else '>'} 0; got {value!r}")
