"""The share of the mini-batch that the ascent of SAM is made of, against the step written out."""

from __future__ import annotations

import copy
import os
import pickle
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pof

RHO, LR = 0.5, 0.1


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)
    return nn.Sequential(*layers).double()


def mini_batches(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in sizes]
    return [(x, torch.randint(3, (len(x),), generator=generator)) for x in inputs]


def twin_step(model: nn.Module, inputs: Tensor, targets: Tensor, count: int) -> None:
    """w <- w - lr g(w + rho a / ||a||), a the gradient of the first ``count`` samples; statistics are theirs."""
    parameters = list(model.parameters())
    ascent = torch.autograd.grad(F.cross_entropy(model(inputs[:count]), targets[:count]), parameters)
    length = torch.cat([a.flatten() for a in ascent]).norm()
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for p, a in zip(moved.parameters(), ascent, strict=True):
            p += RHO * a / length
    descent = torch.autograd.grad(F.cross_entropy(moved(inputs), targets), list(moved.parameters()))
    with torch.no_grad():
        for p, d in zip(parameters, descent, strict=True):
            p -= LR * d


# Two samples at least: one has no variance.
@pytest.mark.parametrize(("share", "counts"), [(0.25, (2, 2)), (0.3, (3, 2)), (1.0, (8, 4))])
def test_the_ascent_is_made_of_the_first_samples(share: float, counts: tuple[int, int]) -> None:
    batches, model = mini_batches(8, 4), network()
    twin = copy.deepcopy(model)
    method = pof.SharpnessAware(model, rho=RHO, ascent_share=share)
    optimizer = method.build_optimizer(torch.optim.SGD, lr=LR)
    schedule = pof.Schedule("constant")
    pof.fit(method, batches, epochs=1, optimizer=optimizer, schedule=schedule, device="cpu")
    for (inputs, targets), count in zip(batches, counts, strict=True):
        twin_step(twin, inputs, targets, count)
    for (name, value), expected in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("radius", [0.0, RHO])
def test_a_step_without_ascent_takes_the_whole_mini_batch(radius: float) -> None:
    method = pof.SharpnessAware(network(), rho=RHO, ascent_share=0.25)
    optimizer = method.build_optimizer(torch.optim.SGD, lr=LR)
    optimizer.param_groups[0]["rho"] = radius
    (batch,) = mini_batches(8)
    assert len(method(*batch).logits) == (2 if radius else 8)
    method.eval()
    assert len(method(*batch).logits) == 8


def test_the_share_is_of_the_samples_also_where_each_has_several_targets() -> None:
    def loss(outputs: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(outputs, targets[0], reduction="none") * targets[1]

    method = pof.SharpnessAware(network(), rho=RHO, ascent_share=0.5, loss=loss)
    method.build_optimizer(torch.optim.SGD, lr=LR)
    ((inputs, targets),) = mini_batches(8)
    assert len(method(inputs, (targets, torch.rand(8))).logits) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ascent_share": 0.0}, r"ascent_share is a share .* \(0, 1\]; got 0.0"),
        ({"ascent_share": 1.5}, "got 1.5"),
        ({"ascent_share": 0.5, "kind": "msam"}, "msam ascends along its momentum and has no pass for ascent_share 0.5"),
    ],
)
def test_bad_shares_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pof.SharpnessAware(network(), **options)


@pytest.mark.parametrize(("kind", "nesterov"), [("msam", False), ("sam", True)])
@pytest.mark.parametrize("average", [None, "ema"])
def test_the_default_optimizer_of_msam_has_plain_momentum(kind: Any, nesterov: bool, average: Any) -> None:
    inner = pof.SharpnessAware(network(), kind=kind)
    pof.fit(inner if average is None else pof.Averaged(inner, average), mini_batches(8, 8), epochs=1, device="cpu")
    assert inner._optimizer is not None
    assert {group["nesterov"] for group in inner._optimizer.param_groups} == {nesterov}


def test_a_radius_from_the_data_survives_every_state() -> None:
    """Also the state of a method that has it from a state."""
    first, *others = (pof.SharpnessAware(network()) for _ in range(3))
    first.calibrate(mini_batches(16, 16), level_kind="rise")
    before = first
    for method in others:
        method.load_state_dict(before.state_dict())
        assert (method.rho, method.shares) == (first.rho, first.shares)
        assert method.settings() == first.settings()
        before = method


