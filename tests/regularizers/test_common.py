"""What every regulariser has in common: off is off, state, copies, precision, the global generators, bad input."""

from __future__ import annotations

import inspect
import io
import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

import pof
from pof.methods import linear_probe
from pof.regularizers import BSS, DELTA, FNP, L2SP, AdaRand, BiTuning, CoTuning, RandReg, Regularizer
from pof.regularizers._references import ReferenceStream
from tests.regularizers import problem
from tests.regularizers.cases import MAKERS, ON_FEATURES, TRAINED, Make

every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
on_features = pytest.mark.parametrize("make", [MAKERS[n] for n in ON_FEATURES], ids=ON_FEATURES)


def assert_equal_state(a: nn.Module, b: nn.Module) -> None:
    one, other = a.state_dict(), b.state_dict()
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@every
def test_strength_zero_is_plain_training_to_the_bit_and_costs_nothing(make: Make) -> None:
    model, plain, data = problem.network(), problem.network(), problem.batches()
    off = make(model, 0.0)
    before = deepcopy(off.state_dict())
    losses = problem.run(model, off, data)
    expected = list(problem.train(plain, lambda f, y, x: 0.0, lambda f, y: None, data))
    assert losses == expected
    assert_equal_state(model, plain)
    penalty = off(torch.ones(2, problem.DIM, requires_grad=True), torch.tensor([0, 1]))
    assert (penalty.item(), penalty.requires_grad) == (0.0, False)
    for name, value in off.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} changed although the penalty is off"
    assert not any(m._forward_hooks for m in model.modules())
    assert not [name for name in before if name.startswith("start_")]


@every
def test_resume_from_state_dict_gives_the_same_bits(make: Make) -> None:
    model, data = problem.network(), problem.batches()
    regularizer, optimizer = make(model, 0.1), problem.optimizer_for(model)
    list(problem.train(model, regularizer, regularizer.update, data[:5], optimizer))
    file = io.BytesIO()
    torch.save([model.state_dict(), regularizer.state_dict(), optimizer.state_dict()], file)
    list(problem.train(model, regularizer, regularizer.update, data[5:], optimizer))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = problem.network()
    resumed, other = make(again, 0.1), problem.optimizer_for(again)
    for target, state in zip((again, resumed, other), saved, strict=True):
        target.load_state_dict(state)
    list(problem.train(again, resumed, resumed.update, data[5:], other))
    assert_equal_state(again, model)
    assert_equal_state(resumed, regularizer)


@every
def test_deepcopy_together_with_the_model_is_independent_and_equal(make: Make) -> None:
    model, data = problem.network(), problem.batches()
    pair = nn.ModuleDict({"model": model, "regularizer": make(model, 0.1)})
    problem.run(pair["model"], pair["regularizer"], data[:5])
    twin = deepcopy(pair)
    snapshot = deepcopy(twin.state_dict())
    losses = problem.run(pair["model"], pair["regularizer"], data[5:])
    for name, value in twin.state_dict().items():
        assert torch.equal(value, snapshot[name]), f"{name} is shared with the copy"
    # Both optimizers start without momentum, so the two runs make the same steps.
    assert problem.run(twin["model"], twin["regularizer"], data[5:]) == losses
    assert_equal_state(twin, pair)


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_is_a_parameter_but_what_is_trained(name: str) -> None:
    model = problem.network()
    trained = [p for p in MAKERS[name](model, 0.1).parameters() if p.requires_grad]
    assert bool(trained) == (name in TRAINED)
    assert not set(trained) & set(model.parameters())
    assert list(MAKERS[name](model, 0.0).parameters()) == []


@every
def test_global_generators_are_left_alone(make: Make) -> None:
    model = problem.network()
    regularizer = make(model, 0.1)
    before = torch.get_rng_state()
    problem.run(model, regularizer, problem.batches())
    assert torch.equal(torch.get_rng_state(), before)


@every
def test_autocast_bf16_penalty_is_float32_and_trains(make: Make) -> None:
    model = problem.network().float()
    regularizer = make(model, 0.1).float()
    network = pof.split(model, "head")
    for inputs, targets in problem.batches():
        with torch.autocast("cpu", torch.bfloat16):
            features, _ = network.features_and_logits(inputs.float())
            penalty = regularizer(features, targets, inputs.float())
        assert features.dtype == torch.bfloat16
        assert penalty.dtype == torch.float32
        penalty.backward()
        regularizer.update(features.detach(), targets)
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert all(b.isfinite().all() for b in regularizer.buffers())


