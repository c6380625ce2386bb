"""Runs killed at random moments and resumed: bitwise the run that nobody disturbed."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

from scripts.hostile.runs import KINDS, clean, differs, killed, resumed, undisturbed
from scripts.hostile.trial import Try, copied, judged

EACH = 10
"""Kills of each kind of run."""


def tries(folder: Path, made: Path, wanted: str, seed: int) -> Iterator[Try]:
    """Ten kills of each kind of run; every other run is killed a second time after its resume."""
    moments = random.Random(seed)
    for name, kind in KINDS.items():
        if wanted not in name:
            continue
        place = copied(made, folder / f"kills-{name}")
        whole = undisturbed(place, kind)
        for number in range(EACH):
            since, after = time.monotonic(), moments.uniform(0.02, 1.0) * whole.seconds
            while not killed(place, kind, after):  # it was faster this time
                clean(place)
                after *= 0.7
            label = f"{name}, killed after {after:.2f} of {whole.seconds:.2f} s"
            if number % 2:
                again = moments.uniform(0.02, 0.8) * whole.seconds
                if killed(place, kind, again, kind.resume):
                    label += f", and its resume after {again:.2f} s"
            ended = resumed(place, kind)
            wrong = differs(place, kind, whole) if ended.code == 0 else f"not resumed: {ended.err or ended.out}"
            yield judged("kill", label, since, ended, wrong)
            clean(place)
