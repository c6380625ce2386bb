"""A small network and ten mini-batches of unequal size, in float64; some classes are absent from some batches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pof
from pof.regularizers import Regularizer

CLASSES, DIM, STEPS = 5, 6, 10
SOURCE_CLASSES = 7
SIZES = (7, 7, 2, 7, 1, 7, 7, 3, 7, 4)
Batch = tuple[Tensor, Tensor]


def network(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = {
            "stem": nn.Conv2d(2, 4, 3),
            "norm": nn.BatchNorm2d(4),
            "relu": nn.ReLU(),
            "conv": nn.Conv2d(4, DIM, 2, stride=2),
            "softplus": nn.Softplus(),
            "pool": nn.AdaptiveAvgPool2d(1),
            "flatten": nn.Flatten(),
            "dropout": nn.Dropout(dropout),
            "head": nn.Linear(DIM, CLASSES),
        }
        return nn.Sequential(OrderedDict(layers)).double()


def batches(seed: int = 1) -> list[Batch]:
    g = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(n, 2, 6, 6, generator=g, dtype=torch.float64),
            torch.randint(CLASSES, (n,), generator=g),
        )
        for n in SIZES
    ]


def statistics(seed: int = 2) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    mean = torch.randn(CLASSES, DIM, generator=g, dtype=torch.float64)
    return mean, torch.rand(CLASSES, DIM, generator=g, dtype=torch.float64)


def source_head() -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Linear(DIM, SOURCE_CLASSES).double()


def relationship() -> Tensor:
    """p(y_s | y_t), (CLASSES, SOURCE_CLASSES)."""
    g = torch.Generator().manual_seed(6)
    return torch.rand(CLASSES, SOURCE_CLASSES, generator=g, dtype=torch.float64).softmax(dim=1)


def optimizer_for(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def train(
    model: nn.Module,
    penalty: Callable[[Tensor, Tensor, Tensor], Tensor | float],
    update: Callable[[Tensor, Tensor], None],
    data: list[Batch],
    optimizer: torch.optim.Optimizer | None = None,
) -> Iterator[Tensor]:
    """Take one step per batch; yield the loss after each step, while the gradients are still there."""
    network_ = pof.split(model, "head")
    optimizer = optimizer or optimizer_for(model)
    for inputs, targets in data:
        optimizer.zero_grad()
        features, logits = network_.features_and_logits(inputs)
        loss = F.cross_entropy(logits, targets) + penalty(features, targets, inputs)
        loss.backward()
        optimizer.step()
        update(features.detach(), targets)
        yield loss.detach()


def run(model: nn.Module, regularizer: Regularizer, data: list[Batch]) -> list[Tensor]:
    return list(train(model, regularizer, regularizer.update, data))
