from __future__ import annotations

import pytest
import torch
from torch import nn

from pof.combine import greedy_soup, interpolate, soup
from tests.combine.networks import assert_same, moved, small

NETWORKS = [moved(small(), seed) for seed in range(3)]


def test_mean_and_weighted_mean():
    for weights, shares in ((None, (1 / 3, 1 / 3, 1 / 3)), ((1, 3, 0), (0.25, 0.75, 0.0))):
        result = soup(NETWORKS, weights)
        for p, *parts in zip(result.parameters(), *(m.parameters() for m in NETWORKS), strict=True):
            expected = sum(share * part for share, part in zip(shares, parts, strict=True))
            # A rounding of each product and sum in float64, and one of a third.
            torch.testing.assert_close(p, expected, rtol=1e-15, atol=1e-15)
    assert_same(soup(NETWORKS[:2], [3, 1]), interpolate(*NETWORKS[:2], 0.25))


@pytest.mark.parametrize("weights", [None, (0, 2.5, 0)])
def test_one_network_with_all_the_weight_is_copied(weights):
    result = soup([NETWORKS[1]] if weights is None else NETWORKS, weights)
    assert_same(result, NETWORKS[1])
    assert result is not NETWORKS[1]


def test_equal_networks_give_the_same_network():
    assert_same(soup([NETWORKS[0]] * 3), NETWORKS[0])


@pytest.mark.parametrize("weights", [(1, 1), (), (0, 0, 0), (1, -1, 1), (1, float("nan"), 1), (1, float("inf"), 1)])
def test_bad_weights(weights):
    with pytest.raises(ValueError, match="3 networks need as many weights >= 0 with a positive sum"):
        soup(NETWORKS, weights)


def test_no_networks():
    with pytest.raises(ValueError, match="at least one network"):
        soup([])


def points(*values: float) -> list[nn.Module]:
    """Networks of one weight each."""
    networks = [nn.Linear(1, 1, bias=False).double() for _ in values]
    for network, value in zip(networks, values, strict=True):
        nn.init.constant_(network.weight, value)
    return networks


def distance(network: nn.Module) -> float:
    """From 1; NaN for negative weights."""
    weight = next(network.parameters()).item()
    return abs(weight - 1) if weight >= 0 else float("nan")


def test_greedy_soup_by_hand():
    """Best first: 1.5; with 0.4 the mean 0.95 is better; with 2.0 the mean 1.3 is worse; NaN is never tried."""
    found = greedy_soup(points(2.0, -1.0, 0.4, 1.5), distance)
    assert found.indices == (3, 2)
    assert found.model.weight.item() == pytest.approx(0.95)
    assert found.score == pytest.approx(0.05)


def test_a_network_that_changes_nothing_is_kept_and_a_worse_one_is_not():
    assert greedy_soup(points(0.5, 1.5, 1.5), distance).indices == (0, 1)
    assert greedy_soup(points(1.5, 1.5), distance).indices == (0, 1)
    found = greedy_soup(points(1.1, 3.0), distance)
    assert found.indices == (0,)
    assert found.model.weight.item() == 1.1


def test_the_soup_has_the_statistics_it_was_scored_with():
    def score(network: nn.Module) -> float:
        network[1].running_mean.fill_(7.0)
        return 0.0

    assert bool((greedy_soup(NETWORKS[:2], score).model[1].running_mean == 7.0).all())


def test_no_finite_score():
    with pytest.raises(ValueError, match=r"no network has a finite score: \[nan, inf\]"):
        scores = iter([float("nan"), float("inf")])
        greedy_soup(NETWORKS[:2], lambda network: next(scores))


def test_a_score_that_estimates_statistics_leaves_the_networks_as_they_are() -> None:
    networks = [nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(2)]

    def score(network: nn.Module) -> float:
        network[1].running_mean.fill_(7.0)
        return float(network[0].weight.detach().abs().sum())

    found = greedy_soup(networks, score)
    assert all(bool((network[1].running_mean == 0).all()) for network in networks)
    assert bool((found.model[1].running_mean == 7).all())
