"""Feature statistics against loops, numpy and scikit-learn-free closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pof.flatness import (
    conditional_entropy,
    feature_components,
    feature_statistics,
    head_margins,
    meannn_entropy,
    principal_components,
)
from tests.flatness.nets import ConvNet, data, joined, network, untouched


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def meannn_by_loops(g: Tensor) -> float:
    n, d = g.shape
    pairs = itertools.permutations(range(n), 2)
    return d / (n * (n - 1)) * sum(math.log(float((g[i] - g[j]).norm())) for i, j in pairs)


def features_of(model: ConvNet, x: Tensor) -> Tensor:
    model = network().eval()
    return torch.tanh(model.body(torch.tanh(model.norm(model.conv(x))).flatten(1))).detach()


@pytest.mark.parametrize("block", [1, 7, 2**24])
def test_meannn_equals_the_double_loop(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pof.flatness.features._BLOCK_ELEMENTS", block)
    g = normal(23, 5) + 1e5  # far from the origin: the distances are small differences
    assert meannn_entropy(g) == pytest.approx(meannn_by_loops(g), rel=1e-8)


def test_entropy_of_a_gaussian_and_the_information_of_two_clusters() -> None:
    d, n = 3, 1500
    g = normal(n, d)
    constant = 1 + (d / 2) * math.log(math.pi) - math.lgamma(d / 2 + 1)
    # MeanNN of a Gaussian is close to, not at, its entropy: the estimator's own bias is about 0.1 D.
    assert meannn_entropy(g) + constant == pytest.approx(d / 2 * math.log(2 * math.pi * math.e), abs=0.15 * d)
    labels = torch.arange(n) % 2
    apart = g + 50.0 * labels.unsqueeze(1)
    assert meannn_entropy(apart) - conditional_entropy(apart, labels) > 1.0
    assert meannn_entropy(g) - conditional_entropy(g, labels) == pytest.approx(0.0, abs=0.02)


def test_equal_features_do_not_give_minus_infinity() -> None:
    g = normal(4, 3).repeat(2, 1)
    assert math.isfinite(meannn_entropy(g))
    assert meannn_entropy(g) < meannn_entropy(normal(8, 3))


def test_a_class_of_one_sample_is_left_out_of_the_conditional_entropy() -> None:
    g, labels = normal(5, 3), torch.tensor([0, 0, 1, 1, 2])
    expected = (meannn_by_loops(g[:2]) + meannn_by_loops(g[2:4])) / 2
    assert conditional_entropy(g, labels) == pytest.approx(expected, rel=1e-10)
    with pytest.raises(ValueError, match="a class with at least 2 samples"):
        conditional_entropy(g, torch.arange(5))


def test_margins_equal_a_loop_over_boundaries() -> None:
    features, weight, bias = normal(9, 4), normal(3, 4, 1), normal(3, 1, 2).flatten()
    labels = torch.arange(9) % 3
    z = features @ weight.T + bias
    expected = [
        min(float((z[n, y] - z[n, j]) / (weight[y] - weight[j]).norm()) for j in range(3) if j != y)
        for n, y in enumerate(labels.tolist())
    ]
    assert head_margins(features, labels, weight, bias).tolist() == pytest.approx(expected, rel=1e-10)


def test_a_margin_is_a_distance() -> None:
    # Moving a feature by its margin towards the boundary puts it there: both logits are equal.
    weight = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    feature, label = torch.tensor([[3.0, 0.5]], dtype=torch.float64), torch.tensor([0])
    margin = head_margins(feature, label, weight, None)
    moved = feature - margin * F.normalize(weight[0] - weight[1], dim=0)
    assert float(moved @ weight[0]) == pytest.approx(float(moved @ weight[1]))


def test_equal_rows_have_no_boundary() -> None:
    weight = torch.ones(2, 2, dtype=torch.float64)
    bias = torch.tensor([1.0, 0.0], dtype=torch.float64)
    f = torch.zeros(2, 2, dtype=torch.float64)
    assert head_margins(f, torch.tensor([0, 1]), weight, bias).tolist() == [math.inf, -math.inf]
    assert head_margins(f, torch.tensor([0, 1]), weight, None).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("bias", [True, False])
def test_statistics_of_a_network(bias: bool) -> None:
    model = network(bias=bias)
    with untouched(model):
        found = feature_statistics(model, data(), label_smoothing=0.1)
    x, y = joined(data())
    model.eval()
    features = torch.tanh(model.body(torch.tanh(model.norm(model.conv(x))).flatten(1))).detach()
    head = list(model.fc.parameters())
    per_sample = [
        torch.autograd.grad(F.cross_entropy(model.fc(f[None]), t[None], label_smoothing=0.1), head)
        for f, t in zip(features, y, strict=True)
    ]
    norms = [float(torch.cat([g.flatten() for g in gs]).norm()) for gs in per_sample]
    mean = [torch.stack(gs).mean(dim=0) for gs in zip(*per_sample, strict=True)]
    assert found.norm == pytest.approx(float(features.norm(dim=1).mean()), rel=1e-12)
    assert found.gradient_norm == pytest.approx(float(torch.cat([g.flatten() for g in mean]).norm()), rel=1e-10)
    assert found.sample_gradient_norm == pytest.approx(sum(norms) / 17, rel=1e-10)
    assert found.entropy == pytest.approx(meannn_by_loops(features), rel=1e-8)
    classes = [features[y == c] for c in y.unique()]
    within = sum(len(c) * meannn_by_loops(c) for c in classes) / 17
    assert found.mutual_information == pytest.approx(found.entropy - within, rel=1e-7)
    correct = model.fc(features).argmax(dim=1) == y
    assert torch.equal(found.margins > 0, correct)
    assert found.margin == pytest.approx(float(found.margins.median()))
    assert found.samples == 17


def test_components_equal_numpys() -> None:
    g = normal(30, 6) * torch.tensor([5.0, 3.0, 1.0, 1.0, 0.5, 0.1], dtype=torch.float64) + 7.0
    found = principal_components(g, torch.zeros(30, dtype=torch.int64), 3)
    x = g.numpy() - g.numpy().mean(axis=0)
    _, s, vt = np.linalg.svd(x, full_matrices=False)
    assert np.allclose(np.abs(found.components.numpy()), np.abs(vt[:3]), atol=1e-9)
    assert np.allclose(found.explained.numpy(), (s**2 / (s**2).sum())[:3], atol=1e-12)
    assert np.allclose(found.projection.numpy(), x @ found.components.numpy().T, atol=1e-12)
    assert (found.components.gather(1, found.components.abs().argmax(dim=1, keepdim=True)) > 0).all()
    again = principal_components(g, torch.zeros(30, dtype=torch.int64), 3)
    assert torch.equal(again.projection, found.projection)


def test_components_of_a_network() -> None:
    model = network()
    with untouched(model):
        found = feature_components(model, data(), components=3, batches=2)
    assert found.projection.shape == (14, 3)
    assert torch.equal(found.labels, joined(data()[:2])[1])
    with pytest.raises(ValueError, match="between 2 and the feature dimension 4; got 5"):
        feature_components(model, data(), components=5)


def test_samples_to_be_ignored_are_left_out() -> None:
    batches = data()
    batches[0][1][:3], batches[2][1][:] = -100, -100
    x, y = joined(batches)
    found, expected = (feature_statistics(network(), each) for each in (batches, [(x[y >= 0], y[y >= 0])]))
    assert found.samples == expected.samples == 11 and torch.equal(found.margins, expected.margins)
    assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-12)
    assert found.sample_gradient_norm == pytest.approx(expected.sample_gradient_norm, rel=1e-12)
    assert feature_components(network(), batches).labels.tolist() == y[y >= 0].tolist()
    with pytest.raises(ValueError, match="no target counts: all 3 are -100"):
        feature_statistics(network(), batches[2:])
