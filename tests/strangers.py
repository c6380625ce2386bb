"""Data sets and models of other people, as command-line tests name them: package.module:factory."""

from __future__ import annotations

import random
from collections import OrderedDict

import numpy
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset


def dropping(num_classes: int) -> nn.Module:
    """A network for digits whose training draws from the global generator."""
    layers = {
        "conv": nn.Conv2d(1, 8, 3, padding=1),
        "norm": nn.BatchNorm2d(8),
        "relu": nn.ReLU(),
        "pool": nn.MaxPool2d(2),
        "flatten": nn.Flatten(),
        "drop": nn.Dropout(0.2),
        "fc": nn.Linear(8 * 16, num_classes),
    }
    return nn.Sequential(OrderedDict(layers))


class TwoHeads(nn.Module):
    """Nobody can say which of the two is the head."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(64, num_classes), nn.Linear(64, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs.flatten(1)
        return self.left(inputs) + self.right(inputs)


def for_larger_images(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(100, 5), nn.ReLU(), nn.Linear(5, num_classes))


class Labelled(TensorDataset):
    classes = ("a", "b", "c")


def images(count: int) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(count) % 3


def without_flaw() -> tuple[Labelled, Labelled]:
    return Labelled(*images(150)), Labelled(*images(30))


def with_nan() -> tuple[Labelled, Labelled]:
    inputs, labels = images(150)
    inputs[20, 0, 3, 4] = float("nan")
    return Labelled(inputs, labels), Labelled(*images(30))


def with_label_out_of_range() -> tuple[Labelled, Labelled]:
    inputs, labels = images(150)
    labels[5] = 3
    return Labelled(inputs, labels), Labelled(*images(30))


def with_a_bug(num_classes: int) -> nn.Module:
    """A factory that trips over itself."""
    settings: dict[str, int] = {}
    return nn.Linear(settings["depth"], num_classes)


class Tripping(nn.Module):
    """A model that trips over itself in training."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.body, self.fc = nn.Flatten(), nn.Linear(64, num_classes)
        self.settings: dict[str, int] = {}

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(self.body(inputs)) * self.settings["depth"]


def tripping(num_classes: int) -> nn.Module:
    return Tripping(num_classes)


class Unreadable(Labelled):
    """Sample 3 raises."""

    def __init__(self, kind: type[Exception] = KeyError) -> None:
        super().__init__(*images(150))
        self.kind = kind

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        if index == 3:
            raise self.kind("sample 3")
        return super().__getitem__(index)


def unreadable() -> tuple[Labelled, Labelled]:
    return Unreadable(), Labelled(*images(30))


class Drawing(nn.Module):
    """Noise from the generators of Python and NumPy."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body, self.fc = nn.Flatten(), nn.Linear(64, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        noise = random.random() + numpy.random.rand() if self.training else 0.0
        logits: Tensor = self.fc(self.body(inputs) + noise)
        return logits


def drawing(num_classes: int) -> nn.Module:
    return Drawing(num_classes)
