"""Perturbing and restoring; saving, copying, pickling; schedulers and parameter groups; what is refused."""

from __future__ import annotations

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from pof.optim import ASAM, MSAM, SAM, SAMON
from tests.optim.problem import (
    SGD_OPTIONS,
    Build,
    build_batches,
    build_model,
    closure_of,
    equal,
    every,
    msam,
    sam,
    sam_on,
    train,
    two_passes,
    weights_of,
)

BASES = {
    "sgd": (torch.optim.SGD, SGD_OPTIONS),
    "nesterov": (torch.optim.SGD, {**SGD_OPTIONS, "nesterov": True}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01}),
    "amsgrad": (torch.optim.Adam, {"lr": 0.01, "amsgrad": True}),
}
bases = pytest.mark.parametrize(("base", "options"), BASES.values(), ids=BASES.keys())


def started(build: Build, steps: int = 2, **options):
    """A model and an optimizer that has made some steps, so that there is momentum, and a gradient."""
    model = build_model()
    optimizer = build(model, **options)
    batches = build_batches()
    train(model, optimizer, batches[:steps])
    closure_of(model, optimizer, batches[steps])()
    return model, optimizer, batches[steps:]


# Perturbing and restoring


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@every
def test_weights_come_back_bit_for_bit_in_place(build: Build, dtype: torch.dtype) -> None:
    model, optimizer, _ = started(build)
    for p in model.parameters():
        gradient = p.grad.to(dtype)
        p.data = p.data.to(dtype)
        p.grad = gradient
    before, storage = weights_of(model), [p.data_ptr() for p in model.parameters()]
    optimizer.ascend()
    assert not equal(before, weights_of(model))
    optimizer.restore()
    assert equal(before, weights_of(model))
    assert storage == [p.data_ptr() for p in model.parameters()]


@every
def test_weights_come_back_when_the_body_raises(build: Build) -> None:
    model, optimizer, batches = started(build)
    before, mode = weights_of(model), model[1].track_running_stats
    with pytest.raises(KeyError, match="body"), optimizer.perturbed():
        raise KeyError("body")
    assert equal(before, weights_of(model))
    assert model[1].track_running_stats is mode
    with pytest.raises(RuntimeError, match="without a perturbation"):
        optimizer.step()
    train(model, optimizer, batches)


@every
def test_weights_come_back_when_the_closure_raises(build: Build) -> None:
    model, optimizer, batches = started(build)
    before, closure = weights_of(model), closure_of(model, optimizer, batches[0])
    calls = []

    def breaks_in_the_perturbed_pass():
        calls.append(None)
        if not equal(before, weights_of(model)):
            raise KeyError("closure")
        return closure()

    with pytest.raises(KeyError, match="closure"):
        optimizer.step(breaks_in_the_perturbed_pass)
    assert equal(before, weights_of(model))


