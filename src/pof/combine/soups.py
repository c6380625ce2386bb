"""Model soups: averages of networks fine-tuned from one start (Wortsman et al., ICML 2022, arXiv 2203.05482)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from pof.combine.average import average


@dataclass(frozen=True)
class GreedySoup:
    """What :func:`greedy_soup` found."""

    model: nn.Module
    """The soup, a new module with the statistics that it was scored with."""
    indices: tuple[int, ...]
    """Networks in it, in the order in which they were taken."""
    score: float
    """Its score; at most that of the best single network."""


def soup(models: Sequence[nn.Module], weights: Sequence[float] | None = None) -> nn.Module:
    """Average networks that started from the same weights; they stay as they are.

    What is averaged and what is copied (buffers among it, from the first network of non-zero weight) is said in
    :func:`interpolate`; batch-norm statistics need to be estimated anew.

    Args:
        models: k >= 1 networks of one architecture.
        weights: k numbers >= 0, divided by their sum; None: all the same.

    Returns:
        A new module; where one network has all the weight, a bitwise identical copy of it.

    Raises:
        ValueError: if there are no networks, the weights are no such numbers, a parameter is missing in one network
            or differs in shape, or has no shape yet.
    """
    if not models:
        raise ValueError("a soup needs at least one network; got none")
    amounts = [1.0] * len(models) if weights is None else [float(weight) for weight in weights]
    total = sum(amounts)
    if len(amounts) != len(models) or min(amounts) < 0 or not 0 < total < math.inf:
        raise ValueError(f"{len(models)} networks need as many weights >= 0 with a positive sum; got {weights}")
    return average(models, [amount / total for amount in amounts])


def greedy_soup(models: Sequence[nn.Module], score: Callable[[nn.Module], float]) -> GreedySoup:
    """Put networks into a soup one by one, best first, and keep each with which the soup is no worse (recipe 1).

    Args:
        models: k >= 1 networks of one architecture.
        score: figure of a network on validation data, *lower is better* (an error or a loss).  It gets copies of the
            networks and new soups, whose batch-norm statistics it should estimate anew first.

    Returns:
        The soup with its members and score.  Networks whose score is NaN or infinite are left out.

    Raises:
        ValueError: if no network has a finite score, or the networks do not belong together.
    """
    best, scores = None, []
    for index, model in enumerate(models):
        alone = soup([model])
        scores.append(float(score(alone)))
        if math.isfinite(scores[-1]) and (best is None or scores[-1] < best.score):
            best = GreedySoup(alone, (index,), scores[-1])
    if best is None:
        raise ValueError(f"no network has a finite score: {scores}")
    order = sorted((i for i, value in enumerate(scores) if math.isfinite(value)), key=lambda i: scores[i])
    for index in order[1:]:
        indices = (*best.indices, index)
        candidate = soup([models[i] for i in indices])
        value = float(score(candidate))
        if value <= best.score:
            best = GreedySoup(candidate, indices, value)
    return best
