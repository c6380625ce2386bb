"""The bracketed search on conditions whose end is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pof.perturbation.search import crossing, last_near, last_of


@pytest.mark.parametrize("parts", [(4, 4), (7, 7), (29, 2), (32, 32)])
@pytest.mark.parametrize("end", [3e-7, 0.1, 1.0, 1.5, 2.0, 777.7, 1e8])
def test_the_last_point_is_found_to_the_last_bits(end: float, parts: tuple[int, int]) -> None:
    rounds = math.ceil(53 / math.log2(parts[1]))
    unit = torch.ones((), dtype=torch.float64)
    found, fails = last_of(lambda xi: xi <= end, unit, (-30, 30), parts=parts, rounds=rounds)
    assert float(found) == pytest.approx(end, rel=1e-14)
    assert bool(fails)


def test_a_condition_that_holds_nowhere_or_everywhere() -> None:
    unit = torch.ones(())
    found, fails = last_of(lambda xi: xi < 0, unit, (-30, 30), parts=(62, 2), rounds=20)
    assert float(found) == 0.0 and bool(fails)
    found, fails = last_of(lambda xi: xi > 0, unit, (-30, 30), parts=(62, 2), rounds=20)
    assert float(found) > 2.0**30 and not bool(fails)


def test_the_unit_scales_the_range_and_what_lies_below_it_is_found_too() -> None:
    unit = torch.tensor(100.0, dtype=torch.float64)
    for end in (1e-4, 50.0, 790.0):
        found, fails = last_of(lambda xi, end=end: xi <= end, unit, (-10, 3), parts=(15, 2), rounds=30)
        assert float(found) == pytest.approx(end, rel=1e-5) and bool(fails)


def test_each_round_asks_for_increasing_candidates_inside_of_what_is_left() -> None:
    asked: list[Tensor] = []

    def holds(xi: Tensor) -> Tensor:
        asked.append(xi)
        return xi <= 0.3

    last_of(holds, torch.ones((), dtype=torch.float64), (-8, 8), parts=(5, 4), rounds=6)
    assert all((xi.diff() > 0).all() for xi in asked[2:])
    widths = [float(xi[-1] - xi[0]) for xi in asked if len(xi) == 3]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("guess", [1e-6, 0.2, 5.0, 1e6])
def test_from_a_guess_one_candidate_at_a_time(guess: float) -> None:
    asked: list[float] = []
    found, crossed = last_near(lambda xi: not asked.append(xi) and xi < 1.3, guess)  # type: ignore[func-returns-value]
    assert crossed and found == pytest.approx(1.3, rel=0.05)
    assert len(asked) <= 5 + abs(math.log2(guess / 1.3))


@pytest.mark.parametrize(("holds", "last"), [(True, 0.1 * 2.0**40), (False, 0.1 * 0.5**40)])
def test_a_guess_that_never_crosses_gives_up_after_forty_steps(holds: bool, last: float) -> None:
    assert last_near(lambda xi: holds, 0.1) == (last, False)


@pytest.mark.parametrize("end", [1e-6, 0.3, 2.0, 777.7, 1e8])
@pytest.mark.parametrize("kind", ["exponential", "line", "step", "flat, then steep"])
def test_two_sides_are_equal_at_the_crossing(end: float, kind: str) -> None:
    shapes = {
        "exponential": lambda x: (math.exp(min(1 - x / end, 700)), 1.0),
        "line": lambda x: (1.0, x / end),
        "step": lambda x: (1.0, 0.999 if x < end else 1.001),
        "flat, then steep": lambda x: (1.0, min(x / end, 1e4) ** 60),
    }
    asked: list[float] = []
    found = crossing(lambda x: asked.append(x) or shapes[kind](x), 2**-52)  # type: ignore[func-returns-value]
    assert found == pytest.approx(end, rel=1e-13)
    assert len(asked) < (90 if kind == "step" else 45)


def test_sides_that_never_or_always_differ() -> None:
    assert crossing(lambda x: (1.0, 1.0), 1e-7) == crossing(lambda x: (1.0, 2.0), 1e-7) == 0.0
    assert crossing(lambda x: (math.nan, 1.0), 1e-7) == 0.0
    assert crossing(lambda x: (1.0, 0.0), 1e-7) == math.inf


@pytest.mark.parametrize(("scale", "shift", "most"), [(0.45, 6.0, 8), (0.3, 3.0, 7)])
def test_a_level_far_above_the_start_takes_few_evaluations(scale: float, shift: float, most: int) -> None:
    """Nearly 0 for long, then nearly a line, as the loss of a fitted mini-batch; bisection alone would take 12."""
    seen = []

    def sides(xi: float) -> tuple[float, float]:
        seen.append(xi)
        return 2.0, scale * math.log1p(math.exp(xi - shift))

    exact = shift + math.log(math.expm1(2.0 / scale))
    assert crossing(sides, 1.2e-7) == pytest.approx(exact, rel=1e-7)
    assert len(seen) <= most
