"""A plain step listens to the head once; afterwards the network's own output is taken, where it is the head's."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import pof
from pof.head import split as module

X, Y = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
BATCHES = list(zip(X.split(4), Y.split(4), strict=True))


def network(*after):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), *after)


@pytest.fixture
def listened(monkeypatch):
    """How often a network was listened to."""
    counted = []
    inner = module.listening

    def counting(*args):
        counted.append(args)
        return inner(*args)

    monkeypatch.setattr(module, "listening", counting)
    return counted


def fitted(model, **options):
    options = {"epochs": 2, "device": "cpu", "optimizer": lambda p: torch.optim.SGD(p, lr=0.1)} | options
    return pof.fit(pof.Finetune(model, head="2"), BATCHES, **options)


def test_once_for_the_check_and_once_an_epoch(listened):
    model, bare = network(), network()
    fitted(model, schedule=pof.Schedule("constant"))
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1)
    for x, y in BATCHES * 2:
        optimizer.zero_grad()
        cross_entropy(bare(x), y).backward()
        optimizer.step()
    assert len(listened) == 3
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), bare.parameters(), strict=True))


class Doubled(nn.Module):
    """In training the output is another one than the head's, in place."""

    def forward(self, logits):
        return logits.mul_(2) if self.training else logits


@pytest.mark.parametrize("after", [nn.Dropout(0.5), nn.Dropout(0.5, inplace=True), Doubled(), nn.LogSoftmax(1)])
def test_what_follows_the_head_in_training_is_not_taken(after, listened):
    method = pof.Finetune(network(after), head="2").train()
    for x, y in BATCHES:
        out = method(x, y)
        torch.testing.assert_close(out.logits, network()(x))
        torch.testing.assert_close(out.loss, cross_entropy(network()(x), y))
    assert len(listened) == 1 + len(BATCHES)


def test_under_autocast_the_head_is_applied_in_float32():
    method = pof.Finetune(network(), head="2").train()
    method(X, Y)
    with torch.autocast("cpu", torch.bfloat16):
        assert method(X, Y).logits.dtype == torch.float32


def test_another_output_than_before_is_refused_until_the_mode_is_set_again():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fc, self.both = nn.Linear(4, 8), nn.Linear(8, 3), False

        def forward(self, x):
            features = self.body(x)
            return (features, self.fc(features)) if self.both else self.fc(features)

    model = Both()
    method = pof.Finetune(model).train()
    method(X, Y)
    model.both = True
    with pytest.raises(ValueError, match="the network returned tuple, and in the step before the logits"):
        method(X, Y)
    method.train()
    torch.testing.assert_close(method(X, Y).logits, model(X)[1])


def test_a_dropout_that_begins_within_an_epoch_is_refused_until_the_mode_is_set_again():
    model = network(nn.Dropout(0.0))
    method = pof.Finetune(model, head="2").train()
    method(X, Y)
    method(X, Y)
    model[3].p = 0.5
    with pytest.raises(ValueError, match=r"unchanged: call \.train\(\) of the method where it changes within an epoch"):
        method(X, Y)
    method.train()
    torch.testing.assert_close(method(X, Y).logits, network()(X))