def sam(method: pof.SharpnessAware, **options: Any) -> pof.SAM:
    return pof.SAM(list(method.trainable_parameters()), torch.optim.SGD, lr=0.1, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "asam"}, "SAM is not of the kind asam"),
        ({"kind": "msam"}, "SAM is not of the kind msam"),
        ({"layers": "head"}, "perturbs other layers than the head"),
        ({"budget": 0.1}, "does not know the budget 0.1"),
    ],
)
def test_an_optimizer_that_does_not_do_what_the_options_say_is_refused(options: Any, said: str) -> None:
    method = pof.SharpnessAware(network(), **options)
    with pytest.raises(ValueError, match=f"{said}: give the optimizer that method.build_optimizer"):
        method.before_epoch(0, 1, sam(method))
    method.before_epoch(0, 1, method.build_optimizer(torch.optim.SGD, lr=0.1, momentum=0.9))


def test_an_optimizer_without_the_radius_from_the_data_is_refused() -> None:
    method = pof.SharpnessAware(network())
    method.rho, method._calibrated = 0.3, True
    with pytest.raises(ValueError, match=r"does not have the method's radius 0\.3"):
        method.before_epoch(0, 1, sam(method))
    method.before_epoch(0, 1, sam(method, rho=0.3))


def test_groups_of_their_own_radii_are_left_alone_or_refused() -> None:
    """A budget is reached within the radius of each group, and sets none."""
    for options in ({}, {"last_epochs": 1}, {"budget": 0.1}):
        method = pof.SharpnessAware(network(), **options)
        first, *rest = method.trainable_parameters()
        own = {"budget": options.get("budget")}
        groups = [{"params": [first], "rho": 0.5}, {"params": rest, "rho": 0.0}]
        optimizer = pof.SAM(groups, torch.optim.SGD, lr=0.1, **own)
        if "last_epochs" in options:
            with pytest.raises(ValueError, match="has groups of several values of rho"):
                method.before_epoch(0, 1, optimizer)
        else:
            method.before_epoch(0, 1, optimizer)
        assert [group["rho"] for group in optimizer.param_groups] == [0.5, 0.0]


def test_an_optimizer_that_does_what_the_options_say_is_taken_whoever_made_it() -> None:
    asam = pof.SharpnessAware(network(), kind="asam")
    asam.before_epoch(0, 1, sam(asam, adaptive=True))
    others = pof.SAMON(list(asam.trainable_parameters()), torch.optim.SGD, model=asam.model, adaptive=True, lr=0.1)
    part = sam(asam, adaptive=True, only=list(asam.network.head.parameters()))
    for other in (others, part):
        with pytest.raises(ValueError, match="is not of the kind asam"):
            asam.before_epoch(0, 1, other)
    head = pof.SharpnessAware(network(), layers="head")
    of_head = list(head.network.head.parameters())
    head.before_epoch(0, 1, sam(head, only=of_head))
    with pytest.raises(ValueError, match="perturbs other layers than the head"):
        head.before_epoch(0, 1, sam(head, only=[*of_head, next(head.model.parameters())]))
    for parameter in head.model.parameters():
        parameter.requires_grad_(any(parameter is own for own in of_head))
    head.before_epoch(0, 1, sam(head))
    head.before_epoch(0, 1, sam(head, only=list(head.model.parameters())))  # the others stand still


def test_an_optimizer_of_a_function_does_what_the_options_say_in_any_loop() -> None:
    method = pof.SharpnessAware(network(), ascent_share=0.25)
    optimizer: Any = method.build_optimizer(lambda parameters: pof.SAM(parameters, torch.optim.SGD, lr=0.1))
    (inputs, targets), *_ = mini_batches(8)
    assert len(method(inputs, targets).logits) == 2 and optimizer.will_ascend
    with pytest.raises(ValueError, match="SAM perturbs other layers than the head"):
        pof.SharpnessAware(network(), layers="head").build_optimizer(lambda p: pof.SAM(p, torch.optim.SGD, lr=0.1))


