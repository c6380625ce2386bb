"""SAM that perturbs the head alone: the norm is the head's, and all weights are updated."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import pof


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


X, Y = torch.randn(16, 4, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 3


def by_hand(model, rho, lr):
    gradients = torch.autograd.grad(cross_entropy(model(X), Y), [*model[2].parameters()])
    norm = sum(g.square().sum() for g in gradients).sqrt()
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for p, g in zip(moved[2].parameters(), gradients, strict=True):
            p += rho * g / norm
    found = torch.autograd.grad(cross_entropy(moved(X), Y), [*moved.parameters()])
    return [p.detach() - lr * g for p, g in zip(model.parameters(), found, strict=True)]


def stepped(model, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(model(X), Y)
        loss.backward()
        return loss

    optimizer.step(closure)
    return [*model.parameters()]


def test_a_step_is_the_one_by_hand():
    model = network()
    wanted = by_hand(model, 0.3, 0.1)
    optimizer = pof.SAM(model.parameters(), torch.optim.SGD, 0.3, only=model[2].parameters(), lr=0.1)
    for value, right in zip(stepped(model, optimizer), wanted, strict=True):
        torch.testing.assert_close(value, right)


def test_fit_with_the_option_makes_these_steps():
    model = network()
    wanted = by_hand(model, 0.3, 0.1)
    method = pof.SharpnessAware(model, rho=0.3, layers="head")
    pof.fit(method, [(X, Y)], epochs=1, optimizer=method.build_optimizer(torch.optim.SGD, lr=0.1), device="cpu")
    for value, right in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(value, right)


def test_calibrated_on_the_head_all_shares_are_the_heads():
    method = pof.SharpnessAware(network(), layers="head")
    assert method.calibrate([(X, Y)], level=0.1, level_kind="rise") > 0
    assert sum(method.shares.values()) == pytest.approx(1)
    assert max(method.shares.values()) == pytest.approx(1)


def test_a_copy_perturbs_the_copys_head():
    model = network()
    pair = (model, pof.SAM(model.parameters(), torch.optim.SGD, 0.3, only=model[2].parameters(), lr=0.1))
    wanted = by_hand(model, 0.3, 0.1)
    for value, right in zip(stepped(*copy.deepcopy(pair)), wanted, strict=True):
        torch.testing.assert_close(value, right)


def test_refusals():
    model = network()
    with pytest.raises(ValueError, match="none of the 2 parameters to perturb"):
        pof.SAM(model[0].parameters(), torch.optim.SGD, only=model[2].parameters(), lr=0.1)
    with pytest.raises(ValueError, match="msam perturbs what its paper says"):
        pof.SharpnessAware(model, kind="msam", layers="head")
    with pytest.raises(ValueError, match="'tail'"):
        pof.SharpnessAware(model, layers="tail")
