"""A loop of one's own that forgets what a method needs is told so, and one that does it is not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pof
from tests.cases import batch, mlp

ADARAND = torch.zeros(4, 6), torch.ones(4, 6)


def adarand(model: nn.Module) -> pof.Method:
    return pof.Regularized(model, pof.AdaRand(*ADARAND))


def ema(model: nn.Module) -> pof.Method:
    return pof.Averaged(pof.Finetune(model), "ema")


def steps(method: pof.Method, optimizer: Any, count: int = 3, *, forgets: bool = False) -> None:
    for number in range(count):
        for part in range(2):  # of an accumulated step
            method(*batch(seed=2 * number + part)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if not forgets:
            method.after_step()


def plain(method: pof.Method) -> torch.optim.Optimizer:
    return torch.optim.SGD(method.trainable_parameters(), lr=0.1)


FORGOTTEN: list[tuple[Callable[[nn.Module], pof.Method], str]] = [
    (adarand, r"AdaRand adapts after each step.*method\.after_step\(\)"),
    (lambda model: pof.Regularized(model, pof.BiTuning(model, keys=4, dimension=4)), "BiTuning adapts"),
    (ema, "the EMA moves after each step"),
    (pof.SharpnessAware, r"plain training: take the one that method\.build_optimizer"),
]


@pytest.mark.parametrize(("make", "said"), FORGOTTEN)
def test_what_is_forgotten_is_said_once(make: Callable[[nn.Module], pof.Method], said: str) -> None:
    method = make(mlp())
    optimizer = plain(method)
    steps(method, optimizer, 1, forgets=True)
    with pytest.warns(UserWarning, match=said) as found:
        steps(method, optimizer, 4, forgets=True)
    assert len(found) == 1
    # Nor does what a step leaves behind grow from step to step.
    assert len(getattr(method, "_seen", [])) <= 2


NOTHING = [adarand, ema, pof.PoF, pof.Finetune, lambda model: pof.Regularized(model, pof.FNP())]


@pytest.mark.parametrize("make", NOTHING)
def test_a_loop_that_does_what_it_has_to_is_left_alone(make: Callable[[nn.Module], pof.Method]) -> None:
    method = make(mlp())
    method.needs_reference = False
    optimizer = plain(method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(3):
            method(*batch(seed=number), *batch(seed=number + 1)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            method.after_step()
        method.eval()
        method(*batch())


@pytest.mark.parametrize("kind", [pof.SAM, pof.MSAM])
def test_a_sharpness_aware_optimizer_of_the_loop_itself_is_known(kind: type[Any]) -> None:
    method = pof.SharpnessAware(mlp())
    optimizer = kind(list(method.trainable_parameters()), torch.optim.SGD, lr=0.1, momentum=0.9)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = method(*batch()).loss
        loss.backward()
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            optimizer.step(closure)


def test_regularizers_that_do_not_adapt_keep_nothing_of_a_step() -> None:
    method = pof.Regularized(mlp(), pof.BSS())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(method, plain(method), forgets=True)
    assert method._seen == []


def test_weights_that_did_not_move_say_nothing() -> None:
    method = adarand(mlp())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(4):  # a long step
            method(*batch(seed=number)).loss.backward()
    assert len(method._seen) == 4
