"""PoF against its literal twin, and the promises of its docstring."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import pof
from pof._support.batches import first_samples
from tests.cases import batch, mlp
from tests.references import pof as twin


def body_of(model: nn.Sequential) -> nn.Sequential:
    return model[:-1]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sampling", ["fixed", "uniform"])
def test_ten_steps_equal_the_twin(bias: bool, sampling: Any) -> None:
    torch.manual_seed(0)
    mine, slow = mlp(bias=bias), mlp(bias=bias)
    slow.load_state_dict(mine.state_dict())
    method = pof.PoF(mine, sampling=sampling)
    fast_sgd = torch.optim.SGD(method.trainable_parameters(), lr=0.1)
    slow_sgd = torch.optim.SGD(body_of(slow).parameters(), lr=0.1)
    for step in range(10):
        b, reference = batch(13, seed=2 * step), batch(16, seed=2 * step + 1)
        out = method(*b, *reference)
        loss, radius = twin.step_loss(body_of(slow), slow.fc, b, reference, out.expansion)  # type: ignore[arg-type]
        assert out.loss.item() == pytest.approx(loss.item(), abs=1e-10)
        assert out.radius.item() == pytest.approx(radius, abs=1e-10)
        for optimizer, value in ((fast_sgd, out.loss), (slow_sgd, loss)):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        for p, q in zip(mine.parameters(), slow.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-10)


def test_gradient_reaches_the_extractor_only_and_the_head_keeps_its_bits() -> None:
    model = mlp()
    head = copy.deepcopy(model.fc.state_dict())
    method = pof.PoF(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.1, momentum=0.9)
    for step in range(3):
        optimizer.zero_grad()
        method(*batch(seed=step), *batch(seed=9 + step)).loss.backward()
        optimizer.step()
    assert all(p.grad is None for p in model.fc.parameters())
    assert all(torch.equal(v, head[k]) for k, v in model.fc.state_dict().items())
    assert {id(p) for p in method.trainable_parameters()} == {id(p) for p in model.body.parameters()}


@pytest.mark.parametrize("sampling", ["fixed", "uniform"])
@pytest.mark.parametrize("features", ["fresh", "previous"])
def test_gamma_zero_is_fine_tuning_with_a_frozen_head_exactly(sampling: Any, features: Any) -> None:
    torch.manual_seed(0)
    mine, plain = mlp(norm=True, dropout=0.3), mlp(norm=True, dropout=0.3)
    plain.load_state_dict(mine.state_dict())
    plain.fc.requires_grad_(False)
    method = pof.PoF(mine, gamma=0.0, sampling=sampling, features=features)
    torch.manual_seed(1)
    run(method, lambda m, b, r: m(*b, *(r if features == "fresh" else ())).loss)
    torch.manual_seed(1)
    run(plain, lambda m, b, r: F.cross_entropy(m(b[0]), b[1]))
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in mine.state_dict().items())


def run(module: nn.Module, loss: Any, steps: int = 5) -> None:
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    for step in range(steps):
        optimizer.zero_grad()
        loss(module, batch(seed=step), batch(seed=50 + step)).backward()
        optimizer.step()


def test_previous_features_are_those_of_the_step_before() -> None:
    torch.manual_seed(0)
    model = mlp()
    method = pof.PoF(model, features="previous", sampling="fixed")
    first = method(*batch(seed=0))
    assert first.expansion == 0.0 and first.radius.item() == 0.0
    assert first.loss.item() == pytest.approx(F.cross_entropy(model(batch(seed=0)[0]), batch(seed=0)[1]).item())
    second = method(*batch(seed=1))
    fresh = pof.PoF(model, sampling="fixed")(*batch(seed=1), *batch(seed=0))
    assert second.loss.item() == fresh.loss.item()  # the weights have not moved in between


@pytest.mark.parametrize(
    ("mode", "moves", "batch_statistics"), [("batch", 1, True), ("running", 1, False), ("update", 2, True)]
)
def test_batch_norm_modes(mode: Any, moves: int, batch_statistics: bool) -> None:
    torch.manual_seed(0)
    model = mlp(norm=True)
    reference = batch(seed=3)
    method = pof.PoF(model, batch_norm=mode, sampling="fixed")
    expected = copy.deepcopy(model)
    expected.train(batch_statistics)
    with torch.no_grad():
        features = expected[:-1](reference[0])
    wanted = pof.head_gradient(features, reference[1], model.fc.weight, model.fc.bias)
    out = method(*batch(seed=4), *reference)
    assert out.gradient_norm.item() == pytest.approx(wanted.norm.item(), rel=1e-12)
    assert int(model.norm.num_batches_tracked) == moves
    assert model.norm.training and model.norm.track_running_stats


@pytest.mark.parametrize("rebinds", [True, False])
def test_statistics_of_a_custom_batch_norm_are_untouched_by_the_reference(rebinds: bool) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("average", torch.zeros(6, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                moved = 0.5 * self.average + x.detach().mean(0)
                self.average = moved if rebinds else self.average.copy_(moved)
            return x - x.mean(0)

    model = nn.Sequential(nn.Linear(5, 6), Own(), nn.Linear(6, 4)).double()
    plain = copy.deepcopy(model)
    pof.PoF(model)(*batch(seed=0), *batch(seed=1))
    plain(batch(seed=0)[0])
    assert torch.equal(model[1].average, plain[1].average)


def test_the_global_generator_is_left_alone() -> None:
    method = pof.PoF(mlp(dropout=0.5))
    torch.manual_seed(3)
    method(*batch(seed=0), *batch(seed=1))
    after = torch.rand(1)
    torch.manual_seed(3)
    plain = mlp(dropout=0.5)
    torch.manual_seed(3)
    plain(batch(seed=0)[0])
    assert torch.equal(after, torch.rand(1))


def test_a_layer_that_draws_from_python_or_numpy_leaves_their_generators_alone() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (1.0 + random.random() + float(np.random.rand()))

    draws = []
    for reference in (batch(seed=1), batch(seed=2)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 6), Noisy(), nn.Linear(6, 4)).double()
        random.seed(1)
        np.random.seed(1)
        pof.PoF(model, features="fresh")(*batch(seed=0), *reference)
        draws.append((random.random(), float(np.random.rand())))
    random.seed(1)
    np.random.seed(1)
    model(batch(seed=0)[0])
    assert draws == [(random.random(), float(np.random.rand()))] * 2


def test_separable_reference_leaves_the_step_unperturbed() -> None:
    model = mlp(classes=2)
    with torch.no_grad():
        model.body.weight.copy_(torch.eye(6, 5) * 2)
        model.body.bias.zero_()
    inputs = torch.cat([torch.ones(4, 5), -torch.ones(4, 5)]).double()
    targets = torch.tensor([0] * 4 + [1] * 4)
    out = pof.PoF(model, sampling="fixed")(inputs, targets, inputs, targets)
    assert not bool(out.bounded) and out.radius.item() == 0.0
    assert out.metrics["separable"].item() == 1.0
    assert out.loss.item() == F.cross_entropy(model(inputs), targets).item()


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"class_weights": torch.tensor([1.0, 2.0, 0.5, 1.0])}])
def test_options_of_the_cross_entropy_reach_direction_radius_and_loss(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, reference, b = mlp(), batch(seed=1), batch(seed=2)
    method = pof.PoF(model, sampling="fixed", **options).double()
    out = method(*b, *reference)
    with torch.no_grad():
        features = body_of(model)(reference[0])
    torch_options = {
        "label_smoothing": options.get("label_smoothing", 0.0),
        "weight": options["class_weights"].double() if "class_weights" in options else None,
    }
    own = {"class_weights": torch_options["weight"]}
    g = pof.head_gradient(
        features, reference[1], model.fc.weight, model.fc.bias, torch_options["label_smoothing"], **own
    )
    moved = [p.detach() - 2 * out.radius * d for p, d in zip(model.fc.parameters(), (g.weight, g.bias), strict=True)]
    expected = F.cross_entropy(F.linear(body_of(model)(b[0]), *moved), b[1], **torch_options)
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert out.radius.item() > 0


def test_general_path_of_a_linear_head_agrees_with_the_exact_one() -> None:
    torch.manual_seed(0)
    model = mlp()
    exact = pof.PoF(model, sampling="fixed")(*batch(seed=1), *batch(seed=2))
    general = pof.PoF(model, sampling="fixed", loss=F.cross_entropy)(*batch(seed=1), *batch(seed=2))
    assert general.gradient_norm.item() == pytest.approx(exact.gradient_norm.item(), rel=1e-10)
    # The general search ends at 2^-17 of an octave; the exact one runs to the last bits.
    assert general.radius.item() == pytest.approx(exact.radius.item(), rel=1e-5)
    assert general.loss.item() == pytest.approx(exact.loss.item(), rel=1e-5)


def test_head_of_several_layers_and_multi_label_loss() -> None:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("body", nn.Linear(5, 6))
    model.add_module(
        "top", nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 4))
    )
    model.double()
    before = copy.deepcopy(model.top.state_dict())
    method = pof.PoF(model, head="top", loss=F.binary_cross_entropy_with_logits)
    inputs = batch(seed=0)[0]
    labels = torch.randint(2, (16, 4)).double()
    out = method(inputs, labels, batch(seed=1)[0], labels)
    out.loss.backward()
    assert out.radius.item() > 0
    assert model.body.weight.grad is not None and float(model.body.weight.grad.abs().sum()) > 0
    after = model.top.state_dict()
    parameters = [k for k, _ in model.top.named_parameters()]
    assert all(torch.equal(after[k], before[k]) for k in parameters)
    assert int(after["0.num_batches_tracked"]) == 1


def test_head_of_a_convolution_with_pooling_after_it() -> None:
    torch.manual_seed(0)
    body = nn.Conv2d(1, 6, 3)
    top = nn.Sequential(nn.Conv2d(6, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    model = nn.Sequential(body, top, nn.Flatten())
    images, targets = torch.randn(2, 8, 1, 6, 6), torch.randint(3, (2, 8))
    method = pof.PoF(model, head="1", sampling="fixed")
    out = method(images[0], targets[0], images[1], targets[1])
    out.loss.backward()
    assert out.radius.item() > 0 and out.perturbed_logits.shape == (8, 3)
    assert body.weight.grad is not None


@pytest.mark.parametrize("features", ["fresh", "previous"])
def test_state_dict_resumes_to_the_bit(features: Any) -> None:
    torch.manual_seed(0)
    method = pof.PoF(mlp(), features=features)
    reference = batch(seed=7) if features == "fresh" else ()
    method(*batch(seed=0), *reference)
    copied = pof.PoF(mlp(), features=features, seed=123)
    copied.load_state_dict(method.state_dict())
    for step in range(1, 4):
        assert torch.equal(method(*batch(seed=step), *reference).loss, copied(*batch(seed=step), *reference).loss)


def test_deepcopy_is_independent() -> None:
    method = pof.PoF(mlp())
    copied = copy.deepcopy(method)
    first = method(*batch(seed=0), *batch(seed=1)).expansion
    assert copied(*batch(seed=0), *batch(seed=1)).expansion == first
    assert copied.model is not method.model


@pytest.mark.parametrize("features", ["fresh", "previous"])
def test_evaluation_mode_gives_the_plain_loss_and_keeps_no_features(features: Any) -> None:
    model = mlp()
    method = pof.PoF(model, features=features).eval()
    inputs, targets = batch()
    for _ in range(2):
        assert method(inputs, targets).loss.item() == F.cross_entropy(model(inputs), targets).item()


@pytest.mark.parametrize("features", ["fresh", "previous"])
def test_reference_size_takes_the_first_samples(features: Any) -> None:
    torch.manual_seed(0)
    model, (inputs, targets), step = mlp(), batch(seed=0), batch(seed=1)
    method = pof.PoF(model, features=features, reference_size=5, sampling="fixed")
    expected = pof.PoF(model, sampling="fixed")(*step, inputs[:5], targets[:5])
    if features == "previous":
        method(inputs, targets)
        out = method(*step)
    else:
        out = method(*step, inputs, targets)
    assert out.loss.item() == expected.loss.item()
    assert out.radius.item() > 0
    whole = pof.PoF(model, sampling="fixed", reference_size=1000)(*step, inputs, targets)
    assert whole.loss.item() == pof.PoF(model, sampling="fixed")(*step, inputs, targets).loss.item()


def test_reference_size_slices_every_tensor_of_a_mapping() -> None:
    mask, extra = torch.ones(6, 3), object()
    inputs = {"ids": torch.arange(18).view(6, 3), "mask": mask, "bias": torch.zeros(2), "extra": extra}
    cut, targets = first_samples(inputs, torch.arange(6), 4)
    assert isinstance(cut, dict) and targets.tolist() == [0, 1, 2, 3]
    assert cut["ids"].tolist() == inputs["ids"][:4].tolist() and cut["mask"].shape == (4, 3)  # type: ignore[index]
    assert cut["bias"] is inputs["bias"] and cut["extra"] is extra


def test_bf16_autocast_computes_the_head_in_float32() -> None:
    torch.manual_seed(0)
    model = mlp().float()
    method = pof.PoF(model)
    cached: list[bool] = []
    model.body.register_forward_pre_hook(lambda *_: cached.append(torch.is_autocast_cache_enabled()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        b, r = batch(seed=0), batch(seed=1)
        # The first forward may be followed by one that tries the head.
        method(b[0].float(), b[1], r[0].float(), r[1])
        cached.clear()
        out = method(b[0].float(), b[1], r[0].float(), r[1])
    # torch 2.6 reuses weights cast without gradient: those of the reference pass and of the check must not be kept.
    assert sorted(cached) == [False, True]
    assert out.loss.dtype == out.radius.dtype == out.logits.dtype == torch.float32
    out.loss.backward()
    assert torch.isfinite(model.body.weight.grad).all()  # type: ignore[arg-type]


def test_bad_options_are_named() -> None:
    for options, message in (
        ({"gamma": -1.0}, "gamma must be a finite number >= 0; got -1.0"),
        ({"gamma": float("nan")}, "got nan"),
        ({"sampling": "normal"}, "sampling must be one of uniform, fixed; got 'normal'"),
        ({"features": "old"}, "features must be one of fresh, previous"),
        ({"batch_norm": "eval"}, "batch_norm must be one of batch, running, update"),
        ({"reference_size": 0}, "reference_size must be a whole number >= 1; got 0"),
        ({"label_smoothing": 1.0}, "label_smoothing must be in"),
        ({"class_weights": torch.tensor([1.0, -1.0])}, "must not be negative"),
        ({"loss": F.cross_entropy, "label_smoothing": 0.1}, "put them into your loss"),
    ):
        with pytest.raises(ValueError, match=message):
            pof.PoF(mlp(), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a second mini-batch"):
        pof.PoF(mlp())(*batch())


class Scaled(nn.Linear):
    """A linear layer whose output is more than that of its weight and bias."""

    def forward(self, inputs: Tensor) -> Tensor:
        return 8 * super().forward(inputs)


@pytest.mark.parametrize(
    "make", [lambda m: pof.PoF(m, gamma=1e-9, sampling="fixed"), lambda m: pof.HeadAscent(m, level=1e-9)]
)
def test_a_small_perturbation_leaves_the_networks_own_logits(make: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), Scaled(6, 3))
    with torch.no_grad():
        model[2].weight.mul_(1e-3)
        model[2].bias.mul_(1e-3)
    (inputs, targets), reference = ((torch.randn(12, 5), torch.arange(12) % 3) for _ in range(2))
    found = make(model)(inputs, targets, *reference).loss
    torch.testing.assert_close(found, F.cross_entropy(model(inputs), targets), rtol=1e-6, atol=0)


def test_reading_a_weight_of_spectral_norm_is_no_iteration_of_it() -> None:
    model = mlp().train()
    parametrizations.spectral_norm(model[-1])
    plain, method = copy.deepcopy(model), pof.PoF(model)
    method.train()
    method(*batch(), *batch(seed=1))  # compares the head with the network first
    plain.load_state_dict(model.state_dict())
    method(*batch(), *batch(seed=1)).loss.backward()
    plain(batch()[0])
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, dict(model.named_buffers())[name]), name
