"""Which network is handed back, and when a run counts as collapsed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pof.training.evaluation import Metrics
from pof.training.selection import Selection


def figures(error: float, nll: float = 1.0, classes: int = 10) -> Metrics:
    return Metrics(error=error, nll=nll, ece=0.0, n=100, num_classes=classes)


def network(value: float) -> nn.Module:
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, value)
    return model


def chosen(*metrics: Metrics | None) -> int:
    """The epoch kept, of those with these figures; its weights are the ones delivered."""
    selection = Selection()
    kept = [epoch for epoch, each in enumerate(metrics) if selection.consider(epoch, network(epoch), each)]
    selection.deliver(model := network(-1.0))
    assert kept[-1] == selection.epoch == model.weight.item()
    return selection.epoch


@pytest.mark.parametrize(
    ("metrics", "best"),
    [
        ([figures(0.3), figures(0.2), figures(0.25)], 1),
        ([figures(0.3, 1.0), figures(0.3, 0.9), figures(0.3, 0.95)], 1),
        ([figures(0.3, 0.5), figures(0.2, 9.0)], 1),
        ([figures(0.3, 0.5), figures(0.3, 0.5)], 0),
        ([figures(0.3, 9.0), figures(0.3, math.nan)], 0),
        ([figures(0.3, math.nan), figures(0.3, 9.0)], 1),
        ([None, None, None], 2),
    ],
    ids=["errors", "tie", "errors first", "equal", "nan loses", "nan is replaced", "no validation"],
)
def test_fewest_errors_then_likelihood_and_nan_loses_every_tie(metrics: list[Metrics | None], best: int) -> None:
    assert chosen(*metrics) == best


@pytest.mark.parametrize(
    ("incoming", "error", "classes", "collapsed"),
    [
        (0.1, 0.49, 10, False),  # chance is an error of 0.9: half of the way to it is 0.5
        (0.1, 0.51, 10, True),
        (0.44, 0.9, 10, True),
        (0.46, 0.9, 10, False),  # came in near chance
        (0.0, 0.24, 2, False),
        (0.0, 0.26, 2, True),
    ],
)
def test_a_collapse_is_half_of_the_way_to_chance(incoming: float, error: float, classes: int, collapsed: bool) -> None:
    selection = Selection()
    selection.consider(0, network(0.0), figures(incoming, classes=classes))
    assert selection.collapsed(figures(error, classes=classes)) is collapsed
    assert not selection.collapsed(None)


def test_a_selection_goes_on_from_its_state() -> None:
    selection, other = Selection(), Selection()
    selection.consider(0, network(0.0), figures(0.1))
    selection.consider(1, network(1.0), figures(0.05))
    other.load_state_dict(selection.state_dict(), torch.device("cpu"))
    assert (other.epoch, other.metrics, other.incoming) == (1, figures(0.05), figures(0.1))
    other.deliver(model := network(-1.0))
    assert model.weight.item() == 1.0
