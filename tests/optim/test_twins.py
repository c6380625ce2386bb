"""Every optimizer against its slow twin, SAM against another library's, and a radius of 0 against plain training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from pof.optim import ASAM, SAM, normalization_parameters
from tests.optim.problem import (
    SGD_OPTIONS,
    Batch,
    Build,
    asam,
    build_batches,
    build_model,
    closure_of,
    equal,
    every,
    msam,
    sam,
    sam_on,
    train,
    weights_of,
)
from tests.references import sam as twin

TOLERANCE = 1e-10  # ten steps of some hundred float64 operations each; about 1e-14 is seen
ADAM = {"lr": 0.01, "betas": (0.8, 0.95)}


def flat(tensors) -> list[float]:
    return torch.cat([t.detach().reshape(-1) for t in tensors]).tolist()


def gradient_of(model: nn.Module, batch: Batch) -> Callable[[twin.Vector], twin.Vector]:
    names, shapes = zip(*((n, p.shape) for n, p in model.named_parameters()), strict=True)

    def gradient_at(w: twin.Vector) -> twin.Vector:
        pieces = torch.tensor(w, dtype=torch.float64).split([s.numel() for s in shapes])
        weights = {n: x.reshape(s).requires_grad_() for n, x, s in zip(names, pieces, shapes, strict=True)}
        loss = F.cross_entropy(functional_call(model, weights, batch[0]), batch[1])
        return flat(torch.autograd.grad(loss, list(weights.values())))

    return gradient_at


def twin_steps(name: str, model: nn.Module, base: twin.SGD | twin.Adam, batches: list[Batch]):
    """Yields the weights after each step."""
    chosen = {id(p) for p in normalization_parameters(model)}
    mask = [id(p) in chosen for p in model.parameters() for _ in range(p.numel())]
    weights = ["weight" in name for name, p in model.named_parameters() for _ in range(p.numel())]
    live = twin.MSAM(base, 0.3)
    w = flat(model.parameters())
    for batch in batches:
        gradient_at = gradient_of(model, batch)
        if name == "msam":
            w = live.iterate(w, gradient_at)
            yield live.unperturbed(w)
            continue
        if name == "sam":
            w = twin.sam_step(w, base, gradient_at, 0.1)
        elif name == "asam":
            w = twin.asam_step(w, base, gradient_at, 0.5, 0.01, weights)
        else:
            w = twin.sam_on_step(w, base, gradient_at, 0.2, mask)
        yield w


@pytest.mark.parametrize("base", ["sgd", "adam"])
@every
def test_parameters_and_state_equal_the_twin_after_every_step(build: Build, base: str) -> None:
    model, batches = build_model(), build_batches()
    if base == "sgd":
        reference, key = twin.SGD(0.1, 0.9, 0.01), "momentum_buffer"
        optimizer = build(model)
    else:
        reference, key = twin.Adam(0.01, 0.8, 0.95), "exp_avg"
        optimizer = build(model, torch.optim.Adam, **ADAM)
    steps = twin_steps(build.__name__, build_model(), reference, batches)
    for batch, expected in zip(batches, steps, strict=True):
        optimizer.step(closure_of(model, optimizer, batch))
        assert flat(model.parameters()) == pytest.approx(expected, abs=TOLERANCE)
        buffers = [optimizer.state[p][key] for p in model.parameters()]
        assert flat(buffers) == pytest.approx(reference.momentum, abs=TOLERANCE)


@every
def test_the_perturbation_changes_the_result(build: Build) -> None:
    # Guards the test below: radius 0 is plain training, another radius is not.
    plain, model = build_model(), build_model()
    train(plain, torch.optim.SGD(plain.parameters(), **SGD_OPTIONS), build_batches())
    train(model, build(model), build_batches())
    assert max((a - b).abs().max() for a, b in zip(weights_of(plain), weights_of(model), strict=True)) > 1e-3


@every
def test_radius_zero_is_plain_training_exactly_dropout_included(build: Build) -> None:
    def with_dropout() -> nn.Sequential:
        model = build_model()
        model.insert(3, nn.Dropout(0.5))
        return model

    plain, model, batches = with_dropout(), with_dropout(), build_batches()
    torch.manual_seed(7)
    train(plain, torch.optim.SGD(plain.parameters(), **SGD_OPTIONS), batches)
    torch.manual_seed(7)
    train(model, build(model, rho=0.0), batches)
    assert equal(list(plain.state_dict().values()), list(model.state_dict().values()))


def test_adaptive_sam_is_asam() -> None:
    one, other = build_model(), build_model()
    train(one, SAM(one.parameters(), torch.optim.SGD, 0.5, adaptive=True, **SGD_OPTIONS), build_batches())
    train(other, ASAM(other.parameters(), torch.optim.SGD, 0.5, eta=0.01, **SGD_OPTIONS), build_batches())
    assert equal(weights_of(one), weights_of(other))


@pytest.mark.parametrize("known", ["model", "names", "nothing"])
def test_asam_knows_a_bias_by_its_name_or_else_by_its_shape(known: str) -> None:
    model, batch = build_model(), build_batches(1)[0]
    given = model.named_parameters() if known == "names" else model.parameters()
    optimizer = ASAM(given, torch.optim.SGD, 0.5, model=model if known == "model" else None, **SGD_OPTIONS)
    closure_of(model, optimizer, batch)()
    scales = [
        # Without names the weight of a norm is taken for a bias.
        p.detach().abs() + 0.01 if "weight" in name and (known != "nothing" or p.ndim > 1) else torch.ones_like(p)
        for name, p in model.named_parameters()
    ]
    norm = torch.cat([(t * p.grad).flatten() for t, p in zip(scales, model.parameters(), strict=True)]).norm()
    wanted = [p + 0.5 * t * t * p.grad / norm for t, p in zip(scales, model.parameters(), strict=True)]
    with optimizer.perturbed():
        torch.testing.assert_close(list(model.parameters()), [w.detach() for w in wanted], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("eta", [0.0, 0.01])
def test_asam_sees_no_rescaling_of_layers_where_eta_is_zero(eta: float) -> None:
    def loss_there(factor: float) -> float:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7, bias=False), nn.ReLU(), nn.Linear(7, 3, bias=False)).double()
        with torch.no_grad():
            model[0].weight.mul_(factor)
            model[2].weight.div_(factor)
        inputs, targets = build_batches(1)[0]
        optimizer = ASAM(model.parameters(), torch.optim.SGD, 0.5, eta, lr=0.1)
        closure_of(model, optimizer, (inputs, targets))()
        with optimizer.perturbed():
            return float(F.cross_entropy(model(inputs), targets).detach())

    assert (loss_there(10.0) == pytest.approx(loss_there(1.0), rel=1e-12)) == (eta == 0.0)


@pytest.mark.parametrize("adaptive", [False, True])
def test_step_equals_pytorch_optimizer(adaptive: bool) -> None:
    other = pytest.importorskip("pytorch_optimizer", reason="pytorch_optimizer is not installed")
    mine, theirs, batches = build_model(), build_model(), build_batches()
    # Their T is |w| for biases too, and without eta: so weights alone.
    for model in (mine, theirs) if adaptive else ():
        model[1], model[3] = nn.Identity(), nn.Linear(7, 3, bias=False).double()
        nn.init.orthogonal_(model[3].weight, generator=torch.Generator().manual_seed(0))
    if adaptive:
        optimizer = ASAM(mine.parameters(), torch.optim.SGD, 0.5, eta=0.0, **SGD_OPTIONS)
    else:
        optimizer = SAM(mine.parameters(), torch.optim.SGD, 0.5, **SGD_OPTIONS)
    reference = other.SAM(theirs.parameters(), torch.optim.SGD, rho=0.5, adaptive=adaptive, **SGD_OPTIONS)
    for batch in batches:
        optimizer.step(closure_of(mine, optimizer, batch))
        closure = closure_of(theirs, reference, batch)
        closure()
        reference.step(closure)
        # They round the norm to float32: 6e-8 relative in eps, damped by the learning rate in the weights.
        torch.testing.assert_close(weights_of(mine), weights_of(theirs), rtol=0, atol=2e-8)


def test_step_equals_a_hand_written_one_on_the_same_gradients() -> None:
    parameters = [nn.Parameter(torch.tensor([3.0, -1.0])), nn.Parameter(torch.tensor([[2.0]]))]
    optimizer = SAM(parameters, torch.optim.SGD, rho=1.0, lr=0.5)
    for p, g in zip(parameters, (torch.tensor([2.0, 0.0]), torch.tensor([[1.5]])), strict=True):
        p.grad = g
    with optimizer.perturbed() as norm:
        assert norm.item() == 2.5
        torch.testing.assert_close(parameters[0].detach(), torch.tensor([3.8, -1.0]))
        torch.testing.assert_close(parameters[1].detach(), torch.tensor([[2.6]]))
        for p, g in zip(parameters, (torch.tensor([1.0, 1.0]), torch.tensor([[-2.0]])), strict=True):
            p.grad = g
    optimizer.step()
    assert parameters[0].tolist() == [2.5, -1.5]
    assert parameters[1].tolist() == [[3.0]]


@pytest.mark.parametrize("build", [sam, asam, sam_on], ids=lambda f: f.__name__)
def test_a_base_optimizer_that_maximises_is_perturbed_downhill(build: Build) -> None:
    one, other, batches = build_model(), build_model(), build_batches()
    train(one, build(one), batches)
    optimizer = build(other, **SGD_OPTIONS, maximize=True)
    for inputs, targets in batches:

        def closure(inputs=inputs, targets=targets):
            optimizer.zero_grad()
            score = -F.cross_entropy(other(inputs), targets)
            score.backward()
            return score

        optimizer.step(closure)
    assert equal(weights_of(one), weights_of(other))


def test_radius_per_parameter_group_with_one_norm() -> None:
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    groups = [{"params": [first], "rho": 1.0}, {"params": [second], "rho": 0.0}]
    optimizer = SAM(groups, torch.optim.SGD, rho=9.0, lr=1.0)
    first.grad, second.grad = torch.tensor([3.0]), torch.tensor([4.0])
    optimizer.ascend()
    assert (first.item(), second.item()) == (pytest.approx(0.6), 0.0)
    optimizer.restore()


def test_msam_keeps_going_along_the_momentum_of_a_parameter_without_gradient() -> None:
    model = build_model()
    optimizer = msam(model)
    train(model, optimizer, build_batches(1))
    optimizer.zero_grad()
    before = weights_of(model)
    with optimizer.perturbed():
        moved = torch.cat([(p - w).reshape(-1) for p, w in zip(model.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.3, abs=1e-12)
    velocity = torch.cat([optimizer.state[p]["momentum_buffer"].reshape(-1) for p in model.parameters()])
    assert F.cosine_similarity(moved, velocity, dim=0).item() == pytest.approx(-1.0, abs=1e-12)
