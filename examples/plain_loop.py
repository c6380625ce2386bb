"""A custom loop with Accelerate: PoF is the loss; mixed precision, accumulation and clipping stay yours.

    python examples/plain_loop.py

Without Accelerate use the same loop with `loss.backward()` and `torch.nn.utils.clip_grad_norm_`.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

import pof

ACCUMULATION = 2


def load() -> tuple[DataLoader, DataLoader]:
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target))
    train, test = random_split(data, (500, 1297), generator=torch.Generator().manual_seed(0))
    return DataLoader(train, batch_size=25, shuffle=True), DataLoader(test, batch_size=200)


def pretrain(model: nn.Module, loader: DataLoader) -> None:
    """Stands for the training you have already done."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(10):
        for inputs, targets in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()


def main() -> None:
    torch.manual_seed(0)
    train, test = load()
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    pretrain(model, train)
    before = pof.evaluate(model, test)

    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    method = pof.PoF(model)
    optimizer = torch.optim.SGD(method.trainable_parameters(), lr=2e-3, momentum=0.9)
    method, optimizer, train = accelerator.prepare(method, optimizer, train)
    for epoch in range(5):
        radii = []
        for number, ((inputs, targets), reference) in enumerate(pof.with_reference(train), start=1):
            out = method(inputs, targets, *reference)
            accelerator.backward(out.loss / ACCUMULATION)
            radii.append(out.radius)
            if number % ACCUMULATION == 0:  # 20 mini-batches, all of 25 samples
                accelerator.clip_grad_norm_(method.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        print(f"epoch {epoch + 1}: mean radius {torch.stack(radii).mean():.3f}")

    after = pof.evaluate(model, test)
    print(f"test error {100 * before.error:.2f} % -> {100 * after.error:.2f} %, n = {after.n}, one seed")


if __name__ == "__main__":
    main()