@pytest.mark.parametrize(
    "options",
    [{}, {"rho": 0.3}, {"rho": 0.3, "budget": 0.1}, {"rho": 0.5, "last_epochs": 1}, {"rho": 0.1 * 0.1}],
)
def test_a_function_whose_optimizer_has_another_radius_than_was_asked_for_is_refused(options: Any) -> None:
    """Without a radius asked for its own one counts; late SAM sets it; with a budget it is the largest."""
    method = pof.SharpnessAware(network(), **options)

    def function(parameters: Any) -> torch.optim.Optimizer:
        return pof.SAM(parameters, torch.optim.SGD, 0.01, lr=0.1, budget=options.get("budget"))

    if options.get("rho") == 0.3:
        with pytest.raises(ValueError, match=r"does not have the method's radius 0\.3 .*: give the optimizer that"):
            method.build_optimizer(function)
    else:
        assert method.build_optimizer(function).param_groups[0]["rho"] == 0.01


@pytest.mark.parametrize(
    ("radii", "taken"), [((0.3, 0.3), True), ((0.3, 0.0), True), ((0.3, 0.01), False), ((0.01,), False)]
)
def test_an_optimizer_given_to_fit_has_the_radius_asked_for(radii: tuple[float, ...], taken: bool) -> None:
    """A group may be left out of the perturbation."""
    method = pof.SharpnessAware(network(), rho=0.3)
    parameters = list(method.trainable_parameters())
    groups = [{"params": parameters[i :: len(radii)], "rho": rho} for i, rho in enumerate(radii)]
    optimizer = pof.SAM(groups, torch.optim.SGD, lr=0.1)
    expected = nullcontext() if taken else pytest.raises(ValueError, match=r"does not have the method's radius 0\.3")
    with expected:
        pof.fit(method, mini_batches(8), epochs=1, optimizer=optimizer, device="cpu")


