"""Small networks and data that many tests share."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn


def mlp(classes: int = 4, bias: bool = True, norm: bool = False, dropout: float = 0.0) -> nn.Sequential:
    """Features (N, 6), head "fc"; float64."""
    model = nn.Sequential()
    model.add_module("body", nn.Linear(5, 6))
    if norm:
        model.add_module("norm", nn.BatchNorm1d(6))
    model.add_module("act", nn.Tanh())
    if dropout:
        model.add_module("drop", nn.Dropout(dropout))
    model.add_module("fc", nn.Linear(6, classes, bias=bias))
    return model.double()


def batch(n: int = 16, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 5, dtype=torch.float64, generator=generator)
    return inputs, torch.randint(classes, (n,), generator=generator)


def batches(
    count: int = 6, n: int = 16, classes: int = 4, last: int | None = None, first: int = 0
) -> list[tuple[Tensor, Tensor]]:
    sizes = [n] * count
    if last is not None:
        sizes[-1] = last
    return [batch(size, classes, seed) for seed, size in enumerate(sizes, first)]


def folder_instead(path: Path) -> None:
    """Put a folder instead of a file."""
    path.unlink()
    path.mkdir()


def pipe_instead(path: Path) -> None:
    """Put a FIFO instead of a file."""
    path.unlink()
    os.mkfifo(path)