@on_features
def test_autocast_bf16_computes_what_float32_computes_on_the_same_features(make: Make) -> None:
    model = problem.network()
    inside, outside = make(model, 0.1).float(), make(model, 0.1).float()
    features, targets = torch.randn(9, problem.DIM).bfloat16(), torch.arange(9) % problem.CLASSES
    with torch.autocast("cpu", torch.bfloat16):
        penalty = inside(features, targets)
        inside.update(features, targets)
    assert torch.equal(penalty, outside(features.float(), targets))
    outside.update(features.float(), targets)
    assert_equal_state(inside, outside)


@every
def test_one_call_serves_them_all(make: Make) -> None:
    model = problem.network()
    regularizer = make(model, 0.1)
    for inputs, targets in problem.batches()[:2]:  # Bi-Tuning has nothing to contrast with in its first step
        features = pof.split(model, "head").features(inputs)
        penalty = regularizer(features, targets, inputs)
        regularizer.update(features.detach(), targets)
    assert penalty.shape == ()
    assert penalty > 0
    assert regularizer.strength == 0.1
    assert "strength=0.1" in repr(regularizer)


OPTIONS: dict[str, tuple[Callable[..., Regularizer], dict[str, object]]] = {
    "fnp": (FNP, {"strength": 0.25}),
    "randreg": (RandReg, {"prior": "uniform", "strength": 0.25, "seed": 7}),
    "randreg-class": (
        lambda **given: RandReg(**given, mean=MEAN, std=STD),
        {"prior": "class", "strength": 0.25, "seed": 7},
    ),
    "adarand": (
        lambda **given: AdaRand(MEAN, STD, **given),
        {"strength": 0.25, "alpha": 0.125, "lr": 0.5, "seed": 7},
    ),
    "bss": (BSS, {"strength": 0.25, "k": 2}),
    "l2sp": (
        lambda **given: L2SP(problem.network(), **given),
        {"head": "head", "strength": 0.25, "head_strength": 0.5},
    ),
    "delta": (lambda **given: DELTA(problem.network(), ["stem", "conv"], **given), {"strength": 0.25}),
    "bi-tuning": (
        lambda **given: BiTuning(problem.network(), **given),
        {"head": "head", "strength": 0.25, "keys": 3, "dimension": 4, "temperature": 0.5, "momentum": 0.75, "seed": 7},
    ),
    "co-tuning": (
        lambda **given: CoTuning(problem.source_head(), problem.relationship(), **given),
        {"strength": 0.25},
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_those_it_was_built_with(name: str) -> None:
    build, given = OPTIONS[name]
    regularizer = build(**given)
    expected = {"layers": "stem, conv", **given} if name == "delta" else given
    assert regularizer.options() == expected
    plain = inspect.signature(type(regularizer)).parameters.keys() - {
        "model",
        "mean",
        "std",
        "channel_weights",
        "source_head",
        "relationship",
    }
    assert set(regularizer.options()) == plain
    assert repr(regularizer).count("=") >= len(expected)


def test_options_do_not_change_with_the_state() -> None:
    regularizer, other = adarand(seed=1), adarand(seed=2)
    regularizer.load_state_dict(other.state_dict())
    assert (regularizer.options()["seed"], regularizer.stream.seed) == (1, 2)


def penalty_and_state(name: str, targets: Any) -> tuple[Tensor, list[Tensor]]:
    """Of a step on samples of which some are to be ignored, with AdaRand adapted and keys of Bi-Tuning stored."""
    model = problem.network()
    regularizer = MAKERS[name](model, 0.25)
    method = pof.Regularized(model, regularizer, "head")
    out = method(problem.batches()[0][0][:6], targets)
    method.after_step()
    return out.loss.detach(), [value for value in regularizer.state_dict().values() if isinstance(value, Tensor)]


@pytest.mark.parametrize("name", MAKERS)
def test_labels_of_any_kind_are_the_same_samples_and_classes(name: str) -> None:
    ignoring = torch.tensor([0, -100, 1, -100, 4, 2])
    expected = penalty_and_state(name, ignoring)
    for other in (ignoring[:, None], ignoring[:, None].int(), ignoring.tolist()):
        torch.testing.assert_close(penalty_and_state(name, other), expected, rtol=0, atol=0)
    expected = penalty_and_state(name, classes := torch.tensor([0, 1, 1, 3, 4, 2]))
    rows = one_hot(classes, problem.CLASSES)
    for other in (rows, rows.bool()):
        torch.testing.assert_close(penalty_and_state(name, other), expected, rtol=0, atol=0)


F, Y = torch.zeros(3, 6), torch.tensor([0, 1, 4])
MEAN, STD = (t.float() for t in problem.statistics())


def adarand(**options: float) -> AdaRand:
    return AdaRand(MEAN, STD, **options)


BAD = {
    "negative strength": (lambda: FNP(strength=-1.0), "strength must be finite and >= 0; got -1.0"),
    "strength not a number": (lambda: BSS(strength=float("nan")), "strength must be finite"),
    "negative head strength": (lambda: L2SP(problem.network(), "head", head_strength=-1), "head_strength must be"),
    "negative lr": (lambda: adarand(lr=-0.1), "lr must be finite and >= 0; got -0.1"),
    "alpha": (lambda: adarand(alpha=1.5), r"alpha must lie in \[0, 1\]; got 1.5"),
    "seed": (lambda: adarand(seed=-1), r"seed must lie in \[0, 2\*\*63\); got -1"),
    "one class": (lambda: AdaRand(MEAN[:1], STD[:1]), "at least two classes"),
    "mean of another shape": (lambda: AdaRand(MEAN, STD[:2]), r"\(K, D\); got \(5, 6\) and \(2, 6\)"),
    "marginal statistics": (lambda: AdaRand(MEAN[0], STD[0]), r"must both be \(K, D\)"),
    "integer statistics": (lambda: AdaRand(MEAN.long(), STD), "floating point; got torch.int64"),
    "negative deviation": (lambda: AdaRand(MEAN, -STD), "std >= 0"),
    "mean not finite": (lambda: AdaRand(MEAN / 0, STD), "must be finite"),
    "label too large": (lambda: adarand()(F, torch.tensor([0, 5, 1])), "label 5 is out of range for 5 classes"),
    "label negative": (lambda: adarand().update(F, torch.tensor([0, -1, 1])), "label -1 is out of range"),
    "labels per class": (lambda: adarand()(F, F), r"class indices of shape \(3,\).*soft and other targets"),
    "too few labels": (lambda: adarand()(F, Y[:2]), r"got torch.int64 of shape \(2,\)"),
    "other dimension": (lambda: adarand()(torch.zeros(3, 7), Y), "dimension 7, the regulariser's statistics 6"),
    "not a matrix": (lambda: FNP()(torch.zeros(3, 6, 1)), r"\(N, D\) with N >= 1.*got \(3, 6, 1\)"),
    "empty batch": (lambda: BSS()(torch.zeros(0, 6)), r"got \(0, 6\)"),
    "unknown prior": (lambda: RandReg("gauss"), "prior must be one of .*'uniform'.*got 'gauss'"),
    "prior without statistics": (lambda: RandReg("class"), "needs mean and std; RandReg.from_loader"),
    "prior with statistics": (lambda: RandReg("normal", mean=MEAN, std=STD), "'normal' has no statistics"),
    "from_loader for normal": (
        lambda: RandReg.from_loader(problem.network(), [], num_classes=2, prior="normal"),
        "needs no data",
    ),
    "adarand without targets": (lambda: adarand()(F), "needs the targets: call regularizer"),
    "class prior without targets": (lambda: RandReg("class", mean=MEAN, std=STD)(F), "needs the targets"),
    "k of zero": (lambda: BSS(k=0), "k must be a whole number >= 1; got 0"),
    "k too large": (lambda: BSS(k=4)(F), r"k=4 singular values.*min\(N, D\) = 3.*lower k"),
    "head without parameters": (lambda: L2SP(problem.network(), "relu"), "head='relu' has no parameters"),
    "no layers": (lambda: DELTA(problem.network(), []), "layers must name modules of Sequential"),
    "unknown layer": (lambda: DELTA(problem.network(), ["stem", "x"]), r"unknown: \['x'\]"),
    "the whole network": (lambda: DELTA(problem.network(), ["stem", ""]), r"unknown: \[''\]"),
    "weights for layers": (lambda: DELTA(problem.network(), ["stem"], channel_weights=[]), "0 entries for 1 layers"),
    "no inputs": (lambda: DELTA(problem.network(), ["stem"])(F, Y), "needs the inputs"),
    "no forward": (lambda: DELTA(problem.network(), ["stem"])(inputs=F), "only 0 of the layers"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_says_what_was_given_and_what_to_do(case: tuple) -> None:
    build, message = case
    with pytest.raises(ValueError, match=message):
        build()


def test_label_out_of_range_leaves_the_state_as_it_was() -> None:
    regularizer = adarand()
    before = deepcopy(regularizer.state_dict())
    with pytest.raises(ValueError, match="out of range"):
        regularizer.update(torch.ones(2, 6), torch.tensor([0, 7]))
    for name, value in regularizer.state_dict().items():
        assert torch.equal(value, before[name])


def test_references_differ_between_steps_samples_and_seeds() -> None:
    features = torch.zeros(4, 3)
    stream, other = ReferenceStream(0), ReferenceStream(1)
    draws = [stream(features, torch.randn) for _ in range(3)] + [other(features, torch.randn)]
    assert torch.stack(draws).unique().numel() == 4 * 4 * 3


def test_references_of_a_step_depend_on_seed_and_count_only() -> None:
    features = torch.zeros(4, 3)
    stream, late = ReferenceStream(7), ReferenceStream(0)
    stream(torch.zeros(9, 2), torch.rand)
    late.set_extra_state(stream.get_extra_state())
    assert torch.equal(late(features, torch.randn), stream(features, torch.randn))


def test_priors_have_their_moments() -> None:
    # 200,000 numbers: the standard error of a mean is 0.0022 sigma, of a deviation 0.0016 sigma; five of them.
    zeros, targets = torch.zeros(40_000, 5, dtype=torch.float64), torch.arange(40_000) % 2
    mean, std = torch.tensor([[3.0] * 5, [-1.0] * 5]).double(), torch.tensor([[2.0] * 5, [0.5] * 5]).double()

    def penalty(regularizer: RandReg) -> float:
        return float(regularizer(zeros, targets))

    assert penalty(RandReg("uniform")) == pytest.approx(1 / 3, rel=0.02)
    assert penalty(RandReg("normal")) == pytest.approx(1.0, rel=0.02)
    assert penalty(RandReg("features", mean=mean[0], std=std[0])) == pytest.approx(9 + 4, rel=0.02)
    assert penalty(RandReg("class", mean=mean, std=std)) == pytest.approx((13 + 1.25) / 2, rel=0.02)
    assert penalty(RandReg("class", mean=mean, std=0 * std)) == pytest.approx(5.0, rel=1e-12)


def test_fnp_equals_its_closed_form() -> None:
    features = torch.tensor([[1.0, 2.0], [0.0, 3.0], [4.0, 0.0]], requires_grad=True)
    penalty = FNP(strength=0.5)(features)
    penalty.backward()
    assert penalty == 0.5 * (5 + 9 + 16) / (3 * 2)
    torch.testing.assert_close(features.grad, features.detach() / 6)


HOT = [(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.eye(3, dtype=torch.int64).repeat(2, 1))]


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda model, data: pof.AdaRand.from_loader(pof.split(model), data, num_classes=3),
        lambda model, data: pof.RandReg.from_loader(pof.split(model), data, num_classes=3, prior="class"),
        lambda model, data: pof.CoTuning.from_loader(pof.split(model), nn.Linear(4, 6), data, num_classes=3),
        lambda model, data: pof.BiTuning(model, dimension=4, keys=2),
    ],
)
def test_one_hot_rows_are_class_indices(make):
    indices = [(inputs, targets.argmax(dim=1)) for inputs, targets in HOT]
    losses = []
    for data in (HOT, indices):
        model = small()
        method = pof.Regularized(model, make(model, data))
        method.train()
        losses.append(method(*data[0]).loss)
        method.after_step()
    assert torch.equal(*losses)


def test_a_probe_takes_one_hot_rows():
    indices = [(inputs, targets.argmax(dim=1)) for inputs, targets in HOT]
    assert linear_probe(small(), HOT) == linear_probe(small(), indices)


@pytest.mark.parametrize(("loss", "targets"), [("bce", torch.eye(3).int().repeat(2, 1)), ("mse", torch.arange(-8, -2))])
def test_marginal_statistics_read_no_targets(loss, targets):
    model = small() if loss == "bce" else nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
    data = [(HOT[0][0], targets)]
    regularizer = pof.RandReg.from_loader(pof.split(model), data, num_classes=3, prior="features")
    expected = pof.split(model).features(HOT[0][0]).detach().mean(dim=0)
    torch.testing.assert_close(regularizer.mean, expected)


def test_minus_100_is_a_number_where_targets_are_numbers():
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
    method = pof.Regularized(model, pof.FNP(), loss="mse").train()
    features = method.network.features(HOT[0][0])
    out = method(HOT[0][0], torch.tensor([1, 2, -100, 4, 5, 6]))
    torch.testing.assert_close(out.penalty, pof.FNP()(features, None))


def test_a_penalty_that_reaches_nothing_is_said():
    model = small()
    model[0].requires_grad_(False)
    with pytest.warns(UserWarning, match="nothing before the head is trained, so the penalty of FNP"):
        list(pof.Regularized(model, pof.FNP()).trainable_parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(pof.Regularized(model, pof.L2SP(model)).trainable_parameters())
