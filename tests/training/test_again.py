"""A method, or an optimizer, that is used for a second run: it begins where the first one left the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import pof
from tests.cases import batches, mlp

AVERAGES = ("ema", "swa", "lawa")


def sgd(lr: float) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def fit(method: pof.Method, data: Any = None, optimizer: Any = None, **options: Any) -> Any:
    data = batches(4) if data is None else data
    own = {"epochs": 2, "device": "cpu", "val_loader": batches(4), "optimizer": optimizer or sgd(1e-3), **options}
    return pof.fit(method, data, **own)


def diverging() -> list[Any]:
    good = batches(2)
    return [good[0], (good[1][0] * float("nan"), good[1][1])]


@pytest.mark.parametrize("average", AVERAGES)
def test_an_average_of_a_second_run_begins_with_the_network_as_it_is(average: Any) -> None:
    torch.manual_seed(0)
    model = mlp()
    fit(pof.Finetune(model), epochs=20, optimizer=sgd(0.1), val_loader=None)
    method = pof.Averaged(pof.Finetune(model), average)
    assert fit(method, optimizer=sgd(3.0)).best_epoch == 0
    incoming, again = pof.evaluate(model, batches(4)), mlp()
    again.load_state_dict(model.state_dict())
    found, expected = fit(method), fit(pof.Averaged(pof.Finetune(again), average))
    assert found.history[0]["val_nll"] == pytest.approx(incoming.nll, rel=1e-12)
    assert [row["val_nll"] for row in found.history] == [row["val_nll"] for row in expected.history]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def adarand(model: nn.Module) -> pof.Method:
    return pof.Regularized(model, pof.AdaRand.from_loader(pof.split(model), batches(4), num_classes=4))


def previous(model: nn.Module) -> pof.Method:
    return pof.PoF(model, features="previous", sampling="fixed")


@pytest.mark.parametrize(
    "make", [pof.Finetune, adarand, previous, *(lambda m, a=a: pof.Averaged(adarand(m), a) for a in AVERAGES)]
)
def test_a_run_that_diverged_leaves_nothing_in_method_and_optimizer(make: Any) -> None:
    runs = []
    for spoilt in (False, True):
        torch.manual_seed(0)
        method = make(mlp())
        optimizer = torch.optim.SGD(method.trainable_parameters(), lr=1e-3, momentum=0.9)
        if spoilt:
            with pytest.warns(pof.DivergenceWarning, match="became nan at step 2"):
                fit(method, diverging(), optimizer)
        runs.append(fit(method, optimizer=optimizer).history)
    plain, after = ([{k: v for k, v in row.items() if k != "seconds"} for row in history] for history in runs)
    assert after == plain


def test_an_optimizer_that_came_with_a_state_has_it_again_after_a_divergence() -> None:
    method = pof.Finetune(mlp())
    optimizer = torch.optim.Adagrad(method.trainable_parameters(), lr=1e-3)  # its state is there from the beginning
    fit(method, optimizer=optimizer)
    before = [state["sum"].clone() for state in optimizer.state.values()]
    with pytest.warns(pof.DivergenceWarning):
        fit(method, diverging(), optimizer)
    assert all(torch.equal(a["sum"], b) for a, b in zip(optimizer.state.values(), before, strict=True))
