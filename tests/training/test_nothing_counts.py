"""Mini-batches without a target that counts, or without a sample; integers for a custom loss."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pof
from tests.cases import batch, batches, mlp


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


ENTROPIES: dict[str, Any] = {
    "module": nn.CrossEntropyLoss(ignore_index=-1),
    "weights": nn.CrossEntropyLoss(ignore_index=-1, weight=torch.tensor([0.0, 1.0, 2.0, 1.0], dtype=torch.float64)),
    "function": partial(F.cross_entropy, ignore_index=-1),
    "values": nn.CrossEntropyLoss(ignore_index=-1, reduction="none"),
}
EVERY: dict[str, Any] = {"finetune": pof.Finetune, "pof": pof.PoF, "head ascent": pof.HeadAscent}


def ignoring(first: int) -> list[tuple[Tensor, Tensor]]:
    """The first mini-batch has no label that counts."""
    data = batches(3)
    return [(data[0][0], torch.full_like(data[0][1], first)), *data[1:]]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("loss", ENTROPIES)
def test_a_mini_batch_without_a_label_that_counts_is_no_divergence(loss: str, name: str, accumulation: int) -> None:
    labels = (-1, 0) if loss == "weights" else (-1,)  # class 0 weighs nothing
    for label in labels:
        method = EVERY[name](mlp(), loss=ENTROPIES[loss])
        own = {"optimizer": sgd, "device": "cpu", "epochs": 1, "accumulation": accumulation}
        assert pof.fit(method, ignoring(label), **own).stopped is None
        method.zero_grad()
        out = method(*ignoring(label)[0], *ignoring(label)[0])
        out.loss.backward()
        assert out.loss.item() == 0 and all(not p.grad.any() for p in method.model.parameters() if p.grad is not None)


@pytest.mark.parametrize("loss", ["cross-entropy", "bce", "mse", "ordinal", F.mse_loss])
def test_a_mini_batch_without_a_sample_changes_no_weight(loss: Any) -> None:
    inputs, labels = batch(6)
    targets = labels if loss in {"cross-entropy", "ordinal"} else F.one_hot(labels, 4).double()
    model = mlp()
    before = [p.detach().clone() for p in model.parameters()]
    result = pof.fit(pof.Finetune(model, loss=loss), [(inputs[:0], targets[:0])], epochs=1, device="cpu", optimizer=sgd)
    assert result.stopped is None and all(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))
    for make in (pof.PoF, pof.HeadAscent):
        with pytest.raises(ValueError, match="the mini-batch is empty: give it at least one sample"):
            make(mlp(), loss=loss)(inputs[:0], targets[:0], inputs[:0], targets[:0])


def test_an_integer_column_for_a_loss_of_ones_own_is_said_to_be_class_indices() -> None:
    inputs, labels = batch(6)
    model = nn.Sequential(nn.Linear(inputs[0].numel(), 8), nn.ReLU(), nn.Linear(8, 1)).double()
    data = [(inputs.flatten(1), (labels > 1).long()[:, None])]
    method = pof.Finetune(model, loss=lambda z, y: (z - y).square().mean())
    with pytest.raises(
        ValueError, match=r"give targets \(N, 1\) in floating point \(integers are class indices, \(N,\)\)"
    ):
        pof.fit(method, data, epochs=1, device="cpu")
    assert pof.fit(method, [(data[0][0], data[0][1].double())], epochs=1, device="cpu").stopped is None


@pytest.mark.parametrize("name", EVERY)
def test_one_output_is_refused_by_the_cross_entropy(name: str) -> None:
    """It is always 0, and nothing was trained."""
    inputs, labels = batch(8)
    first = (labels > 1).long()
    for targets in (torch.zeros_like(labels), first, first.double(), first.double()[:, None]):
        with pytest.raises(ValueError, match=r"has one output, .* always 0: give loss='bce' for two classes, or 'mse'"):
            EVERY[name](mlp(classes=1))(inputs, targets, inputs, targets)
    EVERY[name](mlp(classes=1), loss="bce")(inputs, first, inputs, first)


def smoothed_in_place(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets.mul_(0.9).add_(0.05))


def squashed_in_place(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs.sigmoid_(), targets)


@pytest.mark.parametrize("loss", [smoothed_in_place, squashed_in_place])
def test_a_loss_that_writes_into_what_it_is_given_is_refused(loss: Any) -> None:
    """PoF calls it thirty times in a step: the targets were smoothed each time."""
    inputs, labels = batch(8)
    targets = F.one_hot(labels, 4).double()
    for make in (pof.PoF, pof.Finetune):
        with pytest.raises(ValueError, match=r"writes into its outputs or targets .* targets\.clone\(\)"):
            make(mlp(), loss=loss)(inputs, targets.clone(), inputs, targets.clone())


@pytest.mark.parametrize("loss", [*ENTROPIES, "negative log-likelihood"])
def test_labels_to_be_ignored_count_in_no_figure(loss: str) -> None:
    """They were errors, by which the epoch was chosen."""
    function = nn.NLLLoss(ignore_index=-1) if loss not in ENTROPIES else ENTROPIES[loss]
    model, ((x, y),) = mlp(), batches(1)
    y = model(x).argmax(1).detach()
    y[:5] = (y[:5] + 1) % 4
    data = [(x, torch.where(torch.arange(len(y)) < 3, -1, y))]

    def accuracy(outputs: Tensor, targets: Tensor) -> float:
        return float((outputs.argmax(1) == targets).double().mean())

    counting = len(y) - 3
    found = pof.evaluate(model, data, loss=function, metric=accuracy)
    assert isinstance(found, pof.TaskMetrics)
    assert (found.n, found.value, found.figures["error"]) == (counting, 1 - 2 / counting, 2 / counting)
    hundred = [(x, torch.where(data[0][1] == -1, -100, y))]
    own = pof.evaluate(model, hundred, loss=lambda z, t: F.cross_entropy(z, t))
    assert isinstance(own, pof.TaskMetrics) and own.figures["error"] == 2 / counting


def test_a_penalty_leaves_out_what_the_loss_ignores() -> None:
    (x, y), model, found = batch(16), mlp(), []
    for ignored in (-100, -1, 255):
        targets = torch.where(torch.arange(16) < 6, ignored, y)
        method = pof.Regularized(model, pof.FNP(), loss=nn.CrossEntropyLoss(ignore_index=ignored))
        found.append(method(x, targets).metrics["penalty"])
    method = pof.Regularized(model, pof.FNP(), loss=nn.CrossEntropyLoss(ignore_index=255))
    found.append(method(x, targets.byte()).metrics["penalty"])
    every = pof.Regularized(model, pof.FNP(), loss=nn.CrossEntropyLoss())(x, y).metrics["penalty"]
    assert found[0] == found[1] == found[2] == found[3] != every
