"""Successive halving (Jamieson and Talwalkar, AISTATS 2016): every rung costs the same, and half of the runs go on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rung:
    """One round of the race."""

    runs: int
    """How many take part."""
    passes: float
    """Forward-backward passes over the training set that each of them may spend in all, earlier rungs included."""


LEAST_STEPS, DEAREST = 40, 2.0
"""Optimizer steps that each run needs at least in its first rung to be told from the others: with fewer, methods that
first raise the loss (SAM, head ascent) rank behind those that change little.  And what a step of the dearest method,
SAM, costs, in steps of plain training."""
FINALISTS = 2


def rungs(candidates: int, budget: float, finalists: int = FINALISTS) -> list[Rung]:
    """Share a budget among candidates: n of them, then half, until the finalists are left."""
    if candidates < 1 or not 0 < budget < float("inf"):
        raise ValueError(f"halving needs candidates >= 1 and a finite budget > 0; got {candidates} and {budget}")
    sizes = [candidates]
    while sizes[-1] > finalists:
        sizes.append(max(finalists, -(-sizes[-1] // 2)))
    each = budget / len(sizes)
    spent, found = 0.0, []
    for size in sizes:
        spent += each / size
        found.append(Rung(size, spent))
    return found


def most_candidates(budget: float, steps_per_epoch: int) -> int:
    """The most candidates of which each gets a pass and ``LEAST_STEPS`` in its first rung; at least two."""
    least = max(1.0, DEAREST * LEAST_STEPS / steps_per_epoch)
    number = FINALISTS
    while rungs(number + 1, budget)[0].passes >= least and number < 64:
        number += 1
    return number