def test_weights_come_back_when_the_perturbation_itself_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, _ = started(sam)
    before = weights_of(model)
    monkeypatch.setattr("pof.optim._perturbing.frozen_statistics", lambda model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        optimizer.ascend()
    assert equal(before, weights_of(model))
    optimizer.state_dict()


@every
def test_pass_by_pass_equals_the_closure(build: Build) -> None:
    one, other, third = build_model(), build_model(), build_model()
    whole, parts, passes = build(one), build(other), build(third)
    for batch in build_batches():
        loss = whole.step(closure_of(one, whole, batch))
        assert torch.equal(loss, passes.run_passes(closure_of(third, passes, batch)))
        passes.step()
        closure = closure_of(other, parts, batch)
        if build is not msam:
            closure()
        with parts.perturbed():
            closure()
        parts.step()
        assert equal(list(one.state_dict().values()), list(other.state_dict().values()))
        assert equal(list(one.state_dict().values()), list(third.state_dict().values()))


@every
def test_step_returns_the_loss_of_the_closure_that_ran_first(build: Build) -> None:
    model, optimizer, batches = started(build)
    closure, losses = closure_of(model, optimizer, batches[0]), []

    def recording():
        losses.append(closure())
        return losses[-1]

    assert optimizer.step(recording) is losses[0]
    assert len(losses) == (1 if build is msam else 2)
    assert optimizer.base_optimizer.state is optimizer.state


@every
def test_ascend_gives_the_norm_it_divided_by(build: Build) -> None:
    _, optimizer, _ = started(build)
    norm = optimizer.ascend()
    assert norm.shape == () and norm.dtype == torch.float64 and norm > 0
    optimizer.restore()


@every
def test_misuse_is_refused(build: Build) -> None:
    _, optimizer, _ = started(build)
    with pytest.raises(RuntimeError, match=r"step\(\) without a perturbation would be a step of SGD"):
        optimizer.step()
    optimizer.ascend()
    for attempt in (
        optimizer.ascend,
        optimizer.step,
        optimizer.state_dict,
        partial(optimizer.load_state_dict, {}),
        partial(optimizer.add_param_group, {"params": [nn.Parameter(torch.zeros(1))]}),
        partial(copy.deepcopy, optimizer),
    ):
        with pytest.raises(RuntimeError, match=r"while the weights are perturbed: call restore\(\) first"):
            attempt()
    optimizer.restore()
    optimizer.restore()  # idle: nothing to do
    optimizer.step()
    with pytest.raises(RuntimeError, match="without a perturbation"):
        optimizer.step()


@every
def test_a_plain_step_is_allowed_where_the_perturbation_is_zero(build: Build) -> None:
    # torch.distributed.checkpoint initialises an optimizer's state by a step with zero gradients.
    model = build_model()
    optimizer = build(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert optimizer.state


# Saving, copying, pickling


@bases
@every
def test_resume_is_bit_exact_base_optimizer_included(build: Build, base, options) -> None:
    model, batches = build_model(), build_batches()
    optimizer = build(model, base, **options)
    train(model, optimizer, batches[:5])
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, optimizer, batches[5:])

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = build_model(seed=9)
    again = build(resumed, base, rho=0.77, **{**options, "lr": 123.0})
    again.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["model"])
    assert again.param_groups[0]["rho"] == optimizer.param_groups[0]["rho"]
    train(resumed, again, batches[5:])
    assert equal(list(model.state_dict().values()), list(resumed.state_dict().values()))


def test_the_state_of_a_plain_base_optimizer_loads_with_its_momentum() -> None:
    model, batches = build_model(), build_batches()
    plain = torch.optim.SGD(model.parameters(), **SGD_OPTIONS)
    train(model, plain, batches[:5])
    late = sam(model, rho=0.1)
    late.load_state_dict(plain.state_dict())
    assert late.param_groups[0]["rho"] == 0.1
    p = model[0].weight
    assert torch.equal(late.base_optimizer.state[p]["momentum_buffer"], plain.state[p]["momentum_buffer"])
    train(model, late, batches[5:])

    switched = build_model()
    optimizer = sam(switched, rho=0.0)
    train(switched, optimizer, batches[:5])
    optimizer.param_groups[0]["rho"] = 0.1
    train(switched, optimizer, batches[5:])
    assert equal(list(model.state_dict().values()), list(switched.state_dict().values()))


class Counting(torch.optim.SGD):
    """A base optimizer that keeps something beside its state, in a format of its own, and marks its groups."""

    steps = 0

    def step(self, closure=None):
        self.steps += 1
        return super().step(closure)

    def add_param_group(self, param_group):
        super().add_param_group({**param_group, "mine": True})

    def state_dict(self):
        return {"inner": super().state_dict(), "steps": self.steps}

    def load_state_dict(self, state_dict):
        self.steps = state_dict["steps"]
        super().load_state_dict(state_dict["inner"])


@every
def test_a_base_optimizer_saves_loads_and_adds_groups_in_its_own_way(build: Build) -> None:
    model, batches = build_model(), build_batches()
    optimizer = build(model, Counting)
    train(model, optimizer, batches[:3])
    again = build(model, Counting)
    again.load_state_dict(optimizer.state_dict())
    assert again.base_optimizer.steps == 3 and again.goes_on
    again.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    assert again.param_groups[1]["mine"]
    assert again.state is again.base_optimizer.state
    assert again.param_groups is again.base_optimizer.param_groups


class Grouped(torch.optim.SGD):
    """A base optimizer whose state names its groups."""

    def state_dict(self):
        return {"param_groups": {"all": {k: v for k, v in self.param_groups[0].items() if k != "params"}}}

    def load_state_dict(self, state_dict):
        self.param_groups[0].update(state_dict["param_groups"]["all"])


