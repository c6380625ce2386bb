"""The radius that a rise of the loss gives, against the perturbation written out."""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import pof
from pof._support.random import loader_generators
from pof.methods.sharpness_aware import Kind
from pof.optim import SAM, rho_for_level
from tests.processes import ranks

LEVEL = 0.15 * math.log(3)
Batch = tuple[Tensor, Tensor]


def fitted(norm: bool = True, dropout: float = 0.0) -> tuple[nn.Module, list[Batch]]:
    """A network that fits five mini-batches, and these."""
    torch.manual_seed(0)
    middle: nn.Module = nn.BatchNorm1d(16) if norm else nn.Identity()
    model = nn.Sequential(nn.Linear(5, 16), middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 3)).double()
    centres = 2 * torch.eye(3, 5, dtype=torch.float64)
    targets = [torch.randint(3, (16,)) for _ in range(5)]
    batches = [(centres[t] + 0.3 * torch.randn(16, 5, dtype=torch.float64), t) for t in targets]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        for inputs, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model, batches


def loss_at(model: nn.Module, batch: Batch, rho: float, kind: Kind) -> float:
    """The loss of a mini-batch at w + eps(rho)."""
    moved = copy.deepcopy(model)
    parameters = list(moved.parameters())
    gradients = torch.autograd.grad(F.cross_entropy(moved(batch[0]), batch[1]), parameters)
    on = [kind != "sam-on" or i in {2, 3} for i in range(len(parameters))]
    adaptive = [kind == "asam" and "weight" in name for name, _ in moved.named_parameters()]
    scales = [p.detach().abs() + 0.01 if a else torch.ones_like(p) for a, p in zip(adaptive, parameters, strict=True)]
    norm = math.sqrt(sum(float((t * g).square().sum()) for t, g, o in zip(scales, gradients, on, strict=True) if o))
    with torch.no_grad():
        for p, t, g, o in zip(parameters, scales, gradients, on, strict=True):
            p += rho * t * t * g / norm * o
        return float(F.cross_entropy(moved(batch[0]), batch[1]))


@pytest.mark.parametrize("kind", ["sam", "asam", "sam-on"])
def test_the_loss_at_the_radius_has_risen_to_the_level(kind: Kind) -> None:
    model, batches = fitted()
    assert loss_at(model, batches[0], 0.0, kind) < 0.1 * LEVEL
    rho = pof.SharpnessAware(model, kind=kind).calibrate(batches[:1])
    # The search ends within 5 %, and two digits are another 5 % at most.
    assert loss_at(model, batches[0], rho / 1.1, kind) < LEVEL < loss_at(model, batches[0], rho * 1.1, kind)


@pytest.mark.parametrize("guess", [1e-4, 1.0, 3.0, 1e4])
def test_the_search_ends_at_the_same_radius_from_any_guess(guess: float) -> None:
    weight = nn.Parameter(torch.tensor([2.0, 1.0]))
    optimizer = SAM([weight], torch.optim.SGD, rho=0.7, lr=0.1)
    calls = []

    def loss() -> Tensor:
        calls.append(1)
        return weight.square().sum()

    loss().backward()
    gradient, before = weight.grad.clone(), weight.detach().clone()
    rho = rho_for_level(optimizer, loss, 12.0, guess=guess)
    # Uphill from w, the loss is (||w|| + rho)^2.
    assert rho == pytest.approx(math.sqrt(12) - math.sqrt(5), rel=0.05)
    assert len(calls) < (10 if guess == 1.0 else 40)
    assert torch.equal(weight, before) and torch.equal(weight.grad, gradient)
    assert optimizer.param_groups[0]["rho"] == 0.7
    with pytest.raises(RuntimeError, match="without a perturbation"):
        optimizer.step()


