"""What the log of a regularised training holds."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import pof
from tests.cases import batch, mlp


@pytest.mark.parametrize("strength", [0.5, 0.0])
def test_the_loss_without_and_with_the_penalty_are_two_rows(strength: float) -> None:
    inputs, targets = batch()
    model, rows = mlp(), []
    start = copy.deepcopy(model)
    make: Any = lambda p: torch.optim.SGD(p, lr=0.1)  # noqa: E731
    method = pof.Regularized(model, pof.FNP(strength=strength))
    pof.fit(method, [(inputs, targets)], epochs=1, optimizer=make, device="cpu", log=rows.append)
    (step,) = [row for row in rows if row["event"] == "step"]
    start.requires_grad_(False)
    plain = float(F.cross_entropy(start(inputs), targets))
    features = pof.split(start).features(inputs)
    penalty = strength * float(features.square().mean())
    assert step["loss_without_penalty"] == pytest.approx(plain, rel=1e-12)
    assert step["penalty"] == pytest.approx(penalty, rel=1e-12)
    assert step["loss"] == pytest.approx(plain + penalty, rel=1e-12)
    epoch = rows[-2]
    assert (epoch["train_loss"], epoch["train_loss_without_penalty"]) == (step["loss"], step["loss_without_penalty"])


def test_l2sp_of_the_head_alone_is_trained_on() -> None:
    """Its ``strength`` is that of the extractor, and may be 0."""
    inputs, targets = batch()
    model = mlp()
    method = pof.Regularized(model, pof.L2SP(model, strength=0.0, head_strength=0.5))
    out = method(inputs, targets)
    penalty = 0.25 * sum(p.detach().square().sum() for p in model.fc.parameters())
    torch.testing.assert_close(out.loss - F.cross_entropy(model(inputs), targets), penalty)
    nothing = pof.Regularized(model, pof.L2SP(model, strength=0.0, head_strength=0.0))(inputs, targets)
    assert torch.equal(nothing.loss, F.cross_entropy(model(inputs), targets))


def test_a_step_may_have_labels_of_two_kinds() -> None:
    model = mlp()
    method = pof.Regularized(model, pof.AdaRand(torch.zeros(4, 6), torch.ones(4, 6)))
    inputs, targets = batch()
    method(inputs, targets)
    method(inputs, F.one_hot(targets, 4))
    assert [labels.tolist() for _, labels in method._seen] == [targets.tolist()] * 2
    method.after_step()


def test_a_penalty_without_strength_says_nothing_of_a_frozen_extractor(recwarn: pytest.WarningsRecorder) -> None:
    model = mlp()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("fc"))
    for strength in (0.0, 1.0):
        list(pof.Regularized(model, pof.FNP(strength=strength)).trainable_parameters())
        assert len(recwarn) == bool(strength)
