"""What a step costs in operator calls: on an accelerator each is a kernel, on a processor its overhead.

Counted are the calls that reach the dispatcher in one forward of a method: network, direction, search and loss.  The
backward pass and the optimizer are left out; both are those of plain training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import pof
from pof.models import build_model
from pof.perturbation.linear import head_gradient, line_search, reach, respond


class Counting(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return function(*args, **(kwargs or {}))


def calls(function: Callable[..., Any], *given: Any) -> int:
    with Counting() as counting:
        function(*given)
    return counting.calls


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def small_cnn() -> nn.Module:
    return build_model("small-cnn", num_classes=10, in_channels=1)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    """Easy enough to be fitted in a few steps."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(10, (32,), generator=generator)
    images = torch.randn(32, 1, 8, 8, generator=generator)
    images.flatten(1)[torch.arange(32), targets] += 3.0
    return images, targets


@pytest.mark.parametrize("steps", [0, 40])
@pytest.mark.parametrize("network", [mlp, small_cnn])
def test_a_step_of_pof_and_of_head_ascent(network: Callable[[], nn.Module], steps: int) -> None:
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(steps):
        optimizer.zero_grad()
        pof.Finetune(model)(*batch(step)).loss.backward()
        optimizer.step()
    plain, fresh, previous = pof.Finetune(model), pof.PoF(model), pof.PoF(model, features="previous")
    ascent = pof.HeadAscent(model)
    for method in (plain, previous, ascent):
        method(*batch(99))
    fresh(*batch(99), *batch(98))
    for seed in range(100, 105):
        base = calls(plain, *batch(seed))
        assert calls(fresh, *batch(seed), *batch(seed + 50)) <= base + 80
        assert calls(previous, *batch(seed)) <= base + 70
        assert calls(ascent, *batch(seed)) <= base + 40


def problem(device: str) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    features, targets = torch.randn(128, 64, device=device), torch.randint(10, (128,), device=device)
    weight, bias = torch.randn(10, 64, device=device), torch.zeros(10, device=device)
    g = head_gradient(features, targets, weight, bias)
    return respond(features, weight, bias), g.respond(features), targets


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_search(device: str) -> None:
    """On the meta device the calls are those of an accelerator, whose labels may be ones to be ignored."""
    given, most = problem(device), 55 if device == "cpu" else 80  # 3 and 10 of them are about NaN
    assert calls(line_search, *given) <= most
    assert calls(reach, *given, 20.0) <= most
