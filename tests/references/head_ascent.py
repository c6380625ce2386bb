"""Head ascent step by step: autograd for the direction, scipy for the radius, a copied head."""

from __future__ import annotations

import copy

import torch
from scipy.optimize import brentq
from torch import Tensor, nn
from torch.nn import functional as F


def moved_head(head: nn.Module, direction: list[Tensor], amount: float) -> nn.Module:
    moved = copy.deepcopy(head)
    with torch.no_grad():
        for parameter, part in zip(moved.parameters(), direction, strict=True):
            parameter += amount * part
    return moved.requires_grad_(False)


def step_loss(
    extractor: nn.Module, head: nn.Module, batch: tuple[Tensor, Tensor], level: float
) -> tuple[Tensor, float]:
    """Loss of one step, and its radius; ``level`` is in nats."""
    inputs, targets = batch
    features = extractor(inputs)
    own = copy.deepcopy(head).requires_grad_(True)
    gradients = torch.autograd.grad(F.cross_entropy(own(features.detach()), targets), list(own.parameters()))
    norm = torch.sqrt(sum((g**2).sum() for g in gradients))
    direction = [g / norm for g in gradients]

    def excess(rho: float) -> float:
        return float(F.cross_entropy(moved_head(head, direction, rho)(features.detach()), targets)) - level

    upper = 1e-6
    while excess(upper) < 0:
        upper *= 2
    rho = 0.0 if excess(0.0) >= 0 else float(brentq(excess, 0.0, upper, xtol=1e-300, rtol=1e-14))
    return F.cross_entropy(moved_head(head, direction, rho)(features), targets), rho
