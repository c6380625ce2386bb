"""What an object was constructed with, in plain values: what a resumed run must find unchanged."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

# The network itself, and what the state holds: the place of a seed's generator, statistics of the features, which may
# be computed with other last bits elsewhere.
LEFT_OUT = {"model", "head", "seed", "mean", "std"}


def options_of(made: object) -> dict[str, Any]:
    """Describe the options of an object's constructor that it keeps as attributes of their names."""
    try:
        names = [name for name in inspect.signature(type(made)).parameters if name not in LEFT_OUT]
    except (TypeError, ValueError):  # some classes that are written in C
        return {}
    return {name: described(getattr(made, name)) for name in names if hasattr(made, name)}


def described(value: Any) -> Any:
    """Describe a value by plain ones that ``torch.load(weights_only=True)`` reads.

    Returns:
        Numbers, strings and None as they are; a tensor by shape and checksum; a function by its qualified name; an
        object by what its own ``settings()`` returns, or by its class and the options it was constructed with.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        digest = hashlib.blake2b(repr(value.tolist()).encode(), digest_size=6).hexdigest()
        return f"{tuple(value.shape)} {digest}"
    if isinstance(value, list | tuple):
        return [described(item) for item in value]
    if isinstance(value, partial):
        return {_name(value.func): {"arguments": described(value.args), **_each(value.keywords)}}
    if inspect.isroutine(value) or inspect.isclass(value):
        return _name(value)
    if callable(getattr(value, "settings", None)):
        return value.settings()
    options = options_of(value)
    return {type(value).__name__: options} if options else _name(type(value))


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings of all levels, by names such as ``training.lr``."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _each(values: dict[str, Any]) -> dict[str, Any]:
    return {name: described(value) for name, value in values.items()}


def _name(value: Callable[..., Any]) -> str:
    return f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', value)}"
