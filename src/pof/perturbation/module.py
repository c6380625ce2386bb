"""The perturbation for heads that are not one linear layer, and for losses other than the cross-entropy.

The same three steps as in :mod:`pof.perturbation.linear`, through ``torch.func.functional_call``: no parameter is
modified.
The loss along the ray is not convex here, so the minimiser is a *local* one: the first found by doubling the
radius, then narrowed.  Every evaluation is a forward of the head; the network is not run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pof._support.distributed import call_with, whole
from pof._support.modules import evaluating
from pof.perturbation.linear import LineSearch

Loss = Callable[[Tensor, Tensor], Tensor]

# The radius is searched between these multiples of the head's norm (2^-24 .. 2^4), then in 4 rounds of 7 parts.
_FIRST_POWER, _LAST_POWER = -24, 4
_ROUNDS, _PARTS = 4, 7


@dataclass(frozen=True)
class ModuleGradient:
    """The normalised gradient of a loss in all parameters of a head module."""

    direction: dict[str, Tensor]
    """Parameter name -> tensor of its shape; unit joint norm, or zero where the gradient is zero."""
    norm: Tensor
    """||g||, scalar."""


def head_parameters(head: nn.Module) -> dict[str, Tensor]:
    """Read the parameters of a head, whole where they are sharded.

    Returns:
        Parameter name -> tensor without graph.
    """
    return {name: whole(p).detach() for name, p in head.named_parameters()}


def perturbed_call(
    head: nn.Module,
    direction: dict[str, Tensor],
    amount: Tensor | float,
    features: Tensor,
    parameters: dict[str, Tensor] | None = None,
) -> Tensor:
    """Evaluate a head at theta - amount * direction.

    Args:
        head: any module; its parameters are read, not changed, and get no gradient.
        direction: parameter name -> tensor.
        amount: scalar.
        features: what enters the head, first axis N.
        parameters: theta, where it has been read already by :func:`head_parameters`.

    Returns:
        The logits, (N, C); the graph reaches ``features`` only.
    """
    theta = head_parameters(head) if parameters is None else parameters
    moved = {name: p - amount * direction[name] for name, p in theta.items()}
    return _logits(head, moved, features)


def module_gradient(head: nn.Module, features: Tensor, targets: Tensor, loss: Loss) -> ModuleGradient:
    """Direction of PoF for any head: the normalised gradient in its parameters, head in eval mode.

    Args:
        head: any module with parameters.
        features: what enters the head, first axis N.
        targets: whatever ``loss`` takes.
        loss: ``loss(logits, targets)``, a scalar mean over the mini-batch.

    Returns:
        The direction and ||g||.
    """
    parameters = {name: p.clone().requires_grad_() for name, p in head_parameters(head).items()}
    with evaluating(head), torch.enable_grad():
        value = loss(_logits(head, parameters, features.detach()), targets)
        gradients = torch.autograd.grad(value, list(parameters.values()), materialize_grads=True)
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    safe = torch.where(norm > 0, norm, torch.ones_like(norm))
    return ModuleGradient({name: g / safe for name, g in zip(parameters, gradients, strict=True)}, norm)


@torch.no_grad()
def module_line_search(
    head: nn.Module, direction: dict[str, Tensor], features: Tensor, targets: Tensor, loss: Loss
) -> LineSearch:
    """Radius of PoF for any head: a local minimiser of the loss along the ray theta - xi * direction.

    Args:
        head: any module; evaluated in eval mode.
        direction: parameter name -> tensor, unit joint norm.
        features: what enters the head, first axis N.
        targets: whatever ``loss`` takes.
        loss: ``loss(logits, targets)``, a scalar.

    Returns:
        The local minimiser.  ``bounded`` is False where the loss still falls at 16 times the head's norm; the
        radius is then 0.
    """
    theta = head_parameters(head)
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p) for p in theta.values()]))
    powers = torch.arange(_FIRST_POWER, _LAST_POWER + 1, device=norm.device, dtype=norm.dtype)
    radii = torch.cat([torch.zeros_like(powers[:1]), torch.exp2(powers) * norm.clamp_min(1e-6)])

    def losses(candidates: Tensor) -> Tensor:
        return torch.stack([loss(perturbed_call(head, direction, xi, features, theta), targets) for xi in candidates])

    with evaluating(head):
        values = losses(radii)
        # Near the start the loss changes by less than its rounding: equal is not rising.
        rises = values[1:] - values[:-1] > 8 * torch.finfo(values.dtype).eps * values[:-1].abs()
        bounded = rises.any()
        # The first radius from which the loss rises; the minimiser lies within its two neighbours.
        at = torch.where(bounded, rises.int().argmax(), torch.zeros_like(bounded, dtype=torch.long))
        lower = radii.gather(0, (at - 1).clamp_min(0).view(1)).squeeze(0)
        upper = radii.gather(0, (at + 1).view(1)).squeeze(0)
        parts = torch.linspace(0, 1, _PARTS + 1, device=norm.device, dtype=norm.dtype)
        for _ in range(_ROUNDS):
            grid = lower + (upper - lower) * parts
            best = losses(grid).argmin()
            lower = grid.gather(0, (best - 1).clamp_min(0).view(1)).squeeze(0)
            upper = grid.gather(0, (best + 1).clamp_max(_PARTS).view(1)).squeeze(0)
        found = 0.5 * (lower + upper)
        start, end = losses(torch.stack([torch.zeros_like(found), found]))
        radius = torch.where(bounded & (end < start), found, torch.zeros_like(found))
        return LineSearch(radius=radius, bounded=bounded, loss=torch.where(radius > 0, end, start))


def _logits(head: nn.Module, parameters: dict[str, Tensor], features: Tensor) -> Tensor:
    logits: Tensor = call_with(head, parameters, features)
    return logits.flatten(1)
