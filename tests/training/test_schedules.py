"""The rates of a run are those of torch's LambdaLR, also after a resume."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

import pof


def two_groups(lr: torch.Tensor | float) -> torch.optim.Optimizer:
    weights = [torch.zeros(2, requires_grad=True) for _ in range(2)]
    return torch.optim.SGD([{"params": weights[:1], "lr": lr}, {"params": weights[1:], "lr": 0.03}])


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


@pytest.mark.parametrize("kind", ["constant", "step", "cosine"])
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1, dtype=torch.float64)], ids=["number", "tensor"])
def test_rates_are_those_of_lambda_lr(kind: str, lr: torch.Tensor | float) -> None:
    schedule = pof.Schedule(kind=kind, warmup_steps=2)  # type: ignore[arg-type]
    ours, theirs = two_groups(copy.deepcopy(lr)), two_groups(0.1)
    attached, twin = schedule.attach(ours, 7), LambdaLR(theirs, lambda step: schedule.factor(step, 7))
    for _ in range(7):
        assert rates(ours) == pytest.approx(rates(theirs), rel=1e-15)  # one product each
        theirs.step()
        attached.step()
        twin.step()


def test_a_resumed_schedule_goes_on() -> None:
    schedule, whole, later = pof.Schedule(warmup_steps=2), two_groups(0.1), two_groups(0.5)
    attached, resumed = schedule.attach(whole, 7), schedule.attach(later, 7)
    for _ in range(3):
        attached.step()
    later.load_state_dict(copy.deepcopy(whole.state_dict()))
    resumed.load_state_dict(attached.state_dict())
    for _ in range(3):
        attached.step()
        resumed.step()
        assert rates(later) == rates(whole)
