"""The radius from the loss: rho such that the loss at the perturbed weights has risen to a level.

A radius in the units of the weights fits one network; a rise of the loss means the same for each of them.  Head
ascent takes its radius in this way, from the head alone (:func:`pof.perturbation.linear.reach`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from pof.optim._entries import rescaled
from pof.optim._perturbing import PerturbingOptimizer
from pof.perturbation.search import last_near

LevelKind = Literal["level", "rise"]


def rho_for_level(
    optimizer: PerturbingOptimizer,
    loss: Callable[[], Tensor | float],
    level: float,
    *,
    guess: float = 0.1,
    level_kind: LevelKind = "level",
) -> float:
    """Find the radius at which the loss of a mini-batch has risen to a level, along the gradients at hand.

    Call it after the backward pass of the same mini-batch.  All parameter groups get the same radius during the search;
    weights, gradients and radii are as before afterwards.

    Args:
        optimizer: says along what the weights are perturbed (SAM, ASAM, SAM-ON).
        loss: computes the loss at the weights as they are; called about seven times, without graph.
        level: a loss, in nats.
        guess: where the search begins; > 0.
        level_kind: ``"level"``, or ``"rise"``: the level counts from the loss at the weights as they are.

    Returns:
        rho >= 0, within 5 %; 0 where the loss is at the level or above already, which it never is of a rise.

    Raises:
        ValueError: if an argument is out of range, the loss is not a number, the gradient is 0, or the loss does not
            rise to the level.
    """
    if not 0.0 < guess < math.inf or not 0.0 < level < math.inf:
        raise ValueError(f"guess and level must be finite and > 0; got {guess} and {level}")
    radii, ascended = [group["rho"] for group in optimizer.param_groups], optimizer._ascended

    @torch.no_grad()
    def at(rho: float) -> tuple[float, float]:
        for group in optimizer.param_groups:
            group["rho"] = rho
        with optimizer.perturbed() as norm:
            return float(loss()), float(norm)

    try:
        start, norm = at(0.0)
        if math.isnan(start):
            raise ValueError("the loss is nan before the weights are perturbed: check the data and the weights")
        level += start if level_kind == "rise" else 0.0
        if start >= level:
            return 0.0
        if norm == 0:
            raise ValueError(
                f"the gradient is 0 at the loss {start:.3g}, so that there is no direction to perturb along: the"
                " network is surer of this mini-batch than its floating point can tell; give rho"
            )
        rho, crossed = last_near(lambda rho: at(rho)[0] < level, guess)
        if not crossed:
            raise ValueError(
                f"the loss does not cross the level {level:.3g} at any radius from {guess:.2g} to {rho:.2g}"
            )
        return rho
    finally:
        for group, before in zip(optimizer.param_groups, radii, strict=True):
            group["rho"] = before
        optimizer._ascended = ascended


@torch.no_grad()
def perturbation_shares(optimizer: PerturbingOptimizer, groups: Mapping[str, Iterable[Tensor]]) -> dict[str, float]:
    """Compute each group's share of ||eps||^2, from the gradients at hand.

    Args:
        optimizer: says along what the weights are perturbed.
        groups: parameters by the name of their group, such as those of a layer.

    Returns:
        Shares by name; their sum is 1 if the groups hold all parameters, and each is 0 if nothing is perturbed.
    """
    squares = {
        id(entry.parameter): (entry.radius * rescaled(entry, 2).cpu().double()).square().sum()
        for entry in optimizer._entries()
    }
    total = torch.stack([torch.zeros((), dtype=torch.double), *squares.values()]).sum()
    found = {name: sum(float(squares.get(id(p), 0.0)) for p in parameters) for name, parameters in groups.items()}
    return {name: value / float(total) if total > 0 else 0.0 for name, value in found.items()}
