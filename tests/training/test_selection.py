"""Which network is handed back, and when a run counts as collapsed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import binom
from torch import nn

from pof.training.evaluation import Metrics
from pof.training.selection import Selection, change_of, tail_bound
from pof.training.tasks import TaskMetrics


def figures(error: float, nll: float = 1.0, classes: int = 10, n: int = 100_000) -> Metrics:
    return Metrics(error=error, nll=nll, ece=0.0, n=n, num_classes=classes)


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


def test_a_gain_among_equals_is_said_of_what_decided() -> None:
    assert change_of(figures(0.3, 1.0), figures(0.2, 2.0)) == "error 30.00 % -> 20.00 %"
    assert change_of(figures(0.3, 1.0), figures(0.3, 0.51234)) == "error 30.00 % as before, NLL 1 -> 0.5123"
    task = TaskMetrics("auc", 0.9, 0.5, 10, {"auc": 0.9}, higher_is_better=True)
    assert change_of(task, replace(task, loss=0.25)) == "auc 0.9 as before, loss 0.5 -> 0.25"
    assert change_of(None, task) == "auc unknown -> 0.9"


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
    assert selection.collapsed(figures(error, classes=classes), 1.0) is collapsed
    assert not selection.collapsed(None, 1.0)
    assert not selection.collapsed(figures(error, classes=classes), 0.75)  # a large rate may bring it about, and fall


@pytest.mark.parametrize(
    ("n", "wrong", "collapsed"),
    [
        (6, 3, False),  # half of six images: it stopped the run, and is as likely as not at the limit of 0.45
        (6, 6, False),  # 0.45 ** 6 is 0.008
        (9, 9, True),  # 0.45 ** 9 is 0.0008
        (100, 60, False),
        (100, 90, True),  # chance
        (1000, 480, False),
        (1000, 520, True),
    ],
)
def test_a_collapse_is_more_than_chance_on_few_samples(n: int, wrong: int, collapsed: bool) -> None:
    selection = Selection()
    selection.consider(0, network(0.0), figures(0.0, n=n))
    assert selection.collapsed(figures(wrong / n, n=n), 1.0) is collapsed


@pytest.mark.parametrize(("n", "k", "p"), [(6, 6, 0.45), (20, 15, 0.5), (300, 160, 0.5), (50, 50, 0.9), (10, 5, 0.5)])
def test_the_bound_is_above_the_binomial_tail(n: int, k: int, p: float) -> None:
    exact = float(binom.sf(k - 1, n, p))
    # Chernoff's bound is loose by no more than about sqrt(8 n).
    assert exact <= tail_bound(k / n, p, n) * (1 + 1e-12) <= exact * math.sqrt(8 * n)


def test_a_selection_goes_on_from_its_state() -> None:
    selection, other = Selection(), Selection()
    selection.consider(0, network(0.0), figures(0.1))
    selection.consider(1, network(1.0), figures(0.05))
    other.load_state_dict(selection.state_dict(), torch.device("cpu"))
    assert (other.epoch, other.metrics, other.incoming) == (1, figures(0.05), figures(0.1))
    other.deliver(model := network(-1.0))
    assert model.weight.item() == 1.0