def test_the_radius_is_the_median_over_the_mini_batches_to_two_digits() -> None:
    model, batches = fitted()
    single = [pof.SharpnessAware(model).calibrate([batch]) for batch in batches[:3]]
    assert len(set(single)) == 3
    method = pof.SharpnessAware(model)
    assert method.calibrate(batches, num_batches=3) == pytest.approx(sorted(single)[1], rel=0.1)
    assert method.rho == float(f"{method.rho:.1e}")
    assert method.build_optimizer(torch.optim.SGD, lr=0.1).param_groups[0]["rho"] == method.rho


def test_a_higher_level_is_reached_farther_out() -> None:
    model, batches = fitted()
    radii = [pof.SharpnessAware(model).calibrate(batches, level=level) for level in (0.05, 0.15, 0.5)]
    assert radii == sorted(radii) and radii[0] < radii[-1]


def test_nothing_else_changes_and_dropout_does_not_matter() -> None:
    model, batches = fitted(dropout=0.3)
    model.eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    method = pof.SharpnessAware(model)
    first = method.calibrate(batches)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    torch.manual_seed(9)
    assert method.calibrate(batches) == first > 0


def test_a_network_that_does_not_fit_gets_plain_steps_and_a_warning() -> None:
    def trained(make: Callable[[nn.Module], pof.Method]) -> nn.Module:
        _, batches = fitted()
        torch.manual_seed(3)
        method = make(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double())
        if isinstance(method, pof.SharpnessAware):
            with pytest.warns(UserWarning, match="rho is 0: the loss of this network is above 0.15 times"):
                assert method.calibrate(batches) == 0
        optimizer = method.build_optimizer(torch.optim.SGD, lr=0.1, momentum=0.9)
        return pof.fit(method, batches, epochs=2, optimizer=optimizer, device="cpu").model

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = trained(pof.Finetune)
    for one, other in zip(trained(pof.SharpnessAware).parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


def moved(model: nn.Module, loss: Tensor, *radii: float) -> list[nn.Module]:
    """Copies, each moved up the gradient of a loss by its radius."""
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    copies = [copy.deepcopy(model) for _ in radii]
    with torch.no_grad():
        for other, radius in zip(copies, radii, strict=True):
            for p, g in zip(other.parameters(), gradients, strict=True):
                p += radius * g / norm
    return copies


def excess(logits: Tensor, distribution: Tensor) -> Tensor:
    """The mean divergence of the predictions from the targets."""
    return (distribution * (distribution.log() - logits.log_softmax(1))).sum(1).mean()


@pytest.mark.parametrize("soft", [False, True])
def test_targets_that_no_network_can_fit_count_by_what_is_above_their_entropy(soft: bool) -> None:
    smoothing = 0.0 if soft else 0.3
    _, batches = fitted()
    distributions = [F.one_hot(t, 3) * 0.7 + 0.1 for _, t in batches]
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    for _ in range(300):
        for (inputs, _), distribution in zip(batches, distributions, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), distribution).backward()
            optimizer.step()
    optimizer.zero_grad()
    entropy = torch.special.entr(distributions[0]).sum(1).mean()
    level = 0.15 * (math.log(3) - entropy)
    assert entropy > LEVEL and level > 2 * excess(model(batches[0][0]), distributions[0])
    given = [(inputs, d if soft else t) for (inputs, t), d in zip(batches, distributions, strict=True)]
    rho = pof.SharpnessAware(model, label_smoothing=smoothing).calibrate(given[:1])
    inputs, distribution = batches[0][0], distributions[0]
    uphill = F.cross_entropy(model(inputs), distribution)
    below, above = (excess(m(inputs), distribution) for m in moved(model, uphill, rho / 1.1, rho * 1.1))
    assert below < level < above


