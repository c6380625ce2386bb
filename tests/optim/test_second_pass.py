"""What methods and optimizers keep where SAM makes two passes: the features and keys of the first one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pof
from tests.cases import batch, mlp

N = 8
ADARAND = torch.zeros(4, 6), torch.ones(4, 6)


def around(method: pof.Method, kind: type[Any]) -> Any:
    return kind(list(method.trainable_parameters()), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)


def step(method: pof.Method, optimizer: Any) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = method(*batch(N)).loss
        loss.backward()
        return loss

    optimizer.step(closure)
    method.after_step()


@pytest.mark.parametrize("kind", [pof.SAM, pof.MSAM])
def test_a_step_of_two_passes_leaves_each_key_once(kind: type[Any]) -> None:
    model = mlp()
    keys = pof.BiTuning(model, "fc", dimension=4, keys=8)
    method = pof.Regularized(model, keys, "fc")
    optimizer = around(method, kind)
    for number in range(1, 3):
        step(method, optimizer)
        assert int(keys.count.sum()) == number * N


def test_adarand_adapts_to_the_features_of_the_unperturbed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    regularizer = pof.RandReg()
    method = pof.Regularized(model, regularizer, "fc")
    expected = method.network.features(batch(N)[0]).detach()
    seen: list[Tensor] = []
    monkeypatch.setattr(regularizer, "update", lambda features, targets: seen.append(features))
    step(method, around(method, pof.SAM))
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=0)


def test_previous_features_are_refused_in_a_second_pass() -> None:
    method = pof.PoF(mlp(), "fc", features="previous")
    with pytest.raises(ValueError, match="features='fresh'"):
        step(method, around(method, pof.SAM))
    method = pof.PoF(mlp(), "fc", features="previous")
    msam = around(method, pof.MSAM)
    for _ in range(3):
        step(method, msam)  # of one pass


def test_groups_keep_their_own_radii_where_the_state_of_a_plain_optimizer_is_loaded() -> None:
    model = mlp()
    groups = [
        {"params": list(model.fc.parameters()), "rho": 0.0},
        {"params": list(model.body.parameters()), "rho": 0.2},
    ]
    plain = torch.optim.SGD([{"params": list(g["params"])} for g in groups], lr=0.1)
    late = pof.SAM(groups, torch.optim.SGD, rho=0.1, lr=0.1)
    late.load_state_dict(plain.state_dict())
    assert [group["rho"] for group in late.param_groups] == [0.0, 0.2]
    other = pof.SAM([dict(g, rho=0.3) for g in groups], torch.optim.SGD, lr=0.1)
    other.load_state_dict(late.state_dict())  # its own state says what the radii are
    assert [group["rho"] for group in other.param_groups] == [0.0, 0.2]


def test_only_around_a_base_optimizer_with_modes_there_are_modes() -> None:
    class Modes(torch.optim.SGD):
        mode = ""

        def train(self) -> None:
            self.mode = "train"

        def eval(self) -> None:
            self.mode = "eval"

    plain = pof.SAM(mlp().parameters(), torch.optim.SGD, lr=0.1)
    assert not hasattr(plain, "train") and not hasattr(plain, "eval")
    optimizer = pof.SAM(mlp().parameters(), Modes, lr=0.1)
    for name in ("train", "eval"):
        getattr(optimizer, name)()
        assert optimizer.base_optimizer.mode == name


def test_a_group_that_is_not_moved_is_in_the_second_pass_too() -> None:
    still, moved = (pof.Regularized(model, pof.AdaRand(*ADARAND), "fc") for model in (mlp(), mlp()))
    groups = [{"params": still.trainable_parameters(), "rho": 0.0}, {"params": moved.trainable_parameters()}]
    optimizer = pof.SAM(groups, torch.optim.SGD, rho=0.05, lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = still(*batch(N)).loss + moved(*batch(N)).loss
        loss.backward()
        return loss

    optimizer.step(closure)
    assert len(still._seen) == len(moved._seen) == 1


def test_previous_features_are_refused_also_where_the_perturbation_is_elsewhere() -> None:
    method, beside = pof.PoF(mlp(), "fc", features="previous"), torch.nn.Parameter(torch.ones(()))
    parameters = [*method.trainable_parameters(), beside]
    optimizer = pof.SAM(parameters, torch.optim.SGD, rho=0.05, only=[beside], lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = method(*batch(N)).loss * beside
        loss.backward()
        return loss

    with pytest.raises(ValueError, match="features='fresh'"):
        optimizer.step(closure)
