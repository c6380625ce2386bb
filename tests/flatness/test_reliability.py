"""Calibration against loops, torchmetrics and a minimiser of scipy's."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional as F

from pof.flatness import calibration, calibration_of, fit_temperature
from pof.training.evaluation import evaluate
from tests.flatness.nets import data, joined, network, untouched


def overconfident(n: int = 500, classes: int = 4, scale: float = 6.0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(n, classes, dtype=torch.float64, generator=g)
    labels = torch.multinomial(z.softmax(dim=1), 1, generator=g)
    return scale * z, labels.flatten()


def ece_by_loop(z: Tensor, labels: Tensor, bins: int) -> float:
    confidence, prediction = z.softmax(dim=1).max(dim=1)
    total = 0.0
    for b in range(bins):
        inside = [n for n in range(len(z)) if b / bins < float(confidence[n]) <= (b + 1) / bins]
        if inside:
            accuracy = sum(bool(prediction[n] == labels[n]) for n in inside) / len(inside)
            total += len(inside) / len(z) * abs(accuracy - sum(float(confidence[n]) for n in inside) / len(inside))
    return total


@pytest.mark.parametrize("bins", [1, 15])
def test_ece_equals_the_loop_and_torchmetrics(bins: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.functional.classification import multiclass_calibration_error
    z, labels = overconfident()
    found = calibration_of(z, labels, bins=bins)
    assert found.ece == pytest.approx(ece_by_loop(z, labels, bins), abs=1e-12)
    # torchmetrics puts a confidence of exactly 1 into a bin of its own; its boundaries are float32.
    p = z.softmax(dim=1).clamp(max=1 - 1e-7)
    theirs = multiclass_calibration_error(p, labels, num_classes=4, n_bins=bins, norm="l1")
    assert found.ece == pytest.approx(float(theirs), abs=1e-6)


def test_diagram_and_scores() -> None:
    z, labels = overconfident()
    found = calibration_of(z, labels)
    p = z.softmax(dim=1)
    assert float(found.share.sum()) == pytest.approx(1.0)
    kept = found.share > 0
    assert float((found.share * (found.accuracy - found.confidence).abs())[kept].sum()) == pytest.approx(found.ece)
    assert found.nll == pytest.approx(float(-p[range(500), labels].log().mean()))
    brier = [sum((float(p[n, c]) - (c == int(labels[n]))) ** 2 for c in range(4)) for n in range(500)]
    assert found.brier == pytest.approx(sum(brier) / 500)
    assert torch.equal(found.confidence.isnan(), ~kept)


def test_single_samples_are_kept_in_order() -> None:
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    found = calibration_of(logits, torch.tensor([0, 1, 0]))
    assert found.correct.tolist() == [True, False, True]
    softplus = math.log1p(math.exp(-2.0))
    assert found.losses.tolist() == pytest.approx([softplus, 2.0 + softplus, math.log(2.0)])


def test_temperature_is_the_minimum_and_calibrates() -> None:
    z, labels = overconfident()
    temperature = fit_temperature(z, labels)
    assert temperature is not None
    best = minimize_scalar(
        lambda t: float(F.cross_entropy(z / t, labels)), bounds=(0.1, 50.0), method="bounded", options={"xatol": 1e-9}
    )
    assert temperature == pytest.approx(best.x, rel=1e-5)
    assert temperature == pytest.approx(6.0, rel=0.2)  # the labels were drawn at a sixth of these logits
    found = calibration_of(z, labels, temperature=temperature)
    assert found.scaled_ece == pytest.approx(ece_by_loop(z / temperature, labels, 15), abs=1e-12)
    assert found.scaled_ece < 0.3 * found.ece


def test_no_finite_temperature() -> None:
    labels = torch.tensor([0, 1, 2])
    right = 3.0 * torch.eye(3)
    assert fit_temperature(right, labels) is None
    assert fit_temperature(-right, labels) is None


def test_of_a_network_with_a_short_last_batch() -> None:
    model = network()
    with untouched(model):
        found = calibration(model, data(), validation_loader=data((30,), seed=3), batches=3)
    x, y = joined(data())
    held = joined(data((30,), seed=3))
    model.eval()
    with torch.no_grad():
        assert found.nll == pytest.approx(float(F.cross_entropy(model(x), y)), rel=1e-12)
        assert found.temperature == fit_temperature(model(held[0]), held[1])
    assert found.samples == 17
    metrics = evaluate(model, data())
    assert found.ece == pytest.approx(metrics.ece, abs=1e-12)
    assert found.nll == pytest.approx(metrics.nll, abs=1e-12)


def test_certain_predictions_in_float32_are_in_the_last_bin() -> None:
    z = torch.tensor([[200.0, 0.0], [200.0, 0.0]])
    found = calibration_of(z, torch.tensor([0, 1]))
    assert found.ece == 0.5
    assert float(found.share[-1]) == 1.0


@pytest.mark.parametrize(("confidence", "bin"), [(0.26, 1), (0.51, 2), (0.76, 3)])
def test_bins_are_closed_on_the_right(confidence: float, bin: int) -> None:
    p = torch.tensor([[confidence, *[(1 - confidence) / 7] * 7]], dtype=torch.float64)
    found = calibration_of(p.log(), torch.tensor([0]), bins=4)
    assert found.share.argmax() == bin
    assert calibration_of(torch.zeros(1, 2), torch.tensor([0]), bins=4).share.argmax() == 1


def test_bad_requests_say_what_to_do() -> None:
    z, labels = overconfident()
    with pytest.raises(ValueError, match="class indices"):
        calibration_of(z, z.softmax(dim=1))
    with pytest.raises(ValueError, match=r"must be in \[0, 3\]; got values from 1 to 5"):
        calibration_of(z[:2], torch.tensor([1, 5]))
    with pytest.raises(ValueError, match="bins must be a whole number >= 1; got 0"):
        calibration_of(z, labels, bins=0)
    with pytest.raises(ValueError, match="no batch"):
        calibration(nn.Linear(1, 2), [])


def test_samples_to_be_ignored_are_left_out() -> None:
    batches = data()
    batches[0][1][:3] = -100
    found, metrics = calibration(network(), batches, validation_loader=batches), evaluate(network(), batches)
    assert found.samples == metrics.n == 14 and found.nll == pytest.approx(metrics.nll, rel=1e-12)