@pytest.mark.parametrize("last", [1, 5])
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_run_goes_on_where_the_radius_follows_a_schedule(
    momentum: float, calibrated: bool, last: int, tmp_path: Path
) -> None:
    def run(folder: Path, stop: bool = False, resume: bool = False) -> Any:
        method = pof.SharpnessAware(network(), rho=None if calibrated else 0.3)
        radius = method.calibrate(mini_batches(8), level_kind="rise") if calibrated else 0.3
        optimizer = pof.SAM(method.trainable_parameters(), torch.optim.SGD, radius, lr=0.1, momentum=momentum)

        def log(row: Any) -> None:
            if row["event"] == "step":
                optimizer.param_groups[0]["rho"] = radius / (1 + row["step"])
                if stop and row["step"] == last:
                    os.kill(os.getpid(), signal.SIGTERM)

        options: Any = {"optimizer": optimizer, "checkpoint_dir": folder, "resume": resume, "log": log}
        return pof.fit(method, mini_batches(8, 8, 8, 8), epochs=2, device="cpu", **options)

    whole = run(tmp_path / "whole")
    with pytest.warns(pof.InterruptionWarning):
        assert run(tmp_path / "part", stop=True).epochs == last // 5
    resumed = run(tmp_path / "part", resume=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


@pytest.mark.parametrize("before", ["nothing", "a divergence", "a state"])
def test_another_radius_is_refused_whatever_the_method_did_before(before: str) -> None:
    model = network()
    method = pof.SharpnessAware(model, rho=0.3)
    if before == "a divergence":
        with pytest.warns(pof.DivergenceWarning):
            own = pof.SAM(model.parameters(), torch.optim.SGD, 0.3, lr=0.1)
            ((x, y),) = mini_batches(8)
            pof.fit(method, [(x * torch.inf, y)], epochs=1, optimizer=own, device="cpu")
    if before == "a state":
        method.load_state_dict(pof.SharpnessAware(network(), rho=0.3).state_dict())
    other = pof.SAM(model.parameters(), torch.optim.SGD, 0.01, lr=0.1)
    with pytest.raises(ValueError, match=r"does not have the method's radius 0\.3"):
        pof.fit(method, mini_batches(8), epochs=1, optimizer=other, device="cpu")


@pytest.mark.parametrize("trained", [False, True])
def test_only_an_optimizer_that_has_trained_may_have_another_radius_by_now(trained: bool) -> None:
    model = network()
    optimizer = pof.SAM(model.parameters(), torch.optim.SGD, 0.3, lr=0.1, momentum=0.9)
    if trained:
        pof.fit(pof.SharpnessAware(model, rho=0.3), mini_batches(8), epochs=1, optimizer=optimizer, device="cpu")
    optimizer.param_groups[0]["rho"] = 0.1
    said = r"does not have the method's radius 0\.3 \(without rho= .* the optimizer's own counts\)"
    with nullcontext() if trained else pytest.raises(ValueError, match=said):
        pof.SharpnessAware(model, rho=0.3).before_epoch(0, 1, optimizer)


def test_momentum_that_was_loaded_says_nothing_of_the_radius() -> None:
    model = network()
    plain = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pof.fit(pof.Finetune(model), mini_batches(8), epochs=1, optimizer=plain, device="cpu")
    optimizer = pof.SAM(model.parameters(), torch.optim.SGD, 0.5, lr=0.1, momentum=0.9)
    optimizer.load_state_dict(plain.state_dict())
    assert all("momentum_buffer" in state for state in optimizer.state.values()) and optimizer.state
    with pytest.raises(ValueError, match=r"does not have the method's radius 0\.3"):
        pof.fit(pof.SharpnessAware(model, rho=0.3), mini_batches(8), epochs=1, optimizer=optimizer, device="cpu")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_of_an_optimizer_that_goes_on_goes_on_too(copied: Any) -> None:
    model = network()
    optimizer = pof.SAM(model.parameters(), torch.optim.SGD, 0.3, lr=0.1)
    state = optimizer.state_dict()
    state["param_groups"][0]["rho"] = 0.1  # it followed a schedule
    optimizer.load_state_dict(state)
    for one, own in ((model, optimizer), copied((model, optimizer))):
        pof.SharpnessAware(one, rho=0.3).before_epoch(0, 1, own)


def of_one_parameter() -> tuple[pof.SharpnessAware, torch.optim.Optimizer, list[nn.Parameter]]:
    """Late SAM, its own optimizer of the first parameter alone, and the others, unfrozen since."""
    method = pof.SharpnessAware(network(), last_epochs=1)
    _, *rest = method.trainable_parameters()
    for parameter in rest:
        parameter.requires_grad_(False)
    optimizer = method.build_optimizer(torch.optim.SGD, lr=0.1)
    return method, optimizer, [parameter.requires_grad_(True) for parameter in rest]


def test_a_group_of_its_own_radius_in_the_methods_own_optimizer() -> None:
    method, optimizer, rest = of_one_parameter()
    optimizer.add_param_group({"params": rest, "rho": 0.0})
    with pytest.raises(ValueError, match=r"several values of rho.*leave out last_epochs"):
        method.before_epoch(0, 1, optimizer)
    assert [group["rho"] for group in optimizer.param_groups] == [method.rho, 0.0]


def test_a_loop_may_change_its_optimizer_once_it_was_taken() -> None:
    """Layers that are unfrozen on the way, a schedule of the radius."""
    method, optimizer, rest = of_one_parameter()
    method.before_epoch(0, 2, optimizer)
    optimizer.add_param_group({"params": rest})
    method.before_epoch(1, 2, optimizer)
    assert [group["rho"] for group in optimizer.param_groups] == [method.rho] * 2
    for make in (lambda method: method.build_optimizer(torch.optim.SGD, lr=0.1), lambda method: sam(method, rho=0.3)):
        method = pof.SharpnessAware(network())
        method.rho, method._calibrated = 0.3, True
        optimizer = make(method)
        for epoch in range(3):
            method.before_epoch(epoch, 3, optimizer)
            optimizer.param_groups[0]["rho"] *= 0.5


def test_a_radius_from_the_data_is_for_the_last_epochs_too() -> None:
    method = pof.SharpnessAware(network(), last_epochs=1)
    method.calibrate(mini_batches(8, 8), level_kind="rise")
    optimizer = method.build_optimizer(torch.optim.SGD, lr=0.1)
    radii = []
    for epoch in range(3):
        method.before_epoch(epoch, 3, optimizer)
        radii.append(optimizer.param_groups[0]["rho"])
    assert radii == [0.0, 0.0, method.rho] and method.rho > 0
