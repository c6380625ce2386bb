"""Lightning: post-train an existing module with PoF; its code, its data and the Trainer stay.

    python examples/lightning_module.py

What is new: the base class `PostTraining`, and `self.method`.
"""

from __future__ import annotations

import logging

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

import pof
from pof.integrations.lightning import PostTraining


class Digits(pl.LightningModule):
    """An ordinary module, unchanged."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
        self.net = nn.Sequential(*layers, nn.Linear(256, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Plain cross-entropy."""
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Share of wrong answers."""
        error = (self.net(batch[0]).argmax(dim=1) != batch[1]).float().mean()
        self.log("error", error, batch_size=len(batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer of the first training."""
        return torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9)


class PostTrained(PostTraining, Digits):
    """The same module with another loss."""

    def __init__(self, trained: Digits) -> None:
        super().__init__()
        self.net = trained.net
        self.method = pof.PoF(self.net)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer of the post-training."""
        return self.method.build_optimizer(torch.optim.SGD, lr=2e-3, momentum=0.9)


def fit(module: pl.LightningModule, *loaders: DataLoader) -> dict[str, float]:
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = pl.Trainer(max_epochs=5, accelerator="cpu", devices=1, **quiet)
    trainer.fit(module, *loaders)
    return {name: round(float(value), 4) for name, value in trainer.callback_metrics.items()}


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.manual_seed(0)
    images, labels = map(torch.tensor, load_digits(return_X_y=True))
    data = TensorDataset(images.float().view(-1, 1, 8, 8) / 16, labels)
    parts = random_split(data, (500, 200, 1097), generator=torch.Generator().manual_seed(0))
    train, val, test = (DataLoader(part, batch_size=50, shuffle=number == 0) for number, part in enumerate(parts))
    trained = Digits()
    print("trained:", fit(trained, train, val))
    before = pof.evaluate(trained.net, test)
    print("post-trained:", fit(PostTrained(trained), train, val))
    print(f"{before.n} test samples, one seed, before {before}, after {pof.evaluate(trained.net, test)}")


if __name__ == "__main__":
    main()
