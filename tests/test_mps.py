"""Apple's MPS, as tests/mps.py puts it in: what would be float64 is computed otherwise there, from end to end."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pof
from pof.app.cli import main
from pof.flatness import (
    calibration,
    feature_components,
    feature_statistics,
    hessian_trace,
    loss_increment,
    loss_plane,
    m_sharpness,
    spectral_density,
)
from tests.interrupted import resumes_bitwise
from tests.mps import MPS, mps
from tests.on_gpu import compare

LOSS = nn.CrossEntropyLoss()


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    with mps():
        yield


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def loader() -> DataLoader[Any]:
    drawn = torch.Generator().manual_seed(1)
    targets = torch.randint(3, (96,), generator=drawn)
    return DataLoader(TensorDataset(torch.randn(96, 4, generator=drawn) + targets[:, None], targets), batch_size=32)


def test_the_device_has_no_float64() -> None:
    tensor = torch.ones(2, device=MPS)
    with pytest.raises(TypeError, match="float64"):
        tensor.double()
    with pytest.raises(TypeError, match="float64"):
        torch.zeros(2, dtype=torch.float64, device=MPS)
    assert tensor.cpu().double().dtype == torch.float64


def test_methods_do_there_what_they_do_on_a_processor() -> None:
    compare("mps")


@pytest.mark.parametrize(
    "measure",
    [
        lambda model: pof.landscape(model, loader(), test_loader=loader(), points=5).train.loss,
        lambda model: pof.radius_distribution(model, loader(), test_loader=loader()).train.radius,
        lambda model: pof.top_eigenvalues(model, LOSS, loader()).values,
        lambda model: pof.top_eigenvalues(model, LOSS, loader(), parameters="all").values,
        lambda model: hessian_trace(model, LOSS, loader()).value,
        lambda model: spectral_density(model, LOSS, loader(), steps=4, probes=2).density,
        lambda model: loss_plane(model, LOSS, loader(), points=3).loss,
        lambda model: m_sharpness(model, LOSS, loader(), m=16).value,
        lambda model: loss_increment(model, loader(), loader()).value,
        lambda model: calibration(model, loader()).ece,
        lambda model: feature_components(model, loader()).explained,
        lambda model: feature_statistics(model, loader()).entropy,
    ],
)
def test_measurements_are_those_of_a_processor(measure: Callable[[nn.Module], Any]) -> None:
    model = network()
    expected = torch.as_tensor(measure(model), dtype=torch.float64)
    found = torch.as_tensor(measure(model.to(MPS)), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_run_that_was_stopped_resumes_bitwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ["train", "--model", "small-cnn", "--data", "digits", "--device", "mps", "--epochs", "1"]
    assert main([*run, "--out", str(tmp_path / "whole")]) == 0
    assert resumes_bitwise(run, tmp_path, monkeypatch, step=5)


def test_float64_of_the_data_is_float32_there() -> None:
    inputs = torch.randn(32, 4, dtype=torch.float64)
    batches = [(inputs, inputs[:, :3] + 1.0)]
    result = pof.fit(pof.Finetune(network(), loss="mse"), batches, epochs=2, val_loader=batches, device=MPS)
    assert result.stopped is None and len(result.history) == 3


def test_improve_finds_the_device_by_itself() -> None:
    result = pof.improve(network(), loader(), loader(), budget=8)
    assert next(result.model.parameters()).device == MPS


def test_the_command_line(tmp_path: Path) -> None:
    base, better = str(tmp_path / "base"), str(tmp_path / "better")
    assert main(["train", "--model", "small-cnn", "--data", "digits", "--epochs", "1", "--out", base]) == 0
    assert main(["post-train", "--weights", base, "--epochs", "1", "--out", better]) == 0
    assert main(["evaluate", better]) == 0
    assert json.loads((tmp_path / "better" / "environment.json").read_text())["device"] == "mps"


def test_deep_copies_are_on_the_device() -> None:
    model = network().to(MPS)
    again = copy.deepcopy(model)
    assert all(parameter.device == MPS for parameter in again.parameters())
    assert isinstance(again[0].weight, nn.Parameter)
