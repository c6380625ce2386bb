"""Objects named as ``package.module:factory``: import them, and call them with what they accept."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def import_factory(name: str) -> Callable[..., Any]:
    """Import ``package.module:factory``; the current folder is importable, as it is for ``python -m``.

    Args:
        name: module and (dotted) attribute, separated by a colon.

    Returns:
        The callable.

    Raises:
        ValueError: if the module cannot be imported, or has no such callable.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"a factory is named package.module:factory; got {name!r}")
    with _current_folder_importable():
        try:
            found: Any = importlib.import_module(module_name)
        except Exception as error:  # the module is the user's: importing it can raise anything
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"cannot import the module {module_name!r} of {name!r}: {reason}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"the module {module_name!r} has no {attribute!r}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{name!r} is a {type(found).__name__}, not something to call")
    factory: Callable[..., Any] = found
    return factory


def call_factory(name: str, *, offered: dict[str, Any], wanted: tuple[str, ...] = ()) -> Any:
    """Import and call a factory with those of the offered keywords that its signature names.

    Args:
        name: ``package.module:factory``.
        offered: keyword arguments.
        wanted: those that are also passed to a factory that takes ``**kwargs`` without naming them
            (torchvision's constructors take ``num_classes`` so).

    Returns:
        What the factory returns.

    Raises:
        ValueError: if it cannot be imported, cannot be called so, or raises something else than the following.
        ImportError: if the factory raises it.
        OSError: likewise.
        RuntimeError: likewise.
    """
    factory = import_factory(name)
    try:
        parameters = dict(inspect.signature(factory).parameters)
    except ValueError:  # callables written in C have no signature
        parameters = {}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {key for key, p in parameters.items() if p.kind in {p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD}}
    keywords = {k: v for k, v in offered.items() if k in named or (open_ended and k in wanted)}
    required = sorted(key for key in named - keywords.keys() if parameters[key].default is inspect.Parameter.empty)
    if required:
        raise ValueError(
            f"{name!r} needs the argument {required[0]!r}; a factory is called with at most "
            f"{', '.join(offered)}: give the others defaults"
        )
    with _current_folder_importable():
        try:
            return factory(**keywords)
        except (ValueError, OSError, ImportError, RuntimeError):
            raise
        except Exception as error:  # the factory is the user's: it can raise anything
            raise ValueError(f"{name!r} raised {type(error).__name__}: {error}") from error


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    folder = os.getcwd()
    added = folder not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if added and folder in sys.path:
            sys.path.remove(folder)
