"""The averages themselves, by hand: what each weighs, and from when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pof
from pof.methods.averaged import Average
from pof.methods.base import Method
from tests.cases import batch, batches, mlp

EPOCHS = (1.0, 2.0, 4.0, 8.0)
"""All parameters at the end of each epoch, of one step."""


@pytest.mark.parametrize(
    ("average", "options", "expected"),
    [
        ("swa", {}, [1, 3 / 2, 7 / 3, 15 / 4]),
        ("swa", {"start": 0.5}, [1, 2, 4, 6]),
        ("lawa", {"window": 2}, [1, 3 / 2, 3, 6]),
        ("lawa", {"window": 9}, [1, 3 / 2, 7 / 3, 15 / 4]),
        ("ema", {"decay": 0.75}, [1, 5 / 4, 31 / 16, 221 / 64]),
    ],
)
def test_an_average_weighs_the_epochs_as_its_name_says(
    average: Average, options: dict[str, Any], expected: list[float]
) -> None:
    method = pof.Averaged(pof.Finetune(mlp()), average, **options)
    for epoch, value in enumerate(EPOCHS):
        with torch.no_grad():
            for parameter in method.model.parameters():
                parameter.fill_(value)
        method.after_step()
        method.after_epoch(epoch, len(EPOCHS), lambda: [])
        for found in method.candidate().parameters():
            torch.testing.assert_close(found, torch.full_like(found, expected[epoch]))


@pytest.mark.parametrize(("average", "options"), [("ema", {"decay": 0.999}), ("swa", {}), ("lawa", {"window": 500})])
def test_an_average_that_is_cast_to_half_precision_still_moves(average: Average, options: dict[str, Any]) -> None:
    """As Lightning does with ``precision="bf16-true"``, after the method is made."""
    method = pof.Averaged(pof.Finetune(mlp()), average, **options).bfloat16()
    for step in range(300):
        with torch.no_grad():
            for parameter in method.model.parameters():
                parameter.fill_(1.0 if step == 0 else 2.0)
        method.after_step()
        method.after_epoch(step, 300, lambda: [])
    expected = 2.0 - 0.999**299 if average == "ema" else 2.0 - 1 / 300
    for found in method.candidate().parameters():
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, torch.full_like(found, expected))


def test_what_a_regulariser_trains_beside_the_model_is_trained_under_an_average_too() -> None:
    model = mlp()
    inner = pof.Regularized(model, pof.regularizers.BiTuning(model, "fc", dimension=3, keys=2), "fc")
    expected = list(inner.trainable_parameters())
    found = list(pof.Averaged(inner, "ema").trainable_parameters())
    assert len(expected) == 6 and len(found) == 6
    assert all(a is b for a, b in zip(found, expected, strict=True))


def test_an_average_in_a_loop_of_ones_own_has_the_statistics_of_the_iterate() -> None:
    """It had those of the incoming network where nobody called ``after_epoch``."""
    method = pof.Averaged(pof.Finetune(mlp(norm=True)), "ema")
    for inputs, targets in batches(4):
        method(inputs + 3, targets)
        method.after_step()
    assert torch.equal(method.candidate().norm.running_mean, method.model.norm.running_mean)
    method.after_epoch(0, 1, lambda: batches(4))
    estimated = method.candidate().norm.running_mean.clone()
    assert not torch.allclose(estimated, method.model.norm.running_mean)
    assert torch.equal(method.candidate().norm.running_mean, estimated)


def test_an_average_that_has_moved_follows_the_iterates_statistics_also_after_a_checkpoint() -> None:
    def made() -> pof.Averaged:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 3))
        return pof.Averaged(pof.Finetune(model), "ema")

    method = made()
    method.train()
    for _ in range(3):
        method(5 + 3 * torch.randn(16, 6), torch.arange(16) % 3)
        method.after_step()
    again = made()
    again.load_state_dict(method.state_dict())
    for name, value in method.candidate().state_dict().items():
        assert torch.equal(value, again.candidate().state_dict()[name]), name


@pytest.mark.parametrize("average", ["swa", "ema", "lawa"])
def test_a_head_that_is_held_fixed_is_bitwise_the_same_in_the_average(average: Average) -> None:
    method = pof.Averaged(pof.PoF(mlp(classes=90).float(), "fc"), average, window=7)
    head = method.model.get_submodule("fc")
    before = [parameter.clone() for parameter in head.parameters()]
    for epoch in range(9):
        method.after_step()
        method.after_epoch(epoch, 9, lambda: [])
    for now, then in zip(method.candidate().get_submodule("fc").parameters(), before, strict=True):
        assert torch.equal(now, then)


def test_the_average_carries_no_hooks_of_the_method() -> None:
    model = mlp()
    method = pof.Averaged(pof.Regularized(model, pof.DELTA(model, ["body"]), "fc"), "ema")
    assert not any(module._forward_hooks for module in method.averaged.modules())
    assert any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("average", ["ema", "swa", "lawa"])
def test_the_iterates_are_those_of_the_same_training_without_an_average(average: Average, norms: bool) -> None:
    """The pass for the statistics of batch norms moved the loader's order."""
    inputs, targets = batch(24)

    def trained(make: Callable[[nn.Module], Method]) -> list[float]:
        torch.manual_seed(0)
        loader = DataLoader(TensorDataset(inputs, targets), 6, shuffle=True, generator=torch.Generator().manual_seed(1))
        losses: list[float] = []
        pof.fit(
            make(mlp(norm=norms)),
            loader,
            epochs=3,
            device="cpu",
            optimizer=lambda p: torch.optim.SGD(p, 0.1),
            schedule=pof.Schedule("constant"),
            log=lambda row: losses.append(row["loss"]) if row["event"] == "step" else None,
        )
        return losses

    assert len(plain := trained(pof.Finetune)) == 12
    assert trained(lambda model: pof.Averaged(pof.Finetune(model), average)) == plain
