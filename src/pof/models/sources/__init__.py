"""Where networks come from, one module per source, and which of them a name means."""

from __future__ import annotations

import difflib
import os
from collections import defaultdict

from pof._support.factory import RESERVED, is_factory
from pof.models.sources.base import PRETRAINED, Request, Source
from pof.models.sources.factory import FACTORY
from pof.models.sources.huggingface import HUGGING_FACE
from pof.models.sources.own import OWN
from pof.models.sources.timm import TIMM
from pof.models.sources.torchvision import TORCHVISION

__all__ = ["PREFIXED", "PRETRAINED", "Request", "Source", "find_source"]

PREFIXED = dict(zip(RESERVED, (TIMM, TORCHVISION, HUGGING_FACE), strict=True))
"""Sources whose networks are named ``prefix:NAME``."""
FAMILIES = ("timm", "torchvision")
"""Those that have names of their own, which may also be given without the prefix."""


def find_source(name: str) -> tuple[Source, str]:
    """Find the source of a network, and what it calls the network.

    Raises:
        ValueError: if no source knows the name, or two do.
    """
    prefix, colon, rest = name.partition(":")
    if OWN.knows(name):
        return OWN, name
    if is_factory(name):
        return FACTORY, name
    try:
        knowing = [family for family in ([prefix] if colon else FAMILIES) if PREFIXED[family].knows(rest or name)]
        if len(knowing) == 1:
            return PREFIXED[knowing[0]], rest or name
        similar = [] if knowing else _similar(rest or name)
    except ImportError as error:
        raise ValueError(
            f"unknown model {name!r}; ours are {', '.join(OWN.names())}; others need their library, which cannot be"
            f" imported ({error}): pip install timm torchvision transformers"
        ) from error
    if knowing:
        raise ValueError(f"{name!r} is a network of {' and of '.join(knowing)}: write {_spellings(name, knowing)}")
    if os.path.exists(os.path.join(name, "config.json")):
        similar = [f"hf:{name}"]
    hint = f"; similar: {', '.join(similar)}" if similar else ""
    raise ValueError(
        f"unknown model {name!r}{hint}; known are {', '.join(OWN.names())} and their relatives, timm's names,"
        " torchvision's names, hf:FOLDER, and package.module:factory"
    )


def _similar(name: str) -> list[str]:
    """How the networks with the most similar names are written, of all sources."""
    places: dict[str, list[str]] = defaultdict(list)
    for family in FAMILIES:
        for known in PREFIXED[family].names():
            places[known].append(family)
    own = set(OWN.names())
    found = difflib.get_close_matches(name, [*own, *places], n=3)
    return [known if known in own else _spellings(known, places[known]) for known in found]


def _spellings(name: str, families: list[str]) -> str:
    return " or ".join(f"{family}:{name}" for family in families)
