"""Objects named as ``package.module:factory``: import them, and call them with what they accept."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

RESERVED = ("timm", "torchvision", "hf")
"""Before a colon these are no modules, but other sources of networks."""


def is_factory(name: str) -> bool:
    """Whether the name of a network is that of a factory."""
    prefix, colon, _ = name.partition(":")
    return bool(colon) and prefix not in RESERVED


def import_factory(name: str) -> Callable[..., Any]:
    """Import ``package.module:factory``; the current folder is importable, as it is for ``python -m``."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"a factory is named package.module:factory; got {name!r}")
    with _current_folder_importable():
        try:
            module = importlib.import_module(module_name)
        except Exception as error:  # the module is the user's: importing it can raise anything
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"cannot import the module {module_name!r} of {name!r}: {reason}") from error
    try:
        found: Callable[..., Any] = attrgetter(attribute)(module)
    except AttributeError as error:
        raise ValueError(f"the module {module_name!r} has no {attribute!r}") from error
    if not callable(found):
        raise ValueError(f"{name!r} is a {type(found).__name__}, not something to call")
    return found


def call_factory(
    name: str, *, offered: dict[str, Any], wanted: tuple[str, ...] = (), given: dict[str, Any] | None = None
) -> Any:
    """Import and call a factory with those of the offered keywords that its signature names.

    Those ``wanted`` are also passed to a factory that takes ``**kwargs`` without naming them (torchvision's
    constructors take ``num_classes`` so).  Those ``given`` are the user's, which it must take.  ImportError, OSError
    and RuntimeError pass; all else becomes a ValueError.
    """
    factory = import_factory(name)
    try:
        parameters = dict(inspect.signature(factory).parameters)
    except ValueError:  # callables written in C have no signature
        parameters = {}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {key for key, p in parameters.items() if p.kind in {p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD}}
    keywords = {k: v for k, v in offered.items() if k in named or (open_ended and k in wanted)}
    if not open_ended and (unknown := sorted((given or {}).keys() - named)):
        raise ValueError(f"{name!r} takes no argument {unknown[0]!r}; it takes {', '.join(sorted(named)) or 'none'}")
    keywords |= given or {}
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
