"""A custom loop that forgets what a method needs is told so, and one that does it is not."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import pof
from pof._support import untold
from pof._support.untold import PASSES, STEPS
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


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("calls", [False, True])
@pytest.mark.parametrize(("make", "said"), FORGOTTEN)
def test_what_is_forgotten_is_said_once(
    make: Callable[[nn.Module], pof.Method], said: str, calls: bool, fused: bool
) -> None:
    """``fused``: steps that torch does not count as writing; ``calls``: the loop tells of epochs."""
    method = make(mlp())
    optimizer = torch.optim.SGD(method.trainable_parameters(), lr=0.1, fused=fused)
    if calls and not isinstance(method, pof.SharpnessAware):
        method.before_epoch(0, 1, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(method, optimizer, STEPS, forgets=True)
    kept = len(getattr(method, "_seen", []))
    with pytest.warns(UserWarning, match=said) as found:
        steps(method, optimizer, 4, forgets=True)
    assert len(found) == 1
    # Nor does what a step leaves behind grow from step to step any more.
    assert len(getattr(method, "_seen", [])) <= kept


NOTHING = [adarand, ema, pof.PoF, pof.Finetune, lambda model: pof.Regularized(model, pof.FNP())]


@pytest.mark.parametrize("make", NOTHING)
def test_a_loop_that_does_what_it_has_to_is_left_alone(make: Callable[[nn.Module], pof.Method]) -> None:
    method = make(mlp())
    method.needs_reference = False
    optimizer = plain(method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(2 * STEPS):
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

    quiet_steps(method, optimizer, 2 * STEPS)


def test_an_option_of_the_same_name_perturbs_nothing() -> None:
    method = pof.SharpnessAware(mlp())
    optimizer = torch.optim.Adadelta(method.trainable_parameters())  # has a rho of its own
    with pytest.warns(UserWarning, match="plain training"):
        steps(method, optimizer, 2 * STEPS, forgets=True)


def test_regularizers_that_do_not_adapt_keep_nothing_of_a_step() -> None:
    method = pof.Regularized(mlp(), pof.BSS())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(method, plain(method), 2 * STEPS, forgets=True)
    assert method._seen == []


def quiet_steps(method: pof.Method, optimizer: Any, count: int, every: int = 1) -> None:
    """A closure, as LBFGS wants one; ``after_step()`` behind every so many steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(count):

            def closure(number: int = number) -> Tensor:
                optimizer.zero_grad()
                loss = method(*batch(seed=number)).loss
                loss.backward()
                return loss

            optimizer.step(closure)
            if (number + 1) % every == 0:
                method.after_step()


@pytest.mark.parametrize("make", [adarand, ema])
def test_loops_that_tell_in_their_own_way_are_left_alone(make: Callable[[nn.Module], pof.Method]) -> None:
    for optimizer in (torch.optim.LBFGS, torch.optim.SGD):
        method = make(mlp())
        quiet_steps(method, optimizer(list(method.trainable_parameters()), lr=0.01), 3 * STEPS, every=10)


def test_weights_that_the_forward_or_the_loop_writes_are_no_steps() -> None:
    """``nn.Embedding(max_norm=...)`` writes to its weights in each forward; loops clamp, load and project."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.fc = nn.Embedding(50, 6, max_norm=0.1), nn.Linear(6, 4)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.fc(self.words(inputs).mean(1))

    method = pof.Regularized(Words(), pof.AdaRand(*ADARAND))
    updated: list[int] = []
    method.regularizer.update = lambda features, targets: updated.append(len(features))  # type: ignore[method-assign]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(2 * STEPS):
            method(torch.arange(40).view(4, 10) + number % 10, torch.tensor([0, 1, 2, 3])).loss.backward()
            with torch.no_grad():
                method.model.fc.weight.clamp_(-1, 1)
    assert len(method._seen) == 2 * STEPS


def test_steps_of_other_networks_do_not_count() -> None:
    method, other = adarand(mlp()), mlp()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(2 * STEPS):
            method(*batch(seed=number)).loss.backward()
            optimizer.step()


def test_a_network_of_inference_tensors_can_be_averaged() -> None:
    with torch.inference_mode():
        body = mlp().body
    model = mlp()
    model.body = body
    method = pof.Averaged(pof.Finetune(model), "ema")
    method(*batch())


def test_counting_ends_and_is_no_part_of_copies() -> None:
    method = adarand(mlp())
    steps(method, plain(method), 2)
    assert method._untold not in untold._counting
    waiting = adarand(mlp())
    waiting(*batch())
    assert waiting._untold in untold._counting
    copy.deepcopy(waiting)(*batch())
    pickle.loads(pickle.dumps(waiting))
    before = len(untold._counting)
    del waiting
    gc.collect()
    assert len(untold._counting) < before


@pytest.mark.parametrize("make", [adarand, ema, pof.SharpnessAware])
def test_a_hook_that_comes_later_is_no_matter(make: Callable[[nn.Module], pof.Method]) -> None:
    """A logger's, say: torch goes through all hooks of a step, and none may leave meanwhile."""
    method, seen = make(mlp()), []
    own = method.build_optimizer(torch.optim.SGD, lr=0.1)
    method(*batch()).loss.backward()
    handle = register_optimizer_step_post_hook(lambda optimizer, args, kwargs: seen.append(optimizer))
    try:
        quiet_steps(method, own, 3)
    finally:
        handle.remove()
    assert own in seen


def test_steps_that_are_no_optimizers_are_known_by_the_passes() -> None:
    """Of master copies, as DeepSpeed has them, or by hand."""
    method = adarand(mlp())
    inputs, targets = batch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(PASSES):
            method(inputs, targets)
    with pytest.warns(UserWarning, match="AdaRand adapts after each step"):
        for _ in range(5):
            method(inputs, targets)
    assert len(method._seen) == 1


def test_a_step_counts_once_however_many_optimizers_make_it() -> None:
    method = ema(mlp())
    optimizers = [torch.optim.SGD([parameter], lr=0.1) for parameter in method.trainable_parameters()]

    class Together:
        def step(self, closure: Callable[[], Tensor]) -> None:
            closure()
            for optimizer in optimizers:
                optimizer.step()

        def zero_grad(self) -> None:
            method.model.zero_grad()

    quiet_steps(method, Together(), 3 * STEPS, every=STEPS)


def test_the_base_of_a_sharpness_aware_optimizer_may_be_stepped_by_hand() -> None:
    method = pof.SharpnessAware(mlp())
    optimizer = method.build_optimizer(torch.optim.SGD, lr=0.1)

    class ByHand:
        zero_grad = optimizer.zero_grad

        def step(self, closure: Callable[[], Tensor]) -> None:
            optimizer.run_passes(closure)  # type: ignore[attr-defined]
            optimizer.base_optimizer.step()  # type: ignore[attr-defined]

    quiet_steps(method, ByHand(), 2 * STEPS)


def test_a_long_step_says_nothing() -> None:
    method = adarand(mlp())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(4):  # a long step
            method(*batch(seed=number)).loss.backward()
    assert len(method._seen) == 4
