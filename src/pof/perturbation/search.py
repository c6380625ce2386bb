"""The bracketed searches behind every radius: the last point of a ray up to which a condition holds.

:func:`crossing` takes one candidate after the other, each interpolated from the ones before: for processors, where a
value is read at no cost.  :func:`last_of` evaluates many candidates at once and reads nothing back: for accelerators,
where the number of kernels is what costs, and for conditions that are no more than true or false.
:func:`last_near` is good to 5 %, for candidates that cost a pass of a network each.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Condition = Callable[[Tensor], Tensor]
"""Increasing candidates (K,) -> (K,) bool: true up to one of them and false behind."""
_Point = tuple[float, float]
_TINY, _FAR = math.ulp(0.0), 1e36
_EVALUATIONS, _DOUBLINGS, _HALVINGS = 200, 40, 3
"""At most."""


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
    (lowest, highest), dtype = exponents, unit.dtype
    octaves = torch.arange(parts[0], device=unit.device, dtype=dtype)
    fractions = torch.arange(1, parts[1], device=unit.device, dtype=dtype)

    def count(candidates: Tensor) -> Tensor:
        return holds(candidates).sum(dtype=dtype)

    exponent, width, found = unit.new_full((), lowest), highest - lowest, None
    while width > 1 or found is None:
        width = -(-width // parts[0])
        powers = torch.add(exponent, octaves, alpha=width).clamp_max(highest)
        index = count(unit * torch.exp2(powers))
        found = index > 0 if found is None else found
        exponent = torch.add(exponent - width, index, alpha=width).clamp(lowest, highest)
    size = unit * torch.exp2(exponent)
    lower, share = size * found, 1.0
    for _ in range(rounds):
        share /= parts[1]
        index = count(torch.addcmul(lower, size, fractions, value=share))
        lower = torch.addcmul(lower, size, index, value=share)
    return torch.addcmul(lower, size, lower.sign(), value=0.5 * share), exponent < highest


def crossing(sides: Callable[[float], tuple[float, float]], precision: float) -> float:
    """Find the xi > 0 up to which the first of two positive numbers is larger than the second.

    The root of the logarithm of their ratio: sums of exponentials make it nearly a line where they themselves change
    by orders of magnitude.  Outwards from 0 by secants; then inside of a bracket by inverse quadratic interpolation
    where the last three points lie smoothly enough for it (Chandrupatla, 1997).  Where they do not, by the secant of
    the two on one side, and where that was the step before, by bisection (of the exponent, while the bracket spans
    octaves).

    Args:
        sides: xi -> the two numbers, >= 0.
        precision: relative; an interpolated point is taken unseen where it is so close to the last, or will be so close
            to the next: that step times the ratio of the last two, which falls where the iteration converges.

    Returns:
        xi; 0 where the first is not larger at 0, and infinity where it always is.
    """

    def at(xi: float) -> _Point:
        first, second = sides(xi)
        return xi, 0.0 if first == second else math.log(first or _TINY) - math.log(second or _TINY)

    start = at(0.0)
    if not start[1] > 0.0:
        return 0.0
    bracket = _bracket(at, start)
    if bracket is None:
        return math.inf
    a, b, c = bracket
    before, extrapolated = 0.0, False
    for _ in range(_EVALUATIONS):
        if a[1] == 0.0:
            return a[0]
        width, tolerance = b[0] - a[0], precision * max(a[0], b[0])
        share = _interpolated(a, b, c)
        step = 0.0 if share is None else abs(share * width)
        if share is not None and (step <= 4.0 * tolerance or step * step <= tolerance * before):
            return a[0] + share * width
        extrapolated = share is None and not extrapolated and (share := _extrapolated(a, b, c)) is not None
        if share is None:
            share = (_middle(*sorted((a[0], b[0]))) - a[0]) / width
        before = step
        least = tolerance / abs(width)
        if least >= 0.5:
            break
        new = at(a[0] + min(max(share, least), 1.0 - least) * width)
        if (new[1] > 0.0) == (a[1] > 0.0):
            c = a
        else:
            c, b = b, a
        a = new
    return min(a, b, key=lambda point: abs(point[1]))[0]


def _bracket(at: Callable[[float], _Point], start: _Point) -> tuple[_Point, _Point, _Point] | None:
    # The root lies between the first two, the third is beyond, on the side of the first; None where there is no root.
    oldest = inner = start
    # Each side changes by a factor of at most e^2 per unit of xi, and mostly by far less.
    outer = at(2.5 * min(inner[1], 100.0))
    while outer[1] > 0.0:
        if outer[0] > _FAR:
            return None
        fallen = inner[1] - outer[1]
        step = 1.1 * outer[1] * (outer[0] - inner[0]) / fallen if fallen > 0.0 else math.inf
        oldest, inner = inner, outer
        outer = at(outer[0] + min(max(step, outer[0]), 31.0 * outer[0]))
    return (outer, inner, inner) if oldest is inner else (inner, outer, oldest)


def _interpolated(a: _Point, b: _Point, c: _Point) -> float | None:
    """The root between a and b as a share of the way, if the inverse quadratic through the three is monotone there."""
    if b == c:
        return a[1] / (a[1] - b[1])
    x, y = (a[0] - b[0]) / (c[0] - b[0]), (a[1] - b[1]) / (c[1] - b[1]) if c[1] != b[1] else 2.0
    if y * y >= x or (1.0 - y) ** 2 >= 1.0 - x:
        return None
    along = (c[0] - a[0]) / (b[0] - a[0])
    return a[1] / (b[1] - a[1]) * c[1] / (b[1] - c[1]) + along * a[1] / (c[1] - a[1]) * b[1] / (c[1] - b[1])


def _extrapolated(a: _Point, b: _Point, c: _Point) -> float | None:
    """The root of the secant through a and c as a share of the way from a to b, if it lies there."""
    if a[1] == c[1]:
        return None
    share = a[1] / (a[1] - c[1]) * (c[0] - a[0]) / (b[0] - a[0])
    return share if 0.0 < share < 1.0 else None


def _middle(low: float, high: float) -> float:
    """Of the exponents, while they differ."""
    if low == 0.0:
        return high / 16.0
    return math.sqrt(low) * math.sqrt(high) if high > 4.0 * low else 0.5 * (low + high)


def last_near(holds: Callable[[float], bool], guess: float) -> tuple[float, bool]:
    """Find the last xi > 0 up to which a condition holds: outwards from a guess, then halved as a ratio.

    Returns:
        xi, within 5 %, and whether it was found: if not, the last candidate.
    """
    lower, upper, xi = 0.0, math.inf, guess
    for _ in range(1 + _DOUBLINGS):
        lower, upper = (xi, upper) if holds(xi) else (lower, xi)
        if lower and upper < math.inf:
            break
        xi = 2.0 * lower or 0.5 * upper
    else:
        return lower or upper, False
    for _ in range(_HALVINGS):
        xi = math.sqrt(lower * upper)
        lower, upper = (xi, upper) if holds(xi) else (lower, xi)
    return math.sqrt(lower * upper), True
