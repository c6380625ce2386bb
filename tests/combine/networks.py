"""Networks that started from one, and their parameters drawn anew: what is combined in these tests."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pof._support.random import seeded


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()


def moved(model: nn.Module, seed: int) -> nn.Module:
    """A copy with other parameters and other floating-point buffers."""
    generator, other = seeded(seed), copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (*other.parameters(), *(b for b in other.buffers() if b.is_floating_point())):
            tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5)
    return other


def values(model: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers())]


def assert_same(first: nn.Module, second: nn.Module) -> None:
    """Bitwise identical in parameters and all buffers."""
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    for (name, a), (_, b) in zip(first.named_buffers(), second.named_buffers(), strict=True):
        assert torch.equal(a, b), name
