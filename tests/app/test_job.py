"""The learning rate of ``--lr auto``."""

from __future__ import annotations

from pathlib import Path

import pytest

from pof.app.job import find_learning_rate as learning_rate
from pof.app.options import ModelOptions, TrainOptions


def folder(path: Path, training: str) -> ModelOptions:
    path.mkdir()
    (path / "config.yaml").write_text(f"training: {training}\n", encoding="utf-8")
    return ModelOptions("small-cnn", weights=str(path))


@pytest.mark.parametrize(("method", "rate"), [("head-ascent", 0.05), ("finetune", 0.05), ("pof", 1.6e-4)])
def test_it_follows_the_training(method: str, rate: float, tmp_path: Path) -> None:
    model = folder(tmp_path / "run", "{lr: 0.1, optimizer: sgd}")
    assert learning_rate(model, TrainOptions(method, lr="auto")) == pytest.approx(rate)


def test_a_number_is_taken_as_it_is() -> None:
    assert learning_rate(ModelOptions("small-cnn"), TrainOptions("pof", lr=0.3)) == 0.3


def test_it_says_what_it_cannot_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights are 'net.pth': give --lr"):
        learning_rate(ModelOptions("small-cnn", weights="net.pth"), TrainOptions("pof", lr="auto"))
    with pytest.raises(ValueError, match=r"lr 0.1 of 'adamw', now 'sgd'.*give --lr"):
        learning_rate(folder(tmp_path / "a", "{lr: 0.1, optimizer: adamw}"), TrainOptions("pof", lr="auto"))
    with pytest.raises(ValueError, match=r"lr None"):
        learning_rate(folder(tmp_path / "b", "{}"), TrainOptions("pof", lr="auto"))
