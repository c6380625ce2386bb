"""Candidates: each trains as it says, with its own schedule and average; options that it cannot have are refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pof
from pof.app.improve.candidates import FAMILIES, check_options, families
from pof.app.improve.judge import figures, halves
from pof.app.improve.race import schedule_in
from pof.app.improve.rate import candidate_options
from pof.app.improve.rungs import most_candidates
from pof.app.options import TrainOptions
from tests.app.improve.test_improve import FAST, data, loaders, network

BASE = TrainOptions("finetune")


def averaged_by_hand(model: nn.Module, batches: list[tuple[Tensor, Tensor]], *, lr: float, steps: int) -> nn.Module:
    """SGD at a constant rate behind a short rise, and the moving average of its iterates with a decay of 0.99."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    average = copy.deepcopy(model)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / (steps // 10 + 1))
        x, y = batches[step % len(batches)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        for mean, now in zip(average.parameters(), model.parameters(), strict=True):
            mean.data.lerp_(now.data, 1.0 if step == 0 else 0.01)
    pof.estimate_statistics(average, batches)
    return average.eval()


def test_the_average_at_a_constant_rate_is_that_of_a_literal_run() -> None:
    (x, y), (val_x, val_y), model = data(96, 1), data(300, 2), network()
    batches = list(zip(x.split(16), y.split(16), strict=True))
    given: Any = {
        "candidates": ["ema constant"],
        "budget": 5.0,
        "lr": 0.1,
        "device": "cpu",
        "training": TrainOptions("finetune", precision="fp32"),
    }
    result = pof.improve(model, batches, [(val_x, val_y)], **given)
    rows = {row.name: row for row in result.table}
    found = rows["ema constant, lr 0.05, ema"]
    logits = averaged_by_hand(model, batches, lr=0.05, steps=15)(val_x).detach()
    expected = figures(logits[(part := halves(val_y, 0)[0])], val_y[part])
    assert found.passes == 2.5
    assert (found.error, found.nll) == pytest.approx((expected.error, expected.nll), rel=1e-5)


def test_a_run_follows_its_own_schedule() -> None:
    def factors(**options: Any) -> list[float]:
        schedule = schedule_in((20, 40), candidate_options({"method": "finetune", **options}, BASE, "x"))
        return [round(schedule.factor(step, 40), 4) for step in range(40)]

    cycles = factors()
    assert cycles[:20] == cycles[20:] and cycles[:3] == [0.3333, 0.6667, 1.0] and cycles[19] < 0.01
    assert factors(schedule={"kind": "constant"}) == [0.3333, 0.6667, *[1.0] * 38]
    assert factors(schedule={"kind": "constant"}) == factors(method="swa")
    rewarm = factors(method="rewarm")
    assert rewarm[:7] == [round((step + 1) / 7, 4) for step in range(7)] and rewarm[:20] == rewarm[20:]


@pytest.mark.parametrize("method", ["swa", "lawa", "ema"])
def test_methods_that_average_by_themselves_are_tried(method: str) -> None:
    result = pof.improve(network(), *loaders(), candidates=[method], **FAST)
    assert all(row.error is not None for row in result.table if row.name.startswith(method))


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"batch_size": 8}, "batch_size"),
        ({"mixup": 0.2}, "mixup"),
        ({"epochs": 3}, "epochs"),
        ({"schedule": {"kind": "step"}}, "schedule.kind step"),
        ({"schedule": {"warmup_steps": 5}}, "schedule.warmup_steps 5"),
        ({"method": "swa", "schedule": {"kind": "cosine"}}, "swa with a cosine"),
    ],
)
def test_options_that_a_candidate_would_not_follow_are_refused(options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        check_options(families({"x": {"method": "finetune", **options}}), BASE)


@pytest.mark.parametrize("options", [{"mixup": 0.2}, {"epochs": 3}, {"lr": 0.5}, {"class_weights": "balanced"}])
def test_a_training_that_no_candidate_would_follow_is_refused(options: dict[str, Any]) -> None:
    training = TrainOptions("finetune", **options)
    with pytest.raises(ValueError, match=rf"training.{next(iter(options))}: candidates take .*weight_decay"):
        pof.improve(network(), *loaders(), training=training, **FAST)


def test_a_budget_of_20_tries_the_average_and_few_steps_what_gained_most() -> None:
    tried = list(FAMILIES)[: most_candidates(20.0, 47)]
    assert tried[-1] == "ema constant" and len(tried) == 4
    assert list(FAMILIES)[: most_candidates(60.0, 4)] == ["sam auto", "head-ascent"]


def test_statistics_are_estimated_where_networks_are_judged_and_not_after_each_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*given: Any) -> None:
        raise AssertionError("a pass over the training data for nothing")

    monkeypatch.setattr("pof.methods.averaged.estimate_statistics", never)
    result = pof.improve(network(), *loaders(), candidates=["sgd", "ema constant"], **FAST)
    assert all(row.error is not None for row in result.table)


def test_one_name_instead_of_a_list_is_said_so() -> None:
    with pytest.raises(ValueError, match=r"candidates is a list of names, such as \['sgd'\]; got 'sgd'"):
        families("sgd")
