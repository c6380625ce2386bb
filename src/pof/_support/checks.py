"""Numbers checked in one place, for the command line and for Python alike, before anything is allocated."""

from __future__ import annotations

import math
import operator
from numbers import Real

MOST = 10**9
"""Of anything that is counted: more is a typing error."""
MOST_EPOCHS = 10**6
"""Epochs, and passes over the training data."""
MOST_CLASSES = 10**6
MOST_POINTS = 10**4
"""Of a grid."""
MOST_PROCESSES = 1024
"""Workers and threads too."""
MOST_SEEDS = 10**5
MOST_SEED = 2**63 - 1


def whole_number(name: str, value: object, least: int, most: int = MOST) -> None:
    """Refuse what is no integer, or not between two bounds."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise ValueError(f"{name} must be a whole number >= {least}; got {value!r}")
    if number > most:
        raise ValueError(f"{name} must be at most {most}; got {value!r}")


def gives_batches(name: str, loader: object) -> None:
    """Refuse what nothing can be read from."""
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise ValueError(f"{name} must give mini-batches, as a DataLoader does; got {loader!r}")


def finite(name: str, value: object, least: float = -math.inf, *, above: float = -math.inf) -> None:
    """Refuse what is no number, NaN, infinite, below ``least``, or not greater than ``above``."""
    bound = f" > {above:g}" if above > -math.inf else f" >= {least:g}" if least > -math.inf else ""
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not least <= number < math.inf or not above < number:
        raise ValueError(f"{name} must be a finite number{bound}; got {value!r}")
