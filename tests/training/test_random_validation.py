"""Validation data that are augmented: a run that was killed and resumed is bitwise the same as one that was not."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import pof
from pof.data import DatasetLoader
from tests.cases import batch, batches, mlp

DRAWS: dict[str, Any] = {
    "torch": lambda: torch.randn(5).double(),
    "python": lambda: torch.tensor([random.gauss(0, 1) for _ in range(5)], dtype=torch.float64),
    "numpy": lambda: torch.from_numpy(numpy.random.randn(5)),
}
LOADERS: dict[str, Any] = {
    "plain": DataLoader,
    "generator": lambda data, **options: DataLoader(
        data, shuffle=True, generator=torch.Generator().manual_seed(1), **options
    ),
    "ours": lambda data, num_workers, **options: DatasetLoader(
        data, shuffle=False, seed=0, workers=num_workers, **options
    ),
}


class Augmented(Dataset[Any]):
    """Noise as large as the inputs, drawn from one of the three global generators."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.inputs, self.targets = batch(24, seed=3)

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index] + 3 * DRAWS[self.kind](), self.targets[index]


def run(data: Dataset[Any], loader: str, workers: int, folder: Path | None, die_at: int = 0) -> Any:
    """Four epochs of three steps; dies at a step."""

    def log(row: Any) -> None:
        if row["event"] == "step" and row["step"] == die_at:
            raise KeyboardInterrupt

    torch.manual_seed(0), random.seed(0), numpy.random.seed(0)
    method = pof.Finetune(mlp(dropout=0.5))
    options: Any = {"epochs": 4, "checkpoint_dir": folder, "resume": folder is not None, "device": "cpu"}
    validation = LOADERS[loader](data, batch_size=8, num_workers=workers)
    try:
        return pof.fit(method, batches(3), val_loader=validation, log=log, checkpoint_every=1, **options)
    except KeyboardInterrupt:
        return None


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("kind", "loader"), [("torch", "plain"), ("python", "ours"), ("numpy", "generator")])
def test_killed_and_resumed_is_bitwise_the_same(kind: str, loader: str, workers: int, tmp_path: Path) -> None:
    data = Augmented(kind)
    whole = run(data, loader, workers, None)
    assert run(data, loader, workers, tmp_path, die_at=8) is None
    resumed = run(data, loader, workers, tmp_path)
    assert resumed.best_epoch == whole.best_epoch
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name])
    for row, expected in zip(resumed.history, whole.history, strict=True):
        assert {**row, "seconds": 0} == {**expected, "seconds": 0}
    assert len({row["val_nll"] for row in whole.history}) == 5


@pytest.mark.parametrize("kind", DRAWS)
def test_validation_takes_no_random_numbers_of_the_training(kind: str) -> None:
    """Dropout draws the same masks with other validation data, or none."""
    options: Any = {"epochs": 2, "device": "cpu"}
    found = []
    for loader in (None, DataLoader(Augmented(kind), batch_size=8), DataLoader(Augmented(kind), batch_size=3)):
        torch.manual_seed(0), random.seed(0), numpy.random.seed(0)
        rows = pof.fit(pof.Finetune(mlp(dropout=0.5)), batches(3), val_loader=loader, **options).history
        found.append(([row["train_loss"] for row in rows[1:]], random.random(), numpy.random.rand()))
    assert found[0] == found[1] == found[2]
