"""Runs the bad calls of ``python_api`` and ``python_objects``, each in a process of its own."""

from __future__ import annotations

import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

from scripts.hostile.trial import ACCEPTED, FOREIGN, REFUSED, Child, Try, judged

import pof

OURS = str(Path(pof.__file__).parent)


def tries(folder: Path, wanted: str) -> Iterator[Try]:
    """Each must raise an error of pof's own, or warn."""
    from scripts.hostile import python_api, python_objects

    for name in [*python_api.CASES, *python_objects.CASES]:
        if wanted in name:
            place = folder / "calls"
            place.mkdir(exist_ok=True)
            since = time.monotonic()
            ended = Child(place, call, name).ended()
            accepted = ended.code == ACCEPTED and not ended.err.startswith("warning: ")
            yield judged("Python", name, since, ended, "accepted" if accepted else None)
            for path in sorted(place.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()


def call(name: str) -> int:
    """Do it, and say in one line what it raised or warned of."""
    from scripts.hostile import python_api, python_objects

    function = {**python_api.CASES, **python_objects.CASES}[name]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            function()
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            place = frames[-1]
            # What the user's network raises about its own inputs is for the user, with its traceback.
            inside = any(frame.name in {"call", "outputs_of"} and frame.filename.startswith(OURS) for frame in frames)
            own = inside or place.filename.startswith(OURS) or isinstance(error, OSError)
            text = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"pof: error: {text}" if own else f"{text} [{place.filename}:{place.lineno}]", file=sys.stderr)
            return REFUSED if own else FOREIGN
    ours = [str(one.message) for one in said if issubclass(one.category, UserWarning)]
    if ours:
        print(f"warning: {ours[0]}", file=sys.stderr)
    return ACCEPTED