def test_a_base_optimizer_names_its_groups_in_its_own_way() -> None:
    optimizer = SAM(build_model().parameters(), Grouped, rho=0.5, lr=0.1)
    again = SAM(build_model().parameters(), Grouped, rho=0.1, lr=0.2)
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[0]["rho"] == 0.5 and again.param_groups[0]["lr"] == 0.1 and again.goes_on


@pytest.mark.parametrize("rho", [0.5, 0.0])
def test_a_step_without_gradients_is_none_of_a_radius(rho: float) -> None:
    """Others make the state of an optimizer by one."""
    model = build_model()
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=rho, lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert optimizer.state and optimizer.goes_on == (rho == 0)


@pytest.mark.parametrize(
    "copy_of", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
@every
def test_a_copy_has_its_own_base_optimizer_and_goes_on_alike(build: Build, copy_of) -> None:
    model, optimizer, batches = started(build)
    scheduler = StepLR(optimizer, 1)  # replaces optimizer.step, which must not be copied
    twin_model, twin = copy_of((model, optimizer))
    assert twin.base_optimizer is not optimizer.base_optimizer
    assert twin.state is twin.base_optimizer.state
    assert twin.param_groups is twin.base_optimizer.param_groups
    assert [id(p) for p in twin_model.parameters()] == [id(p) for p in twin.param_groups[0]["params"]]
    before = weights_of(model)
    train(twin_model, twin, batches)
    assert equal(before, weights_of(model))
    train(model, optimizer, batches)
    assert equal(weights_of(model), weights_of(twin_model))
    scheduler.step()
    assert twin.param_groups[0]["lr"] == 0.1


# Schedulers and parameter groups


@every
def test_one_cycle_reaches_the_base_optimizer_with_rate_and_momentum(build: Build) -> None:
    model, batches = build_model(), build_batches()
    optimizer = build(model)
    plain_model = build_model()
    plain = torch.optim.SGD(plain_model.parameters(), **SGD_OPTIONS)
    one, other = OneCycleLR(optimizer, 0.5, total_steps=11), OneCycleLR(plain, 0.5, total_steps=11)
    for batch in batches:
        optimizer.step(closure_of(model, optimizer, batch))
        plain.step(closure_of(plain_model, plain, batch))
        one.step()
        other.step()
        for key in ("lr", "momentum"):
            assert optimizer.base_optimizer.param_groups[0][key] == plain.param_groups[0][key]


@every
def test_schedulers_still_reach_it_after_a_state_was_loaded(build: Build) -> None:
    model, optimizer, batches = started(build)
    optimizer.load_state_dict(optimizer.state_dict())
    scheduler = StepLR(optimizer, 1, gamma=0.0)
    train(model, optimizer, batches[:1])
    scheduler.step()
    before = weights_of(model)
    train(model, optimizer, batches[1:])
    assert equal(before, weights_of(model))


@every
def test_a_group_added_later_is_updated_and_perturbed(build: Build) -> None:
    model, extra = build_model(), nn.BatchNorm1d(3).double()
    whole = nn.Sequential(model, extra)
    options = {} if build is msam else {"model": whole}
    optimizer = {"sam": SAM, "asam": ASAM, "sam_on": SAMON, "msam": MSAM}[build.__name__](
        model.parameters(), torch.optim.SGD, 0.1, **SGD_OPTIONS, **options
    )
    optimizer.add_param_group({"params": extra.parameters(), "lr": 0.2, "rho": 0.5})
    assert optimizer.base_optimizer.param_groups[1]["momentum"] == 0.9
    assert optimizer.param_groups[1]["rho"] == 0.5
    before = weights_of(extra)
    train(whole, optimizer, build_batches(2))
    assert not equal(before, weights_of(extra))
    before = weights_of(extra)
    with optimizer.perturbed():
        assert not equal(before, weights_of(extra))


def test_named_parameters_are_accepted() -> None:
    model = build_model()
    optimizer = SAM(model.named_parameters(), torch.optim.SGD, **SGD_OPTIONS)
    train(model, optimizer, build_batches(1))
    assert optimizer.state_dict()["param_groups"][0]["param_names"][0] == "0.weight"


def test_sam_on_keeps_no_more_than_the_norm_parameters() -> None:
    model, optimizer, batches = started(sam_on)
    optimizer.ascend()
    norm = list(model[1].parameters())
    assert [p is q for (p, _), q in zip(optimizer._saved, norm, strict=True)] == [True, True]
    assert sum(value.numel() for _, value in optimizer._saved) == sum(p.numel() for p in norm)
    optimizer.restore()
    assert optimizer._saved is None
    plain = torch.optim.SGD(model.parameters(), **SGD_OPTIONS)
    train(model, plain, batches[:1])
    assert {k for s in optimizer.state.values() for k in s} == {k for s in plain.state.values() for k in s}


# Refusals at construction


@pytest.mark.parametrize("build", [SAM, ASAM, MSAM], ids=lambda c: c.__name__)
def test_bad_options_are_refused(build) -> None:
    parameters = list(build_model().parameters())
    for rho in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="rho must be finite and not negative; got"):
            build(parameters, torch.optim.SGD, rho, **SGD_OPTIONS)
    with pytest.raises(ValueError, match="give the class of the base optimizer"):
        build(parameters, torch.optim.SGD(parameters, lr=0.1), **SGD_OPTIONS)
    with pytest.raises(ValueError, match=r"must be a torch.optim.Optimizer; got list"):
        build(parameters, lambda params, **options: list(params), **SGD_OPTIONS)
    with pytest.raises(ValueError, match=r"Adadelta has an option called 'rho' of its own"):
        build(parameters, torch.optim.Adadelta, lr=0.1)
    with pytest.raises(ValueError, match=r"complex parameters are not supported; got one of shape \(2,\)"):
        build([nn.Parameter(torch.zeros(2, dtype=torch.complex64))], torch.optim.SGD, **SGD_OPTIONS)


