"""Sharpness against a loop that moves the weights by hand."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pof.flatness import adaptive_sharpness, loss_plane, m_sharpness, sam_sharpness
from pof.flatness.sharpness import rechunk
from tests.flatness.nets import ConvNet, data, joined, network, untouched

LOSS = nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64))


def by_hand(model: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, rho: float, eta: float | None = None) -> float:
    """L(w + eps) - L(w) on one set of samples, with the weights of a copy moved."""
    moved = copy.deepcopy(model).eval().requires_grad_()
    before = loss(moved(x), y)
    gradients = torch.autograd.grad(before, list(moved.parameters()))
    scales = [torch.ones_like(p) if eta is None else p.detach().abs() + eta for p in moved.parameters()]
    norm = sum((t * g).square().sum() for t, g in zip(scales, gradients, strict=True)).sqrt()
    with torch.no_grad():
        for p, t, g in zip(moved.parameters(), scales, gradients, strict=True):
            p += rho * t * t * g / norm
        return float(loss(moved(x), y) - before)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), LOSS], ids=["plain", "class weights"])
def test_one_perturbation_for_all_data(loss: nn.Module) -> None:
    model = network()
    x, y = joined(data())
    with untouched(model):
        sam = sam_sharpness(model, loss, data(), rho=0.3)
        adaptive = adaptive_sharpness(model, loss, data(), rho=0.3, eta=0.02)
    # Batches are summed in another order than the whole: rounding in float64.
    assert sam.value == pytest.approx(by_hand(model, loss, x, y, 0.3), rel=1e-10)
    assert adaptive.value == pytest.approx(by_hand(model, loss, x, y, 0.3, eta=0.02), rel=1e-10)
    assert sam.loss == pytest.approx(float(loss(copy.deepcopy(model).eval()(x), y).detach()), rel=1e-12)
    assert sam.chunk_samples == (17,)


@pytest.mark.parametrize("m", [1, 5, 17, 30])
def test_m_sharpness_is_the_mean_over_chunks_by_samples(m: int) -> None:
    model, loss = network(), nn.CrossEntropyLoss()
    x, y = joined(data())
    with untouched(model):
        found = m_sharpness(model, loss, data(), m, rho=0.3)
    chunks = list(zip(x.split(m), y.split(m), strict=True))
    rises = [by_hand(model, loss, a, b, 0.3) for a, b in chunks]
    assert found.rises.tolist() == pytest.approx(rises, rel=1e-10)
    assert found.value == pytest.approx(
        sum(r * len(b) for r, (_, b) in zip(rises, chunks, strict=True)) / 17, rel=1e-10
    )


def test_asam_does_not_see_a_scale_moved_to_the_next_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)).double()
    batches = [(x.flatten(1), y) for x, y in data()]
    before = adaptive_sharpness(model, LOSS, batches, eta=0.0), sam_sharpness(model, LOSS, batches)
    with torch.no_grad():
        model[0].weight *= 8
        model[2].weight /= 8
    after = adaptive_sharpness(model, LOSS, batches, eta=0.0), sam_sharpness(model, LOSS, batches)
    assert after[0].value == pytest.approx(before[0].value, rel=1e-9)
    assert after[1].value > 2 * before[1].value


def test_no_gradient_no_sharpness() -> None:
    model = network()
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.copy_(torch.tensor([1e4, 0.0, 0.0]))
    batches = [(x, torch.zeros_like(y)) for x, y in data()]
    found = sam_sharpness(model, nn.CrossEntropyLoss(), batches)
    assert found.value == 0.0
    assert adaptive_sharpness(model, nn.CrossEntropyLoss(), batches).value == 0.0


def test_dict_batches_are_cut_like_tensors() -> None:
    class Wrapped(ConvNet):
        def forward(self, pixels: Tensor) -> dict[str, Tensor]:
            return {"logits": super().forward(pixels)}

    expected = m_sharpness(network(), nn.CrossEntropyLoss(), data(), 5)
    batches = [{"pixels": x, "labels": y} for x, y in data()]
    assert torch.equal(m_sharpness(network(Wrapped), nn.CrossEntropyLoss(), batches, 5).rises, expected.rises)


@pytest.mark.parametrize("m", [1, 2, 7, 16, 100])
def test_chunks_keep_every_sample_in_order(m: int) -> None:
    x, y = joined(data())
    chunks = list(rechunk(data(), m))
    assert torch.equal(torch.cat([a for a, _ in chunks]), x)
    assert torch.equal(torch.cat([b for _, b in chunks]), y)
    assert {len(b) for _, b in chunks[:-1]} <= {m}


def test_targets_that_are_ignored_do_not_count() -> None:
    batches = data()
    batches[0][1][:5] = -100
    x, y = joined(batches)
    for weight in (None, torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)):
        loss = nn.CrossEntropyLoss(weight=weight)
        whole, parts = sam_sharpness(network(), loss, [(x, y)]), sam_sharpness(network(), loss, batches)
        assert parts.loss == pytest.approx(whole.loss, rel=1e-12)
        assert parts.value == pytest.approx(whole.value, rel=1e-9)


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64)])
def test_a_mini_batch_without_a_target_that_counts_has_no_part(weight: Tensor | None) -> None:
    loss = nn.CrossEntropyLoss(weight=weight)
    batches, part = data((7, 4, 1)), data((7, 4, 1))[:2]
    batches[2][1][:] = -100 if weight is None else 1
    assert sam_sharpness(network(), loss, batches) == sam_sharpness(network(), loss, part)
    assert adaptive_sharpness(network(), loss, batches) == adaptive_sharpness(network(), loss, part)
    for m in (1, 11):
        found, expected = m_sharpness(network(), loss, batches, m), m_sharpness(network(), loss, part, m)
        counting = found.rises[: len(expected.rises)]
        assert found.value == expected.value and torch.equal(counting, expected.rises)
    assert torch.equal(
        loss_plane(network(), loss, batches, points=3).loss, loss_plane(network(), loss, part, points=3).loss
    )
    for measure in (sam_sharpness, partial(m_sharpness, m=3), loss_plane):
        with pytest.raises(ValueError, match="no target counts: all are to be ignored"):
            measure(network(), loss, batches[2:])


class Multiplied(nn.Module):
    """Two inputs, one of them with a table beside it; and a loss of two targets."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(4, 4).double(), nn.Linear(4, 3).double()

    def forward(self, first: Tensor, second: dict[str, Tensor]) -> Tensor:
        return self.head(torch.tanh(self.layer(first) * second["values"]) @ second["table"])


