"""What a measurement leaves behind, which is nothing, and what it takes for a cross-entropy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pof.flatness import (
    adaptive_sharpness,
    calibration,
    calibration_of,
    feature_statistics,
    head_eigenvalues,
    head_hessian,
    head_margins,
    landscape,
    loss_increment,
    loss_plane,
    m_sharpness,
    radius_distribution,
    sam_sharpness,
    top_eigenvalues,
)
from pof.perturbation.loss import CrossEntropy
from tests.flatness.nets import ConvNet, SoftmaxAfter, data, joined, network

MEASURES: dict[str, Callable[[nn.Module, Any], object]] = {
    "calibration": calibration,
    "eigenvalues": lambda model, loader: top_eigenvalues(model, F.cross_entropy, loader),
    "features": feature_statistics,
    "landscape": landscape,
    "radius": radius_distribution,
    "sharpness": lambda model, loader: sam_sharpness(model, F.cross_entropy, loader),
}


@pytest.mark.parametrize("name", MEASURES)
def test_the_loaders_own_generator_stays(name: str) -> None:
    """So that the training goes on as it would, and two networks are measured on the same mini-batches."""
    generator = torch.Generator().manual_seed(1)
    loader = DataLoader(TensorDataset(*joined(data())), 7, shuffle=True, generator=generator)
    before = generator.get_state()
    MEASURES[name](network(), loader)
    assert torch.equal(generator.get_state(), before)


class Counting(ConvNet):
    """Writes to a buffer in eval mode too; ``replaces``: puts a new one in its place."""

    calls: Tensor

    def __init__(self, classes: int = 3, bias: bool = True, replaces: bool = False) -> None:
        super().__init__(classes, bias)
        self.replaces = replaces
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.replaces:
            self.calls = self.calls + 1
        else:
            self.calls += 1
        return super().forward(x)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("replaces", [False, True])
def test_buffers_written_in_eval_mode_are_put_back(name: str, replaces: bool) -> None:
    model = network(partial(Counting, replaces=replaces))  # type: ignore[arg-type]
    own = model.calls
    MEASURES[name](model, data())
    assert model.calls is own and float(own) == 0


def test_a_graph_that_holds_statistics_is_still_good() -> None:
    model = network().eval()
    loss = model(data()[0][0]).sum()
    sam_sharpness(model, F.cross_entropy, data())
    loss.backward()


class Own(nn.CrossEntropyLoss):
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 2 * super().forward(outputs, targets)


WEIGHT = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
SAME = {
    "torch's module": nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1),
    "a subclass": type("Renamed", (nn.CrossEntropyLoss,), {})(WEIGHT, label_smoothing=0.1),
    "partial": partial(F.cross_entropy, weight=WEIGHT, label_smoothing=0.1),
    "pof's": CrossEntropy(0.1, WEIGHT),
}


@pytest.mark.filterwarnings("ignore:.*returns probabilities")
@pytest.mark.parametrize("name", SAME)
def test_every_cross_entropy_gets_the_logits_of_a_softmax(name: str) -> None:
    plain, ending = network(), network(SoftmaxAfter)
    expected = sam_sharpness(plain, SAME["torch's module"], data()).value
    assert sam_sharpness(plain, SAME[name], data()).value == pytest.approx(expected, rel=1e-12)
    assert sam_sharpness(ending, SAME[name], data()).value == pytest.approx(expected, rel=1e-9)
    usual = top_eigenvalues(plain, SAME["torch's module"], data()).values
    for model in (plain, ending):
        torch.testing.assert_close(top_eigenvalues(model, SAME[name], data()).values, usual)


def test_a_subclass_with_a_forward_of_its_own_is_another_loss() -> None:
    twice = top_eigenvalues(network(), Own(), data()).values
    torch.testing.assert_close(twice, 2 * top_eigenvalues(network(), nn.CrossEntropyLoss(), data()).values)


def test_a_sum_is_refused_however_it_is_given() -> None:
    for measure in (sam_sharpness, top_eigenvalues, loss_plane):
        with pytest.raises(ValueError, match="got reduction='sum'"):
            measure(network(), partial(F.cross_entropy, reduction="sum"), data())


def test_targets_that_the_loss_would_broadcast_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    x, y = torch.randn(6, 3), torch.randn(6)
    for measure in (sam_sharpness, top_eigenvalues, loss_plane):
        with pytest.raises(ValueError, match=r"broadcasts targets \(6,\) against outputs \(6, 1\).*give targets"):
            measure(model, lambda outputs, targets: (outputs - targets).square().mean(), [(x, y)])
    column = sam_sharpness(model, nn.MSELoss(), [(x, y.unsqueeze(1))])
    flat = sam_sharpness(model, lambda outputs, targets: (outputs[:, 0] - targets).square().mean(), [(x, y)])
    assert column.value == pytest.approx(flat.value, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_steps_in_half_precision_are_refused(dtype: torch.dtype) -> None:
    model, loader = network().to(dtype), [(x.to(dtype), y) for x, y in data()]
    for measure in (sam_sharpness, adaptive_sharpness, partial(m_sharpness, m=5), loss_plane):
        with pytest.raises(ValueError, match=r"weights in torch\.b?float16 round small steps away.*\.float\(\)"):
            measure(model, F.cross_entropy, loader)


def test_features_of_a_network_in_half_precision() -> None:
    wide = network().bfloat16().float()
    half = network().bfloat16()
    found = feature_statistics(half, [(x.bfloat16(), y) for x, y in data()])
    expected = feature_statistics(wide, [(x.bfloat16().float(), y) for x, y in data()])
    assert found.margins.dtype == torch.float32
    # Features of 8 bits.
    torch.testing.assert_close(found.margins, expected.margins, rtol=0.05, atol=0.05)


def test_public_functions_of_features_compute_outside_of_autocast() -> None:
    g = torch.Generator().manual_seed(0)
    features, weight, bias = (torch.randn(*size, generator=g) for size in ((50, 6), (4, 6), (4,)))
    labels = torch.randint(4, (50,), generator=g)

    def found() -> tuple[Tensor, ...]:
        top = head_eigenvalues(features, weight, bias, 2)
        return top.values, head_hessian(features, weight, bias), head_margins(features, labels, weight, bias)

    expected = found()
    with torch.autocast("cpu", torch.bfloat16):
        inside = found()
    assert all(torch.equal(a, b) for a, b in zip(inside, expected, strict=True))


def test_weights_in_half_precision_do_not_narrow_the_features() -> None:
    g = torch.Generator().manual_seed(0)
    features, weight = torch.randn(50, 6, generator=g), torch.randn(4, 6, generator=g).bfloat16()
    assert torch.equal(head_hessian(features, weight, None), head_hessian(features, weight.float(), None))
    found, expected = (head_eigenvalues(features, w, None).values for w in (weight, weight.float()))
    assert torch.equal(found, expected)


def test_where_no_target_counts_there_is_no_flat_head() -> None:
    ignored = [(x, torch.full_like(y, -100)) for x, y in data()]
    for parameters in ("head", "all"):
        with pytest.raises(ValueError, match="no target counts"):
            top_eigenvalues(network(), F.cross_entropy, ignored, parameters=parameters)
    with pytest.raises(ValueError, match="no target counts"):
        landscape(network(), data(), test_loader=ignored)
    found, expected = landscape(network(), [ignored[0], *data()]), landscape(network(), data())
    assert found.radius == expected.radius and torch.equal(found.train.loss, expected.train.loss)


def test_one_direction_has_an_increment_and_no_standard_error() -> None:
    first = data()[:1]
    found = loss_increment(network(), first, data())
    assert found.value == float(found.increments[0]) and found.standard_error != found.standard_error


@pytest.mark.parametrize("temperature", [-1.0, 0.0, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be a finite number > 0"):
        calibration_of(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64), temperature=temperature)


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(*joined(data()), strict=True))


@pytest.mark.parametrize("batches", [None, 2, 9])
def test_a_loader_of_a_stream_has_no_length(batches: int | None) -> None:
    told: list[tuple[str, int, int | None]] = []
    found = calibration(network(), DataLoader(Stream(), 7), batches=batches, progress=lambda *each: told.append(each))
    assert found.samples == (14 if batches == 2 else 17)
    assert told[0] == ("calibration", 1, batches)
    told.clear()
    calibration(network(), data(), batches=batches, progress=lambda *each: told.append(each))
    assert told[0] == ("calibration", 1, 2 if batches == 2 else 3)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_gradients_that_are_off_outside_are_on_inside(name: str, around: Any) -> None:
    model = network()
    with around():
        inside = MEASURES[name](model, data())
        assert not torch.is_grad_enabled()
    assert repr(inside) == repr(MEASURES[name](network(), data()))