def test_a_bad_group_is_refused_and_not_kept() -> None:
    _, optimizer, _ = started(sam)
    with pytest.raises(ValueError, match="rho must be finite"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "rho": -1.0})
    assert len(optimizer.param_groups) == len(optimizer.base_optimizer.param_groups) == 1


def test_asam_refuses_a_negative_eta() -> None:
    with pytest.raises(ValueError, match=r"eta must be finite and not negative; got -0.1"):
        ASAM(build_model().parameters(), torch.optim.SGD, eta=-0.1, lr=0.1)


def test_msam_refuses_a_base_optimizer_without_momentum() -> None:
    with pytest.raises(ValueError, match=r"SGD keeps no momentum to perturb along: got momentum=0"):
        MSAM(build_model().parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(ValueError, match="Adagrad keeps no momentum"):
        MSAM(build_model().parameters(), torch.optim.Adagrad, lr=0.1)


def test_sam_on_refuses_parameters_without_a_norm() -> None:
    model = build_model()
    with pytest.raises(ValueError, match="none of the 2 parameters belongs to a normalisation layer of Sequential"):
        SAMON(model[3].parameters(), torch.optim.SGD, model=model, lr=0.1)


@two_passes
def test_sparse_gradients_are_refused_before_anything_moves(build: Build) -> None:
    model = nn.ModuleList([nn.BatchNorm1d(3), nn.Embedding(4, 3, sparse=True)])
    optimizer = build(model, lr=0.1)
    model[0](model[1](torch.tensor([1, 2]))).sum().backward()
    before = weights_of(model)
    with pytest.raises(ValueError, match=r"needs dense gradients; got torch\.sparse_coo"):
        optimizer.ascend()
    assert equal(before, weights_of(model))


class Renamed(torch.optim.Optimizer):
    """Has betas, and keeps its momentum under a name of its own."""

    def __init__(self, params, lr: float = 0.1, betas: tuple[float, float] = (0.9, 0.9)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["m"] = parameter.grad.clone()
                parameter.add_(parameter.grad, alpha=-group["lr"])


def test_msam_refuses_a_momentum_that_it_cannot_find() -> None:
    """It would be plain training, step after step."""
    model, batches = build_model(), build_batches()
    optimizer = MSAM(model.parameters(), Renamed)
    optimizer.step(closure_of(model, optimizer, batches[0]))
    before = weights_of(model)
    with pytest.raises(ValueError, match=r"Renamed keeps no momentum under momentum_buffer or exp_avg.*holds m;"):
        optimizer.step(closure_of(model, optimizer, batches[1]))
    assert equal(weights_of(model), before)
