"""The bracketed search behind every radius: the last point of a ray up to which a condition holds.

One loop narrows a bracket: it asks for the condition at the candidates inside, and keeps the part between the last
that holds and the next.  The brackets say where the candidates lie: many at once, and nothing is read back from the
device (:func:`last_of`), or one after the other where each costs a whole pass of a network (:func:`last_near`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

Condition = Callable[[Tensor], Tensor]
"""Increasing candidates (K,) -> (K,) bool: true up to one of them and false behind."""


class _Bracket(Protocol):
    """An interval that holds the point, and the candidates that cut it."""

    @property
    def done(self) -> bool:
        """Whether it is narrow enough."""

    def inside(self) -> Tensor:
        """The candidates (K,), increasing."""

    def behind(self, count: Tensor) -> Self:
        """The part behind the first ``count`` (1,) candidates, which are those that hold."""


B = TypeVar("B", bound=_Bracket)


def _narrowed(bracket: B, holds: Condition) -> B:
    """Narrow a bracket until it is done."""
    while not bracket.done:
        bracket = bracket.behind(holds(bracket.inside()).sum().view(1))
    return bracket


@dataclass(frozen=True)
class _Octaves:
    """Powers of two times a unit; the lowest is taken to hold."""

    unit: Tensor
    low: Tensor
    """(1,) int64: the exponent up to which the condition holds."""
    width: int
    """From there to the end of the bracket."""
    highest: int
    inner: Tensor
    """(parts - 1,) int64: 1, 2, ...; a round cuts the exponents into so many parts."""

    @property
    def done(self) -> bool:
        return self.width == 1

    @property
    def _step(self) -> int:
        return -(-self.width // (len(self.inner) + 1))

    @property
    def lower(self) -> Tensor:
        """(1,), the power of two below the point."""
        return self.unit * torch.exp2(self.low.to(self.unit.dtype))

    def inside(self) -> Tensor:
        exponents = (self.low + self._step * self.inner).clamp_max(self.highest)
        return self.unit * torch.exp2(exponents.to(self.unit.dtype))

    def behind(self, count: Tensor) -> Self:
        return replace(self, low=(self.low + self._step * count).clamp_max(self.highest), width=self._step)


@dataclass(frozen=True)
class _Parts:
    """Equal parts of an interval."""

    lower: Tensor
    """(1,)."""
    size: Tensor
    """(1,)."""
    fractions: Tensor
    """(parts - 1,): where the candidates lie, as shares of the interval."""
    rounds: int

    @property
    def done(self) -> bool:
        return self.rounds == 0

    def inside(self) -> Tensor:
        return self.lower + self.size * self.fractions

    def behind(self, count: Tensor) -> Self:
        size = self.size / (len(self.fractions) + 1)
        return replace(self, lower=self.lower + size * count, size=size, rounds=self.rounds - 1)


@dataclass(frozen=True)
class _Guessed:
    """One candidate at a time: doubled or halved from a guess until it crosses, then halved as a ratio."""

    guess: float
    lower: float = 0.0
    upper: float = math.inf
    doublings: int = 40
    halvings: int = 3

    @property
    def crossed(self) -> bool:
        """Whether there is a point on either side."""
        return self.lower > 0.0 and self.upper < math.inf

    @property
    def middle(self) -> float:
        """The next candidate; of a bracket that is done, the point found."""
        if self.crossed:
            return math.sqrt(self.lower * self.upper)
        return 2.0 * self.lower or (self.guess if self.upper == math.inf else 0.5 * self.upper)

    @property
    def done(self) -> bool:
        return self.halvings == 0 or self.doublings < 0

    def inside(self) -> Tensor:
        return torch.tensor([self.middle], dtype=torch.float64)

    def behind(self, count: Tensor) -> Self:
        lower, upper = (self.middle, self.upper) if bool(count) else (self.lower, self.middle)
        if self.crossed:
            return replace(self, lower=lower, upper=upper, halvings=self.halvings - 1)
        return replace(self, lower=lower, upper=upper, doublings=self.doublings - 1)


def last_of(
    holds: Condition, unit: Tensor, exponents: tuple[int, int], *, parts: tuple[int, int], rounds: int
) -> tuple[Tensor, Tensor]:
    """Find the last xi >= 0 up to which a condition holds: the power of two below it, then its digits.

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
    low = torch.full((1,), lowest, device=unit.device)
    octave = _narrowed(_Octaves(unit, low, highest - lowest, highest, octaves), holds)
    lower = size = octave.lower
    lower = torch.where((octave.low == lowest) & ~holds(lower), torch.zeros_like(lower), lower)
    found = _narrowed(_Parts(lower, size, inner.to(unit.dtype) / parts[1], rounds), holds)
    xi = (found.lower + 0.5 * found.size) * (found.lower > 0)
    return xi.squeeze(0), (octave.low < highest).squeeze(0)


def last_near(holds: Callable[[float], bool], guess: float) -> tuple[float, bool]:
    """Find the last xi > 0 up to which a condition holds, one candidate at a time from a guess outwards.

    Returns:
        xi, within 5 %, and whether it was found: if not, the last candidate, 40 doublings or halvings from the guess.
    """
    found = _narrowed(_Guessed(guess), lambda xi: torch.tensor(holds(float(xi))))
    return (found.middle, True) if found.crossed else (found.lower or found.upper, False)
