"""Judging: the split of the validation data, McNemar and bootstrap, and the plan of the race, against closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from pof.app.comparison import in_words
from pof.app.improve.improve import _best, _Entry
from pof.app.improve.judge import Confirmation, Figures, confirm, figures, halves, logits_on
from pof.app.improve.result import message_of, row_of
from pof.app.improve.rungs import CHOOSING_UNFITTED, Rung, most_candidates, rungs
from tests.cases import mlp


def test_halves_share_no_sample_and_every_class_is_in_both() -> None:
    targets = torch.tensor([0, 1, 2, 0, 1, 2, 2, 2, 0, 1])
    chooses, confirms = halves(targets, seed=3)
    assert sorted([*chooses.tolist(), *confirms.tolist()]) == list(range(10))
    assert {*targets[chooses].tolist()} == {*targets[confirms].tolist()} == {0, 1, 2}
    assert not torch.equal(halves(targets, seed=4)[0], chooses)


@pytest.mark.parametrize(("fixed", "broken"), [(5, 0), (4, 1), (3, 3), (0, 0), (1, 6)])
def test_the_p_value_is_that_of_a_fair_coin(fixed: int, broken: int) -> None:
    targets = torch.zeros(20, dtype=torch.long)
    before, after = torch.zeros(20, 2), torch.zeros(20, 2)
    before[:, 0] = after[:, 0] = 1.0
    before[:fixed, 1] = 2.0
    after[fixed : fixed + broken, 1] = 2.0
    found = confirm(before, after, targets, (None, None), seed=0)
    n = fixed + broken
    tail = sum(math.comb(n, k) for k in range(min(fixed, broken) + 1)) / 2**n
    assert (found.fixed, found.broken) == (fixed, broken)
    assert found.p_error == pytest.approx(min(1.0, 2 * tail))
    assert found.better is (fixed > broken)


@pytest.mark.parametrize(
    ("fixed", "broken", "nll", "better"),
    [
        (2, 1, (-0.2, -0.1, 0.1), True),
        (2, 1, (-0.1, 0.1, 0.2), False),  # fewer errors, and a worse likelihood
        (1, 1, (-0.2, -0.1, 0.05), True),  # as many, and a better likelihood
        (1, 1, (-0.1, 0.0, 0.1), False),  # the incoming network itself
        (62, 59, (-0.2, -0.1, 0.1), True),
        (59, 62, (-0.2, -0.1, -0.05), True),  # more errors within chance, and a likelihood that is surely better
        (59, 62, (-0.2, -0.1, 0.05), False),
        (17, 31, (-0.2, -0.1, -0.05), False),  # more errors beyond chance
        (12, 17, (-0.2, -0.1, -0.05), True),  # 5 more of 29, and
        (12, 18, (-0.2, -0.1, -0.05), False),  # 6 more of 30: sqrt(29) is more than 5, sqrt(30) less than 6
        (0, 1, (-0.2, -0.1, -0.05), False),
    ],
)
def test_what_is_handed_back(fixed: int, broken: int, nll: tuple[float, float, float], better: bool) -> None:
    assert Confirmation(100, fixed, broken, 1.0, nll, (0.0, 0.0, 0.0)).better is better


@pytest.mark.parametrize("improved", [True, False])
def test_the_message_says_all_that_decided(improved: bool) -> None:
    """Errors and likelihood, also where the latter is why nothing is handed back."""
    row = row_of("sgd", None, 1.0, Figures(0.1, 0.5, 0.5, 1.0))
    nll = (-0.0618, -0.0370, -0.0113) if improved else (-0.0618, 0.0370, 0.0913)
    text = message_of([row, row], row, Confirmation(1000, 62, 59, 0.86, nll, (0.0, 0.0, 0.0)), improved)
    assert "of 1000 samples that chose nothing it corrects 62 and breaks 59 (p 0.86, which may be chance)" in text
    assert f"NLL after temperature by {in_words(nll, 4)}" in text
    assert text.startswith("sgd: ") is improved
    assert text.endswith("the incoming network is handed back") is not improved


@pytest.mark.parametrize(("p", "nll", "shown"), [(0.86, (-0.1, 0.0, 0.1), False), (0.01, (-0.1, 0.0, 0.1), True)])
def test_the_message_says_what_is_not_shown(p: float, nll: tuple[float, float, float], shown: bool) -> None:
    row = row_of("sgd", None, 1.0, Figures(0.1, 0.5, 0.5, 1.0))
    text = message_of([row, row], row, Confirmation(1000, 62, 59, p, nll, (0.0, 0.0, 0.0)), True)
    assert text.endswith("; handed back as no worse, not shown to be better") is not shown


def entry(error: float, nll: float) -> _Entry:
    found = Figures(error, nll, nll, 1.0)
    return _Entry(row_of("network", None, 0.0, found), nn.Identity(), found, True)


def test_the_choice_is_by_likelihood_alone_and_ahead_of_the_incoming_network() -> None:
    """A condition on the error of few samples kept back networks that were better on all others."""
    incoming, more_errors, fewer = Figures(0.10, 0.5, 0.5, 1.0), entry(0.12, 0.3), entry(0.08, 0.4)
    assert _best([fewer, more_errors], incoming) is more_errors
    assert _best([entry(0.01, 0.6)], incoming) is None


def test_the_interval_of_a_constant_difference_has_no_width() -> None:
    targets = torch.zeros(50, dtype=torch.long)
    before = torch.zeros(50, 2, dtype=torch.float64)
    after = before.clone()
    after[:, 0] = 1.0
    found = confirm(before, after, targets, (None, None), seed=0)
    wanted = math.log1p(math.exp(-1.0)) - math.log(2.0)
    assert found.nll == pytest.approx((wanted, wanted, wanted))
    assert found.better  # as many errors, and a better likelihood


def test_a_network_is_judged_after_its_own_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    targets = torch.multinomial(torch.softmax(logits, dim=1), 1, generator=generator)[:, 0]
    sharp, right = figures(5 * logits, targets), figures(logits, targets)
    assert sharp.nll > right.nll
    assert sharp.scaled_nll == pytest.approx(right.scaled_nll, rel=1e-9)
    assert sharp.temperature == pytest.approx(5 * (right.temperature or math.nan), rel=1e-6)
    assert not figures(logits * math.nan, targets).finite


def test_a_loader_in_another_order_is_refused() -> None:
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    _, targets = logits_on(mlp(), [(x, y)])
    with pytest.raises(ValueError, match="another order each time: give it without shuffling"):
        logits_on(mlp(), [(x.flip(0), y.flip(0))], targets)
    with pytest.raises(ValueError, match="val_loader gave no batch"):
        logits_on(mlp(), [])


def test_a_network_that_cannot_be_judged_is_in_its_own_mode_while_the_error_is_told() -> None:
    network = mlp().train()
    with pytest.raises(ValueError, match="class indices") as caught:
        logits_on(network, [(torch.randn(6, 5, dtype=torch.float64), torch.rand(6, 3))])
    assert caught.tb and network.training  # the frames of the error are alive


def test_short_runs_choose_and_the_best_gets_the_rest_in_one_run() -> None:
    assert [(rung.runs, rung.passes, rung.anew) for rung in rungs(4, 10.0)] == [(4, 1.0, False), (1, 6.0, True)]
    plan = rungs(12, 60.0)
    assert [(rung.runs, rung.anew) for rung in plan] == [(12, False), (6, False), (1, True)]
    steps = pairwise([0.0, *(rung.passes for rung in plan[:-1])])
    spent = [rung.runs * (after - before) for rung, (before, after) in zip(plan, steps, strict=False)]
    assert spent == pytest.approx([12.0] * 2) and plan[-1].passes == pytest.approx(36.0)
    with pytest.raises(ValueError, match="finite budget > 0"):
        rungs(3, float("nan"))


def test_none_is_dropped_where_the_best_would_gain_little_by_it() -> None:
    assert rungs(1, 10.0) == [Rung(1, 10.0)]
    assert rungs(2, 10.0) == [Rung(2, 5.0)]
    assert rungs(2, 10.0, CHOOSING_UNFITTED) == [Rung(2, 1.25), Rung(1, 7.5, anew=True)]


@pytest.mark.parametrize(("steps", "least"), [(400, 1.0), (10, 8.4)])  # 42 steps of SAM cost as much as 84
def test_as_many_candidates_as_can_be_told_apart(steps: int, least: float) -> None:
    most = most_candidates(60.0, steps)
    assert rungs(most, 60.0)[0].passes >= least > rungs(most + 1, 60.0)[0].passes
    assert most_candidates(1.0, 2) == 2


@pytest.mark.filterwarnings("ignore:Sequential returns probabilities")
def test_the_logits_are_those_that_evaluate_takes() -> None:
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 1, -100, 0, 1, 2])
    network = mlp()
    wanted = network(x)[y >= 0].detach()
    for model in (torch.nn.Sequential(network, torch.nn.Softmax(1)), Both(network)):
        logits, targets = logits_on(model, [(x, y)])
        torch.testing.assert_close(torch.log_softmax(logits, 1), torch.log_softmax(wanted, 1))
        assert targets.tolist() == [0, 1, 0, 1, 2]  # -100 is left out


class Both(torch.nn.Module):
    """Returns (features, logits)."""

    def __init__(self, network: torch.nn.Sequential) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.network[:-1](x)
        return features, self.network[-1](features)
