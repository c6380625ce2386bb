"""Your own nn.Module and DataLoader: train, post-train with `pof.fit`, compare before and after.

    python examples/own_module.py

There are three splits: training; validation, by which `fit` picks the epoch; test, used once, at the end.
"""

from __future__ import annotations

import copy

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import pof


class Net(nn.Module):
    """Any module that returns logits; the last linear layer is found automatically."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2))
        self.hidden = nn.Linear(256, 64)
        self.out = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 8, 8)."""
        return self.out(self.hidden(self.stem(images).flatten(1)).relu())


def load() -> list[DataLoader]:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    everything = TensorDataset(images, torch.tensor(digits.target))
    parts = random_split(everything, (400, 200, 1197), generator=torch.Generator().manual_seed(0))
    return [DataLoader(part, batch_size=40, shuffle=number == 0) for number, part in enumerate(parts)]


def main() -> None:
    torch.manual_seed(0)
    train, val, test = load()
    model = Net()

    # Stands for the network you already have; here the same loop trains it, with plain fine-tuning.
    def start(parameters):
        return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)

    pof.fit(pof.Finetune(model), train, epochs=8, optimizer=start, val_loader=val)
    before = pof.evaluate(model, test)
    head = copy.deepcopy(model.out.state_dict())

    method = pof.PoF(model)

    def post(parameters):
        return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, nesterov=True)

    result = pof.fit(method, train, epochs=4, optimizer=post, val_loader=val)
    after = pof.evaluate(result.model, test)

    print(f"head: {pof.find_head(model)}; {result.message}")
    for row in result.history[1:]:
        error = 100 * row["val_error"]
        print(f"epoch {row['epoch']}: mean radius {row['train_radius']:.3f}, validation error {error:.2f} %")
    print(f"test error {100 * before.error:.2f} % -> {100 * after.error:.2f} %, n = {after.n}, one seed")
    print("head unchanged:", all(torch.equal(value, head[name]) for name, value in model.out.state_dict().items()))


if __name__ == "__main__":
    main()
