"""What holds for every method that ``--method`` takes: exact resume, exact zero, accumulation, bf16."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pof
from pof.app.job import make_optimizer
from pof.app.method_options import (
    AscentOptions,
    AverageOptions,
    BiTuningOptions,
    CoTuningOptions,
    PoFOptions,
    RegularizerOptions,
    SAMOptions,
)
from pof.app.methods import METHODS, Context, build_method
from pof.app.options import TrainOptions

COMBINATIONS = [("pof", "ema"), ("pof", "swa"), ("sam", "lawa")]
CASES = [(name, "none") for name in METHODS] + COMBINATIONS


def network() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1), nn.AdaptiveAvgPool2d(2)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(16, 3))


def data(last: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    sizes = [8, 8, 8, last]
    return [(torch.randn(n, 1, 8, 8, generator=generator), torch.randint(3, (n,), generator=generator)) for n in sizes]


def options(name: str, kind: Any = "none", **changes: Any) -> TrainOptions:
    return replace(
        TrainOptions(
            method=name,
            epochs=3,
            lr=0.05,
            sam=SAMOptions(last_epochs=2),
            average=AverageOptions(kind=kind, window=2),
        ),
        **changes,
    )


def prepare(training: TrainOptions, batches: list[Any]) -> tuple[pof.Method, torch.optim.Optimizer]:
    model = network()
    source_head = nn.Linear(model[-1].in_features, 5).to(next(model.parameters()))  # type: ignore[index]
    method = build_method(Context(model, None, training, 3, batches, source_head=source_head))
    return method, make_optimizer(method, training)


def run(training: TrainOptions, batches: list[Any], **settings: Any) -> nn.Module:
    method, optimizer = prepare(training, batches)
    torch.manual_seed(7)
    result = pof.fit(method, batches, epochs=training.epochs, optimizer=optimizer, device="cpu", **settings)
    return result.model


class Killed(Exception):
    pass


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_method_that_has_trained_is_pickled(name: str, kind: str) -> None:
    """As ``torch.save`` of a whole module and processes that are spawned do."""
    method, optimizer = prepare(options(name, kind), data())
    pof.fit(method, data(), epochs=1, optimizer=optimizer, device="cpu")
    other = pickle.loads(pickle.dumps(method))
    for each in (method, other):
        torch.manual_seed(0)
        each.attach()
        each.train()(*data()[0], *data()[1]).loss.backward()
    for mine, theirs in zip(method.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs) and (mine.grad is None) == (theirs.grad is None)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_killed_run_resumes_to_the_bit(name: str, kind: str, tmp_path: Path) -> None:
    training, batches = options(name, kind), data(last=5)

    def die(row: Any) -> None:
        if row["event"] == "step" and row["step"] == 7:
            raise Killed

    whole = run(training, batches, checkpoint_dir=tmp_path / "a", checkpoint_every=3)
    with pytest.raises(Killed):
        run(training, batches, checkpoint_dir=tmp_path / "b", checkpoint_every=3, log=die)
    resumed = run(training, batches, checkpoint_dir=tmp_path / "b", checkpoint_every=3, resume=True)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


ZERO: dict[str, dict[str, Any]] = {
    **{name: {"sam": SAMOptions(rho=0.0)} for name in ("sam", "asam", "sam-on", "msam", "late-sam")},
    **{
        name: {"regularizer": RegularizerOptions(strength=0.0)}
        for name in ("fnp", "randreg", "adarand", "bss", "delta")
    },
    "bi-tuning": {"bi_tuning": BiTuningOptions(strength=0.0)},
    "co-tuning": {"co_tuning": CoTuningOptions(strength=0.0)},
}


def with_plain_momentum(batches: list[Any]) -> nn.Module:
    """Training without Nesterov's momentum, which MSAM does not want."""
    training = options("finetune")
    method, _ = prepare(training, batches)
    wanted = {"lr": training.lr, "momentum": training.momentum, "weight_decay": training.weight_decay}
    optimizer = torch.optim.SGD(method.trainable_parameters(), **wanted)  # type: ignore[arg-type]
    torch.manual_seed(7)
    return pof.fit(method, batches, epochs=training.epochs, optimizer=optimizer, device="cpu").model


@pytest.mark.parametrize("name", ZERO)
def test_strength_zero_is_plain_training_exactly(name: str) -> None:
    batches = data(last=5)
    plain = run(options("finetune"), batches) if name != "msam" else with_plain_momentum(batches)
    zero = run(options(name, **ZERO[name]), batches)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, zero.state_dict()[key]), key


FROZEN_ZERO: dict[str, dict[str, Any]] = {
    "pof": {"pof": PoFOptions(gamma=0.0)},
    "head-ascent": {"ascent": AscentOptions(level=0.0)},
}


@pytest.mark.parametrize("name", FROZEN_ZERO)
def test_strength_zero_is_plain_training_of_the_extractor_exactly(name: str) -> None:
    batches, training = data(last=5), options("finetune")
    method, _ = prepare(training, batches)
    method.network.head.requires_grad_(False)  # type: ignore[union-attr,operator]
    torch.manual_seed(7)
    frozen = pof.fit(method, batches, epochs=3, optimizer=make_optimizer(method, training), device="cpu").model
    zero = run(options(name, **FROZEN_ZERO[name]), batches)
    for key, value in frozen.state_dict().items():
        assert torch.equal(value, zero.state_dict()[key]), key


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_accumulation_and_bf16(name: str, kind: str) -> None:
    model = run(options(name, kind), data(last=5), accumulation=3, precision="bf16", clip_norm=1.0)
    assert all(bool(torch.isfinite(p).all()) and p.dtype == torch.float32 for p in model.parameters())
    start = network().state_dict()
    assert any(not torch.equal(p, start[key]) for key, p in model.named_parameters())


