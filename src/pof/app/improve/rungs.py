"""How a budget is shared: short runs that choose, then one long run from the start of the candidate that is ahead.

The short ones are successive halving (Jamieson and Talwalkar, AISTATS 2016): every rung costs the same, and of more
than a handful half go on.  The long one starts again, so that its rate falls once, over all of its passes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rung:
    """One round of the race."""

    runs: int
    """How many take part."""
    passes: float
    """Forward-backward passes over the training set that each of them may spend, earlier rungs of its run included."""
    anew: bool = False
    """Whether they start from the incoming network again, and earlier rungs do not count."""


LEAST_STEPS, DEAREST = 42, 2.0
"""Optimizer steps that each run needs at least in its first rung to be told from the others: with fewer, methods that
first raise the loss (SAM, head ascent) rank behind those that change little.  And what a step of the dearest method,
SAM, costs, in steps of plain training."""
CHOOSING, CHOOSING_UNFITTED = 0.4, 0.25
"""Share of the budget for the short runs; and where only rates of plain training are to be told apart."""
HANDFUL = 8
"""Short runs that are not halved any more."""
WORTH = 1.5
"""How much more a run must get by dropping the others, as a factor, or none is dropped and they share the budget."""


def rungs(candidates: int, budget: float, choosing: float = CHOOSING) -> list[Rung]:
    """Share a budget among candidates: a part for short runs of all, the rest for a long one of the best."""
    if candidates < 1 or not 0 < budget < float("inf"):
        raise ValueError(f"the race needs candidates >= 1 and a finite budget > 0; got {candidates} and {budget}")
    if candidates * (1.0 - choosing) < WORTH:
        return [Rung(candidates, budget / candidates)]
    sizes = [candidates]
    while sizes[-1] > HANDFUL:
        sizes.append(-(-sizes[-1] // 2))
    each = choosing * budget / len(sizes)
    spent, found = 0.0, []
    for size in sizes:
        spent += each / size
        found.append(Rung(size, spent))
    return [*found, Rung(1, (1.0 - choosing) * budget, anew=True)]


def most_candidates(budget: float, steps_per_epoch: int) -> int:
    """The most candidates of which each gets a pass and ``LEAST_STEPS`` in its first rung; at least two."""
    least = max(1.0, DEAREST * LEAST_STEPS / steps_per_epoch)
    number = 2
    while rungs(number + 1, budget)[0].passes >= least and number < 64:
        number += 1
    return number
