"""The bracketed search behind every radius: the last point of a ray up to which a condition holds.

First a power of two below the point, then its digits, each round keeping the part of the bracket between the last
candidate that holds and the next.  At two paces: :func:`last_of` evaluates many candidates at once and reads nothing
back from the device; :func:`last_near` takes one after the other from a guess, where each costs a pass of a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Condition = Callable[[Tensor], Tensor]
"""Increasing candidates (K,) -> (K,) bool: true up to one of them and false behind."""


def last_of(
    holds: Condition, unit: Tensor, exponents: tuple[int, int], *, parts: tuple[int, int], rounds: int
) -> tuple[Tensor, Tensor]:
    """Find the last xi >= 0 up to which a condition holds.

    Args:
        holds: the condition.
        unit: scalar; gives dtype and device.
        exponents: lowest and highest power of two, in ``unit``; an xi below the lowest lies in one bracket with 0.
        parts: into how many parts a round cuts the exponents, and one the interval between two powers.
        rounds: of the latter.

    Returns:
        xi, 0 where the condition holds nowhere; and (bool) whether it fails at the highest power or before.
        Scalars; no value is read back from the device.
    """
    lowest, highest = exponents
    octaves, inner = (torch.arange(1, n, device=unit.device) for n in parts)

    def power(exponent: Tensor) -> Tensor:
        return unit * torch.exp2(exponent.to(unit.dtype))

    def count(candidates: Tensor) -> Tensor:
        return holds(candidates).sum().view(1)

    low, width = torch.full((1,), lowest, device=unit.device), highest - lowest
    while width > 1:
        width = -(-width // parts[0])
        low = (low + width * count(power((low + width * octaves).clamp_max(highest)))).clamp_max(highest)
    size = power(low)
    lower = torch.where((low == lowest) & ~holds(size), torch.zeros_like(size), size)
    fractions = inner.to(unit.dtype) / parts[1]
    for _ in range(rounds):
        index = count(lower + size * fractions)
        size = size / parts[1]
        lower = lower + size * index
    return ((lower + 0.5 * size) * (lower > 0)).squeeze(0), (low < highest).squeeze(0)


def last_near(
    holds: Callable[[float], bool], guess: float, *, doublings: int = 40, halvings: int = 3
) -> tuple[float, bool]:
    """Find the last xi > 0 up to which a condition holds: outwards from a guess, then halved as a ratio.

    Returns:
        xi, within 5 %, and whether it was found: if not, the last candidate.
    """
    lower, upper, xi = 0.0, math.inf, guess
    for _ in range(1 + doublings):
        lower, upper = (xi, upper) if holds(xi) else (lower, xi)
        if lower and upper < math.inf:
            break
        xi = 2.0 * lower or 0.5 * upper
    else:
        return lower or upper, False
    for _ in range(halvings):
        xi = math.sqrt(lower * upper)
        lower, upper = (xi, upper) if holds(xi) else (lower, xi)
    return math.sqrt(lower * upper), True
