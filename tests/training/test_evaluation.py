"""Error, likelihood and calibration against slow twins."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pof._support.calibration import expected_calibration_error
from pof.training.evaluation import evaluate


def data(n: int = 23) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(n, 4), torch.randint(3, (n,))


def test_figures_weigh_samples_not_batches() -> None:
    inputs, targets = data()
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    metrics = evaluate(model, DataLoader(TensorDataset(inputs, targets), batch_size=10))
    with torch.no_grad():
        logits = model.eval()(inputs)
    assert metrics.error == pytest.approx(float((logits.argmax(1) != targets).double().mean()))
    assert metrics.nll == pytest.approx(float(nn.functional.cross_entropy(logits, targets)), rel=1e-6)
    assert (metrics.n, metrics.num_classes) == (23, 3)


def test_modes_are_put_back_and_statistics_untouched() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    evaluate(model, [data()])
    assert [m.training for m in model] == [True, False, True]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_calibration_error_equals_a_loop_over_bins() -> None:
    torch.manual_seed(0)
    confidence, correct = torch.rand(500, dtype=torch.float64), torch.rand(500) < 0.6
    confidence[0] = 1.0
    slow = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            gap = correct[inside].double().mean() - confidence[inside].mean()
            slow += float(inside.double().mean() * gap.abs())
    assert float(expected_calibration_error(confidence, correct)) == pytest.approx(slow, rel=1e-12)


def test_uniform_prediction_has_the_likelihood_of_chance() -> None:
    model = nn.Linear(4, 3)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    assert evaluate(model, [data()]).nll == pytest.approx(math.log(3), rel=1e-6)


def test_bad_data_is_named() -> None:
    model = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\].*got values from 0 to 7"):
        evaluate(model, [(torch.randn(2, 4), torch.tensor([0, 7]))])
    with pytest.raises(ValueError, match="the loader gave no batch"):
        evaluate(model, [])
    with pytest.raises(ValueError, match="class indices"):
        evaluate(model, [(torch.randn(2, 4), torch.rand(2, 3))])


def test_bins_of_the_calibration_error_are_closed_on_the_right() -> None:
    """With two bins 0.5 is in the first one: |0 - 0.5| and |1 - 0.9|; in one bin they would cancel in part."""
    confidence, correct = torch.tensor([0.5, 0.9]), torch.tensor([False, True])
    assert float(expected_calibration_error(confidence, correct, bins=2)) == pytest.approx(0.3)
    assert float(expected_calibration_error(torch.ones(3), torch.ones(3, dtype=torch.bool))) == 0