# Batch statistics, dropout and random references depend on how a batch is cut; without them the cut must not matter.
@pytest.mark.parametrize(
    "name", ["finetune", "sam", "asam", "msam", "fnp", "l2sp", "ema", "late-sam", "co-tuning", "bi-tuning"]
)
def test_accumulated_batches_count_as_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def smooth() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 3)).double()

    monkeypatch.setattr("tests.methods.test_every_method.network", smooth)
    parts = [(x.double(), y) for x, y in data(last=5)]
    whole = [(torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))]
    once, cut = run(options(name, epochs=2), whole), run(options(name, epochs=2), parts, accumulation=4)
    for p, q in zip(once.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_two_averages_are_refused() -> None:
    with pytest.raises(ValueError, match="method 'swa' averages already"):
        prepare(options("swa", "ema"), data())


def test_late_sam_perturbs_in_the_last_epochs_only() -> None:
    training = options("late-sam")
    method, optimizer = prepare(training, data())
    radii = []
    for epoch in range(5):
        method.before_epoch(epoch, 5, optimizer)
        radii.append(optimizer.param_groups[0]["rho"])
    assert radii == [0.0, 0.0, 0.0, 0.05, 0.05]


@pytest.mark.parametrize("kind", ["swa", "lawa", "ema"])
def test_averages_equal_their_definition(kind: Any) -> None:
    batches, training = data(last=5), options("finetune", kind, epochs=4)
    method, optimizer = prepare(training, batches)
    iterates: list[dict[str, Tensor]] = []
    steps: list[dict[str, Tensor]] = []
    model = method.model

    def keep(row: Any) -> None:
        if row["event"] == "step":
            steps.append({k: p.detach().clone() for k, p in model.named_parameters()})
        if row["event"] == "epoch" and row["epoch"] > 0:
            iterates.append(steps[-1])

    torch.manual_seed(7)
    pof.fit(method, batches, epochs=4, optimizer=optimizer, device="cpu", log=keep)
    for key, parameter in method.candidate().named_parameters():
        if kind == "ema":
            expected = steps[0][key]
            for step in steps[1:]:
                expected = 0.99 * expected + 0.01 * step[key]
        else:
            chosen = iterates if kind == "swa" else iterates[-2:]
            expected = torch.stack([weights[key] for weights in chosen]).mean(dim=0)
        torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=1e-6)


class Counting(nn.Module):
    """Keeps a buffer that is no batch-norm statistic."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.seen += len(inputs)
        return inputs


@pytest.mark.parametrize("kind", ["swa", "lawa", "ema"])
def test_other_buffers_of_an_average_are_those_of_the_iterate(kind: Any) -> None:
    method = pof.Averaged(pof.Finetune(nn.Sequential(Counting(), network())), kind)
    pof.fit(method, data(last=5), epochs=2, optimizer=sgd, device="cpu")
    delivered: Any = method.candidate()
    assert delivered is not method.model
    assert float(delivered[0].seen) == 2 * (8 + 8 + 8 + 5)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05)


def test_statistics_of_an_average_weigh_samples_and_take_any_batches() -> None:
    from pof.combine import estimate_statistics

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3, momentum=None)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.norm(x)
            return out

    model, parts = Net(), [torch.randn(10, 3), torch.randn(2, 3)]
    labels = torch.zeros(10, dtype=torch.long)
    for kind in (
        [{"x": part} for part in parts],
        [{"x": part, "labels": labels[: len(part)]} for part in parts],
        [(part, labels[: len(part)]) for part in parts],
        parts,
    ):
        model.norm.reset_running_stats()
        estimate_statistics(model, kind)
        torch.testing.assert_close(model.norm.running_mean, torch.cat(parts).mean(dim=0))
        assert model.norm.momentum is None and model.norm.training


def test_regularizer_adapts_to_all_mini_batches_of_a_step() -> None:
    method, _ = prepare(options("adarand"), data())
    seen = []
    regularizer: Any = method.regularizer
    regularizer.update = lambda features, targets: seen.append((features.shape, targets.shape))
    for inputs, targets in data()[:2]:
        method(inputs, targets)
    method.after_step()
    method.after_step()
    assert seen == [(torch.Size([16, 16]), torch.Size([16]))]


def test_deepcopy_of_every_method_trains_on() -> None:
    for name in METHODS:
        method, _ = prepare(options(name), data())
        copied = copy.deepcopy(method)
        inputs, targets = data()[0]
        reference = data()[1] if copied.needs_reference else ()
        copied(inputs, targets, *reference).loss.backward()
        grads = [p.grad for p in copied.trainable_parameters()]
        assert any(g is not None for g in grads), name
        assert all(p.grad is None for p in method.model.parameters()), name


def test_the_table_says_which_methods_hold_the_head() -> None:
    for name, entry in METHODS.items():
        method, _ = prepare(options(name), data())
        head = method.model.get_submodule(method.head_name)
        assert entry.holds_head is not any(parameter.requires_grad for parameter in head.parameters()), name
