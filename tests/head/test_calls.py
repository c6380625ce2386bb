"""Calls that a network does not expect: twice with one mini-batch, and of its head alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import pof

X, Y = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) * 3 + 2, torch.arange(64) % 3
PLACES = ("tensor", "mapping", "several")
METHODS: dict[str, Callable[[nn.Module], pof.Method]] = {
    "finetune": pof.Finetune,
    "pof": pof.PoF,
    "head ascent": pof.HeadAscent,
    "sam": lambda model: pof.SharpnessAware(model, rho=0.5),
    "ema": lambda model: pof.Averaged(pof.PoF(model), "ema"),
}


class Net(nn.Module):
    """Writes into its inputs, always or in training only, or does the same to a copy."""

    def __init__(self, *, writes: bool, masks: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.fc = nn.Linear(4, 8), nn.Linear(8, 3)
        self.writes, self.masks = writes, masks

    def forward(self, x: Any, y: Any = None) -> Tensor:
        x = x if self.writes else x.clone()
        if not self.masks:
            x = x.sub_(2).div_(3)
        elif self.training:
            x.mul_(0.5)
        return self.fc(F.relu(self.body(x)))  # type: ignore[no-any-return]


class Subtracting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sub_(2)


class Pair(Net):
    def forward(self, x: Any, y: Any) -> Tensor:
        return super().forward(x) + y.sub_(1).mean()


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_a_network_that_writes_into_its_inputs_trains_as_one_that_copies_them(name: str, masks: bool) -> None:
    weights = []
    for writes in (False, True):
        model = Net(writes=writes, masks=masks).double()
        loader = DataLoader(TensorDataset(X.double(), Y), batch_size=16)
        pof.fit(METHODS[name](model), loader, epochs=2, device="cpu")
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-9, atol=0)  # products may depend on where a copy lies in memory


@pytest.mark.parametrize("place", PLACES)
def test_inputs_of_any_kind_stay_as_they_are(place: str) -> None:
    model = Net(writes=True) if place != "several" else Pair(writes=True)
    own = X[:16].clone()
    inputs: Any = {"tensor": own, "mapping": {"x": own}, "several": (own, X[:16].clone())}[place]
    method = pof.PoF(model)
    for _ in range(3):
        method(inputs, Y[:16], inputs, Y[:16])
        assert torch.equal(own, X[:16])


def test_data_in_memory_stay_as_they_are_in_every_pass() -> None:
    """Validation figures wandered from one epoch to the next."""
    data = [(X[:16].clone(), Y[:16]), (X[16:24].clone(), Y[16:24])]
    model = nn.Sequential(Net(writes=True).double().float(), nn.Identity())
    norm = nn.Sequential(Subtracting(), nn.BatchNorm1d(4), nn.Linear(4, 3))
    for _ in range(2):
        pof.evaluate(model, data)
        pof.estimate_statistics(norm, data)
        pof.fit(pof.Finetune(model), data, val_loader=data, epochs=2, device="cpu")
        assert torch.equal(torch.cat([x for x, _ in data]), X[:24])


def test_a_network_that_writes_nothing_gets_the_very_inputs() -> None:
    model, given = Net(writes=False), []
    model.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    method = pof.Finetune(model)
    for _ in range(3):
        method(X, Y)
    assert [each is X for each in given[-2:]] == [True, True]


class Several(nn.Module):
    """A head of two layers, called as ``call`` says."""

    def __init__(self, call: Callable[[nn.Module, Tensor], Tensor], head: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.call = nn.Linear(4, 8), head, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.head, torch.relu(self.body(x)))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.layers(x) * scale  # type: ignore[no-any-return]


def hooked() -> nn.Module:
    head = Scaled()
    head.register_forward_pre_hook(lambda _, args: (args[0] * 3,))
    return head


@pytest.mark.parametrize("make", [pof.PoF, pof.HeadAscent])
def test_a_head_that_is_not_called_with_its_features_alone_is_not_moved(make: Any) -> None:
    batch = X[:16], Y[:16], X[16:32], Y[16:32]
    for call, head in ((lambda head, x: head(x, scale=3.0), Scaled()), (lambda head, x: head(x), hooked())):
        with pytest.raises(ValueError, match=r"called anew with its features alone, gives other logits.*name a module"):
            make(Several(call, head), "head")(*batch)
        pof.Finetune(Several(call, head), "head")(*batch)
    make(Several(lambda head, x: head(x, scale=1.0), Scaled()), "head")(*batch)  # as without
    make(Several(lambda head, x: F.dropout(head(x), 0.1), nn.Linear(8, 3)), "head")


def test_a_hook_before_a_linear_head_is_part_of_the_features() -> None:
    head = nn.Linear(8, 3)
    head.register_forward_pre_hook(lambda _, args: (args[0] * 3,))
    model = Several(lambda head, x: head(x), head)
    out = pof.PoF(model, gamma=0.0)(X[:16], Y[:16], X[16:32], Y[16:32])
    torch.testing.assert_close(out.loss, F.cross_entropy(model(X[:16]), Y[:16]))
    with pytest.raises(ValueError, match="called anew"):
        pof.PoF(model, loss=F.cross_entropy)(X[:16], Y[:16], X[16:32], Y[16:32])


class Checkpointed(Scaled):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        if self.reentrant is None or not self.training:
            return super().forward(x)
        return checkpoint(self.layers[:2], x, use_reentrant=self.reentrant) @ self.layers[2].weight.T  # type: ignore


@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_head_that_recomputes_its_activations_is_not_moved(reentrant: bool) -> None:
    for make in (pof.PoF, pof.HeadAscent):
        model = Several(lambda head, x: head(x), Checkpointed(reentrant))
        batch = X[:16], Y[:16], X[16:32], Y[16:32]
        with pytest.raises(ValueError, match=r"recomputes activations.*switch checkpointing off"):
            make(model, "head", **({"level": 0.99} if make is pof.HeadAscent else {}))(*batch)
    with torch.autograd.graph.save_on_cpu():  # hooks of somebody else
        pof.PoF(Several(lambda head, x: head(x), Checkpointed(None)), "head")(*batch)
