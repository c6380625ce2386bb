"""Three short runs on digits that the tests of the report share: before, and two that start from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pof.app.cli import main

DATA = ["--data", "digits", "--train_size", "200", "--model", "small-cnn", "--batch_size", "32", "--device", "cpu"]
DATA += ["--precision", "fp32"]


def train(command: str, folder: Path, *options: str) -> Path:
    assert main([command, *DATA, "--out", str(folder), *options]) == 0
    return folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    before = str(train("train", folder / "train", "--epochs", "6"))
    train("post-train", folder / "pof", "--weights", before, "--epochs", "2", "--lr", "1e-2")
    train("post-train", folder / "sam", "--weights", before, "--epochs", "2", "--lr", "1e-2", "--method", "sam")
    return folder