@pytest.mark.parametrize("options", [{}, {"class_weights": torch.tensor([0.1, 1.0, 5.0])}, {"label_smoothing": 0.01}])
def test_accumulated_mini_batches_are_one_step(options: dict[str, Any]) -> None:
    model, batches = fitted(norm=False)
    batches[0][1][:5] = -100
    parts = [(inputs[i : i + 4], targets[i : i + 4]) for inputs, targets in batches for i in range(0, 16, 4)]
    whole = pof.SharpnessAware(model, **options).calibrate(batches)
    assert pof.SharpnessAware(model, **options).calibrate(parts, accumulation=4) == whole > 0
    assert pof.SharpnessAware(model, **options).calibrate(parts) != whole


def test_with_dropout_the_loss_of_real_steps_is_at_the_level() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(10, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.5)]
    model = nn.Sequential(*layers, nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 5))
    labels = [torch.randint(5, (128,)) for _ in range(8)]
    batches = [(2 * torch.eye(5, 10)[t] + 0.6 * torch.randn(128, 10), t) for t in labels]
    plain = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for inputs, targets in batches * 30:
        plain.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        plain.step()
    rho = pof.SharpnessAware(model).calibrate(batches, num_batches=8)
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho, lr=0.0, model=model)
    losses = []
    for inputs, targets in batches * 12:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        with optimizer.perturbed(), torch.no_grad():
            losses.append(F.cross_entropy(model(inputs), targets))
    # Of 96 steps: their mean is good to 3 %.
    assert float(torch.stack(losses).mean()) == pytest.approx(0.15 * math.log(5), rel=0.1)


