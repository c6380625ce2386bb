"""The methods on a GPU and on the processor; run by test_cuda.py, 77 where torch sees no GPU."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pof

METHODS: Mapping[str, Callable[[nn.Module], pof.Method]] = {
    "finetune": pof.Finetune,
    "pof": pof.PoF,
    "pof previous": lambda model: pof.PoF(model, features="previous"),
    "head ascent": pof.HeadAscent,
    "sam": pof.SharpnessAware,
    "ema": lambda model: pof.Averaged(pof.Finetune(model), "ema"),
    "msam": lambda model: pof.SharpnessAware(model, kind="msam"),
    "adarand": lambda model: pof.Regularized(model, pof.AdaRand(torch.zeros(4, 288), torch.ones(4, 288))),
    "bss": lambda model: pof.Regularized(model, pof.BSS()),
    "co-tuning": lambda model: pof.Regularized(model, pof.CoTuning(copy.deepcopy(model[-1]), torch.eye(4))),
    "class weights": lambda model: pof.PoF(model, class_weights=torch.tensor([1.0, 2.0, 1.0, 1.0])),
}


def compare(device: str) -> None:
    """Validation figures of every method after two epochs, and those of the incoming network, against the CPU's."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(128, 3, 8, 8), torch.randint(4, (128,)))
    loader: DataLoader[Any] = DataLoader(data, batch_size=32)
    body = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    network = nn.Sequential(*body, nn.Linear(288, 4))
    for name, make in METHODS.items():
        figures = []
        for place in ("cpu", device):
            method = make(copy.deepcopy(network))
            result = pof.fit(method, loader, epochs=2, val_loader=loader, device=place)
            assert next(result.model.parameters()).device.type == place
            figures.append([row["val_nll"] for row in result.history])
        print(name, figures)
        torch.testing.assert_close(*map(torch.tensor, figures), rtol=2e-3, atol=2e-3)


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit(77)
    compare("cuda")