def of_two(outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
    return ((outputs - targets["a"]).square() + targets["b"].unsqueeze(1) * outputs).mean()


def test_several_inputs_and_targets_are_cut_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second, a = (torch.randn(8, n, dtype=torch.float64, generator=generator) for n in (4, 4, 3))
    b, table = torch.rand(8, dtype=torch.float64, generator=generator), torch.eye(4, dtype=torch.float64)

    def batches(*sizes: int) -> list[Any]:
        parts = zip(*(each.split(list(sizes)) for each in (first, second, a, b)), strict=True)
        return [((x, {"values": z, "table": table}), {"a": p, "b": q}) for x, z, p, q in parts]

    model = Multiplied()
    found = m_sharpness(model, of_two, batches(5, 3), 2, rho=0.3)
    expected = [sam_sharpness(model, of_two, [each], rho=0.3).value for each in batches(2, 2, 2, 2)]
    assert found.rises.tolist() == pytest.approx(expected, rel=1e-12) and found.chunk_samples == (2, 2, 2, 2)
    assert loss_plane(model, of_two, batches(5, 3), points=3).samples == 8


def test_inputs_that_cannot_be_cut_are_refused() -> None:
    short, long = (torch.zeros(2, n, dtype=torch.float64) for n in (3, 4))
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"mini-batches of \(2, 3\) and \(2, 4\) do not join: pad them alike"):
        m_sharpness(network(), LOSS, [(short, labels), (long, labels)], 2)
    with pytest.raises(ValueError, match="packed sequences, sparse and nested tensors cannot be cut into chunks"):
        rechunk([(short.to_sparse(), labels)], 2)


def test_bad_requests_say_what_to_do() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"rho must be a finite number >= 0; got -1"):
        sam_sharpness(model, LOSS, data(), rho=-1.0)
    with pytest.raises(ValueError, match=r"eta must be a finite number >= 0; got -1"):
        adaptive_sharpness(model, LOSS, data(), eta=-1.0)
    with pytest.raises(ValueError, match=r"m must be a whole number >= 1; got 0"):
        m_sharpness(model, LOSS, data(), 0)
    with pytest.raises(ValueError, match="reduction='none'"):
        sam_sharpness(model, nn.CrossEntropyLoss(reduction="none"), data())


def test_a_failing_loss_leaves_everything_as_it_was() -> None:
    def fails(logits: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError("broken loss")

    model = network()
    with untouched(model), pytest.raises(RuntimeError, match="broken loss"):
        sam_sharpness(model, fails, data())