@pytest.mark.parametrize("own", ["none", "loader", "sampler"])
def test_a_shuffling_loader_goes_on_as_if_it_had_not_been_read(own: str) -> None:
    model, batches = fitted()
    data: Any = TensorDataset(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
    torch.manual_seed(4)
    generator = None if own == "none" else torch.Generator().manual_seed(4)
    sampler = RandomSampler(data, generator=generator) if own == "sampler" else None
    generator = generator if own == "loader" else None
    loader = DataLoader(data, 16, shuffle=sampler is None, sampler=sampler, generator=generator)
    before = [g.get_state() for g in (torch.default_generator, *loader_generators(loader))]
    pof.SharpnessAware(model).calibrate(loader)
    after = [g.get_state() for g in (torch.default_generator, *loader_generators(loader))]
    assert len(before) == (1 if own == "none" else 2) and all(map(torch.equal, before, after))


def test_a_part_for_the_ascent_gives_the_direction_and_the_whole_mini_batch_the_loss() -> None:
    model, batches = fitted(norm=False)
    inputs, targets = batches[0]
    rho = pof.SharpnessAware(model, ascent_share=0.25).calibrate(batches[:1])
    uphill = F.cross_entropy(model(inputs[:4]), targets[:4])
    below, above = (F.cross_entropy(m(inputs), targets) for m in moved(model, uphill, rho / 1.1, rho * 1.1))
    assert below < LEVEL < above


class Layerdrop(nn.Module):
    """Leaves out with the generators of Python and NumPy."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * (random.random() > 0.3) + inputs * (numpy.random.rand() > 0.3)


def test_generators_of_python_and_numpy_do_not_matter_and_stay() -> None:
    model, batches = fitted()
    model = nn.Sequential(*list(model)[:-1], Layerdrop(), model[-1])
    method = pof.SharpnessAware(model)
    before, own = random.getstate(), numpy.random.get_state()[1].tolist()
    first = method.calibrate(batches)
    assert random.getstate() == before and numpy.random.get_state()[1].tolist() == own
    random.seed(8)
    numpy.random.seed(9)
    assert method.calibrate(batches) == first


def test_a_plain_optimizer_is_refused_and_the_default_is_the_methods_own() -> None:
    model, batches = fitted()
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    for kind in ("sam", "msam"):
        with pytest.raises(ValueError, match="SGD perturbs nothing: give the optimizer that"):
            pof.fit(pof.SharpnessAware(model, kind=kind), batches, epochs=1, optimizer=plain, device="cpu")
        result = pof.fit(pof.SharpnessAware(model, kind=kind, rho=0.7), batches, epochs=1, device="cpu")
        assert result.history[-1]["train_radius"] == pytest.approx(0.7)
    own = SAM(model.parameters(), torch.optim.SGD, rho=0.2, lr=0.1, model=model)
    result = pof.fit(pof.SharpnessAware(model), batches, epochs=1, optimizer=own, device="cpu")
    assert result.history[-1]["train_radius"] == pytest.approx(0.2)


def test_bad_calls_are_named() -> None:
    model, batches = fitted()
    for options in ({"level": 0.0}, {"level": 1.0}, {"num_batches": 0}):
        with pytest.raises(ValueError, match=r"level must be in \(0, 1\), num_batches, accumulation >= 1"):
            pof.SharpnessAware(model).calibrate(batches, **options)
    with pytest.raises(ValueError, match="msam ascends along its momentum"):
        pof.SharpnessAware(model, kind="msam").calibrate(batches)
    with pytest.raises(ValueError, match="got no mini-batch"):
        pof.SharpnessAware(model).calibrate([])
    with pytest.raises(ValueError, match="the loss is nan before the weights are perturbed"):
        pof.SharpnessAware(model).calibrate([(batches[0][0] * float("nan"), batches[0][1])])
    method = pof.SharpnessAware(model)
    method.build_optimizer(torch.optim.SGD, lr=0.1)
    with pytest.raises(RuntimeError, match="comes before build_optimizer"):
        method.calibrate(batches)
    with torch.no_grad():
        model[-1].weight *= 1e4
    with pytest.raises(ValueError, match=r"the gradient is 0 at the loss 0, so that there is no direction"):
        pof.SharpnessAware(model).calibrate(batches)
    still = SAM([weight := nn.Parameter(torch.zeros(2))], torch.optim.SGD, lr=0.1)
    weight.grad = torch.ones(2)
    for arguments in ((0.0, 0.1), (math.nan, 0.1), (0.5, 0.0), (0.5, math.inf)):
        with pytest.raises(ValueError, match="guess and level must be finite and > 0"):
            rho_for_level(still, lambda: 0.1, arguments[0], guess=arguments[1])
    with pytest.raises(ValueError, match=r"does not cross the level 0\.5 at any radius from 0\.1 to"):
        rho_for_level(still, lambda: 0.1, 0.5)


def on_a_share(rank: int) -> float:
    model, batches = fitted(norm=False)
    # Shares of different sizes; the mean is that of the whole mini-batch.
    rows = slice(0, 6) if rank == 0 else slice(6, None)
    return pof.SharpnessAware(model).calibrate([(inputs[rows], targets[rows]) for inputs, targets in batches])


def test_two_processes_find_the_radius_of_the_whole_mini_batch(tmp_path: Path) -> None:
    model, batches = fitted(norm=False)
    expected: Any = pof.SharpnessAware(model).calibrate(batches)
    assert expected > 0
    assert ranks(on_a_share, 2, tmp_path) == [expected] * 2


def test_a_rise_counts_from_the_loss_as_it_is_and_a_network_that_does_not_fit_gets_a_radius() -> None:
    model, batches = fitted()
    with torch.no_grad():
        model[-1].weight *= 0.05  # above the level from the start
    start = loss_at(model, batches[0], 0.0, "sam")
    assert start > LEVEL
    rho = pof.SharpnessAware(model).calibrate(batches[:1], level_kind="rise")
    risen = [loss_at(model, batches[0], rho * factor, "sam") - start for factor in (1 / 1.1, 1.1)]
    assert risen[0] < LEVEL < risen[1]
    with pytest.raises(ValueError, match="level_kind must be one of level, rise; got 'fall'"):
        pof.SharpnessAware(model).calibrate(batches, level_kind="fall")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="every"):
        pof.SharpnessAware(model).calibrate(batches, every=0)


def test_a_rise_with_smoothed_labels_counts_from_the_loss_and_not_from_their_entropy() -> None:
    model, batches = fitted(norm=False)
    method = pof.SharpnessAware(model, label_smoothing=0.2)
    rho = method.calibrate(batches[:1], level_kind="rise")
    (inputs, targets), smoothing = batches[0], 0.2
    soft = torch.tensor([1 - smoothing * 2 / 3, smoothing / 3, smoothing / 3], dtype=torch.float64)
    rise = 0.15 * (math.log(3) - float(torch.special.entr(soft).sum()))
    start = F.cross_entropy(model(inputs), targets, label_smoothing=smoothing)
    gradients = torch.autograd.grad(start, list(model.parameters()))
    norm = torch.sqrt(sum(g.square().sum() for g in gradients))

    def risen(radius: float) -> float:
        moved = {n: p + radius * g / norm for (n, p), g in zip(model.named_parameters(), gradients, strict=True)}
        logits = torch.func.functional_call(model, moved, (inputs,))
        return float((F.cross_entropy(logits, targets, label_smoothing=smoothing) - start).detach())

    assert risen(rho / 1.1) < rise < risen(rho * 1.1)


def test_a_larger_mini_batch_has_a_larger_radius() -> None:
    model, batches = fitted(norm=False)
    whole = [(torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))]
    single = [(inputs[:2], targets[:2]) for inputs, targets in batches]
    assert pof.SharpnessAware(model).calibrate(whole) > 1.2 * pof.SharpnessAware(model).calibrate(single)


@pytest.mark.parametrize("kind", ["sam", "asam", "sam-on"])
def test_the_shares_of_the_layers_are_those_of_the_perturbation_itself(kind: Kind) -> None:
    model, batches = fitted()
    method = pof.SharpnessAware(model, kind=kind)
    method.calibrate(batches[:1])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = method.build_optimizer(torch.optim.SGD, lr=0.1)
    F.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
    with optimizer.perturbed():  # type: ignore[attr-defined]
        moves = {name: float((p.detach() - before[name]).square().sum()) for name, p in model.named_parameters()}
    wanted = {layer: sum(v for name, v in moves.items() if name[0] == layer) / sum(moves.values()) for layer in "014"}
    assert method.shares == pytest.approx(wanted, rel=1e-9)
    assert sum(method.shares.values()) == pytest.approx(1.0)
    found = pof.fit(method, batches, epochs=1, optimizer=optimizer, device="cpu").history
    assert [row["share_0"] for row in found] == [method.shares["0"]] * 2


class Stopped(Exception):
    pass


@pytest.mark.parametrize("last_epochs", [None, 4])
def test_the_radius_is_taken_anew_and_a_resumed_run_has_it(last_epochs: int | None, tmp_path: Path) -> None:
    def run(folder: str, resume: bool = False, stop: int | None = None) -> pof.FitResult:
        model, batches = fitted(norm=False)
        method = pof.SharpnessAware(model, last_epochs=last_epochs)
        method.calibrate(batches, every=2, level_kind="rise")
        optimizer = method.build_optimizer(torch.optim.SGD, lr=0.2, weight_decay=0.05)

        def log(row: Any) -> None:
            if row["event"] == "epoch" and row["epoch"] == stop:
                raise Stopped

        options: dict[str, Any] = {"checkpoint_dir": tmp_path / folder, "resume": resume, "device": "cpu"}
        return pof.fit(method, batches, epochs=5, optimizer=optimizer, checkpoint_every=1, log=log, **options)

    whole = run("a")
    radii = [row["train_radius"] for row in whole.history[1:]]
    first, second, third = radii[1], radii[2], radii[4]
    assert radii == [0.0 if last_epochs else first, first, second, second, third]
    assert len({first, second, third}) == 3 and min(first, second, third) > 0
    with pytest.raises(Stopped):
        run("b", stop=4)
    resumed = run("b", resume=True)
    assert [row["train_radius"] for row in resumed.history[1:]] == radii
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
