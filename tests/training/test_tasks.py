"""One logit, several labels, regression, ordered classes, any loss: every method that can, against a loop by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import sklearn.metrics
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pof
from pof.perturbation.tasks import LOSSES
from pof.training.selection import Selection
from pof.training.tasks import TaskMetrics
from tests.cases import batch, mlp


def data(task: str, count: int = 3, n: int = 12, first: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Mini-batches, the last one smaller; targets follow the inputs."""
    found = []
    for seed in range(first, first + count):
        x, _ = batch(n if seed + 1 < first + count else 7, seed=seed)
        targets = {
            "bce": (x[:, 0] > 0).long(),
            "several": (x[:, :3] > 0).float(),
            "mse": x[:, 0].sin(),
            "ordinal": (x[:, 0] * 2).round().clamp(-1, 2).long() + 1,
            "l1": x[:, :2].tanh(),
        }
        found.append((x, targets[task]))
    return found


def l1(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().mean(dim=1)  # one value per sample


def by_hand(task: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss as a user would write it."""
    return {
        "bce": lambda z, t: F.binary_cross_entropy_with_logits(z[:, 0], t.to(z.dtype)),
        "several": lambda z, t: F.binary_cross_entropy_with_logits(z, t.to(z.dtype)),
        "mse": lambda z, t: ((z[:, 0] - t) ** 2).mean(),
        "ordinal": lambda z, t: sum(F.binary_cross_entropy_with_logits(z[:, k], (t > k).to(z.dtype)) for k in range(3)),
        "l1": lambda z, t: l1(z, t).mean(),
    }[task]


OUTPUTS = {"bce": 1, "several": 3, "mse": 1, "ordinal": 3, "l1": 2}
LOSS: dict[str, Any] = {"bce": "bce", "several": "bce", "mse": "mse", "ordinal": "ordinal", "l1": l1}
TASKS = list(OUTPUTS)


def network(task: str) -> nn.Module:
    torch.manual_seed(0)
    return mlp(OUTPUTS[task])


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def loop(task: str, penalty: Callable[[Any, Tensor, Tensor], Any] = lambda m, f, x: 0.0, epochs: int = 2) -> nn.Module:
    model = network(task)
    optimizer, loss = sgd(model.parameters()), by_hand(task)
    for _ in range(epochs):
        for inputs, targets in data(task):
            features = model[:-1](inputs)
            optimizer.zero_grad()
            (loss(model.fc(features), targets) + penalty(model, features, inputs)).backward()
            optimizer.step()
    return model


def fitted(method: pof.Method, task: str, **options: Any) -> pof.FitResult:
    given = {"optimizer": sgd, "schedule": pof.Schedule("constant"), "epochs": 2, "device": "cpu"}
    return pof.fit(method, data(task), **{**given, **options})


def same(one: nn.Module, other: nn.Module, rtol: float = 1e-9) -> None:
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=rtol, atol=1e-12, msg=name)


@pytest.mark.parametrize("task", TASKS)
def test_plain_training_and_its_validation_equal_a_loop(task: str) -> None:
    model, held_out = network(task), data(task, first=10)
    rows: list[Any] = []
    result = fitted(pof.Finetune(model, loss=LOSS[task]), task, val_loader=held_out, log=rows.append, metric="loss")
    assert result.best_epoch == 2
    same(loop(task), model)
    x, targets = (torch.cat(parts) for parts in zip(*held_out, strict=True))
    for epoch in (0, 2):
        trained = network(task) if epoch == 0 else model
        assert result.history[epoch]["val_loss"] == pytest.approx(value(task, trained, x, targets), rel=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_accumulated_mini_batches_are_one(task: str) -> None:
    whole, parts = network(task), network(task)
    joined = [tuple(torch.cat(each) for each in zip(*data(task), strict=True))]
    common: Any = {"optimizer": sgd, "epochs": 1, "device": "cpu"}
    pof.fit(pof.Finetune(whole, loss=LOSS[task]), joined, **common)
    pof.fit(pof.Finetune(parts, loss=LOSS[task]), data(task), accumulation=3, **common)
    same(whole, parts)


def start_of(task: str) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in network(task).named_parameters()}


def pulled(task: str) -> Callable[[Any, Tensor, Tensor], Any]:
    """L2-SP: body towards its start, head towards 0."""
    start = start_of(task)

    def penalty(model: Any, features: Tensor, inputs: Tensor) -> Any:
        body = sum((p - start[n]).square().sum() for n, p in model.named_parameters() if not n.startswith("fc"))
        return 0.1 * body + 0.05 * sum(p.square().sum() for p in model.fc.parameters())

    return penalty


PENALTIES: dict[str, tuple[Callable[[Any], Any], Callable[[str], Callable[[Any, Tensor, Tensor], Any]]]] = {
    "fnp": (lambda m: pof.regularizers.FNP(strength=0.3), lambda t: lambda m, f, x: 0.3 * f.square().mean()),
    "bss": (lambda m: pof.BSS(strength=0.1), lambda t: lambda m, f, x: 0.1 * torch.linalg.svdvals(f)[-1] ** 2),
    "delta": (
        lambda m: pof.DELTA(m, ["act"], strength=0.3),
        lambda t: lambda m, f, x: 0.15 * (f - network(t)[:-1](x).detach()).square().mean(),
    ),
    "l2sp": (lambda m: pof.L2SP(m, strength=0.2, head_strength=0.1), pulled),
}


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("task", TASKS)
def test_a_penalty_beside_the_loss_equals_a_loop(task: str, name: str) -> None:
    make, penalty = PENALTIES[name]
    model = network(task)
    fitted(pof.Regularized(model, make(model), loss=LOSS[task]), task)
    same(loop(task, penalty(task)), model)


@pytest.mark.parametrize("task", TASKS)
def test_sam_equals_a_loop(task: str) -> None:
    model, hand, loss = network(task), network(task), by_hand(task)
    around = partial(pof.SAM, base_optimizer_class=torch.optim.SGD, rho=0.1, lr=0.1, momentum=0.9)
    fitted(pof.SharpnessAware(model, rho=0.1, loss=LOSS[task]), task, optimizer=around)
    optimizer = sgd(hand.parameters())
    for _ in range(2):
        for inputs, targets in data(task):
            grads = torch.autograd.grad(loss(hand(inputs), targets), list(hand.parameters()))
            norm = torch.sqrt(sum(g.square().sum() for g in grads))
            moved = {n: p + 0.1 * g / norm for (n, p), g in zip(hand.named_parameters(), grads, strict=True)}
            optimizer.zero_grad()
            loss(torch.func.functional_call(hand, moved, (inputs,)), targets).backward()
            optimizer.step()
    same(hand, model, 1e-7)


def value(task: str, model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    return float(by_hand(task)(model(inputs), targets).detach())


def along(model: Any, task: str, inputs: Tensor, targets: Tensor) -> tuple[list[Tensor], Callable[[float], Tensor]]:
    """The normalised head gradient of a mini-batch, and its loss at an amount down that."""
    features, head, loss = model[:-1](inputs).detach(), list(model.fc.parameters()), by_hand(task)
    grads = torch.autograd.grad(loss(model.fc(features), targets), head)
    norm = torch.sqrt(sum(g.square().sum() for g in grads))
    units = [g / norm for g in grads]

    def at(amount: float) -> Tensor:
        weight, bias = (p.detach() - amount * u for p, u in zip(head, units, strict=True))
        return loss(F.linear(features, weight, bias), targets)

    return units, at


def bisected(falls: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    while falls(high) and high < 1e3:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falls(middle) else (low, middle)
    return low


@pytest.mark.parametrize("task", ["mse", "ordinal", "several", "l1"])
def test_pof_equals_a_loop(task: str) -> None:
    model, hand, loss = network(task), network(task), by_hand(task)
    result = fitted(pof.PoF(model, sampling="fixed", gamma=1.5, loss=LOSS[task]), task)
    optimizer, radii = sgd(hand[:-1].parameters()), []
    for _ in range(2):
        mini_batches = data(task)
        for number, (inputs, targets) in enumerate(mini_batches):
            units, at = along(hand, task, *mini_batches[(number + 1) % len(mini_batches)])
            radii.append(bisected(lambda xi, at=at: bool(at(xi * (1 + 1e-9) + 1e-12) < at(xi))))
            weight, bias = (p.detach() - 1.5 * radii[-1] * u for p, u in zip(hand.fc.parameters(), units, strict=True))
            optimizer.zero_grad()
            loss(F.linear(hand[:-1](inputs), weight, bias), targets).backward()
            optimizer.step()
    assert min(radii) > 0
    assert result.history[-1]["train_radius"] == pytest.approx(
        sum(r * len(t) for r, (_, t) in zip(radii[3:], data(task), strict=True)) / 31, rel=1e-4
    )
    # The general search ends at 2^-17 of an octave; here the difference of the losses ends at rounding.
    same(hand, model, 1e-3)


GUESSING: dict[str, Callable[[Tensor], float]] = {
    "bce": lambda t: math.log(2),
    "several": lambda t: math.log(2),
    "mse": lambda t: float(t.var(correction=0)),
    "ordinal": lambda t: 3 * math.log(2),
    "l1": lambda t: float(t.abs().mean()),
}


def trained(task: str) -> Any:
    model = network(task)
    fitted(pof.Finetune(model, loss=LOSS[task]), task, epochs=60)
    return model


@pytest.mark.parametrize("task", TASKS)
def test_levels_are_shares_of_the_loss_of_guessing(task: str) -> None:
    model = trained(task)
    inputs, targets = data(task)[0]
    wanted = 0.6 * GUESSING[task](targets)
    assert value(task, model, inputs, targets) < wanted, "the network does not fit the task"
    _, at = along(model, task, inputs, targets)
    out = pof.HeadAscent(model, level=0.6, loss=LOSS[task])(inputs, targets)
    assert float(out.loss.detach()) == pytest.approx(wanted, rel=1e-4)
    assert float(out.radius) > 0
    assert float(at(-float(out.radius))) == pytest.approx(wanted, rel=1e-4)


def test_levels_of_soft_labels_and_of_several_numbers_by_hand() -> None:
    soft = torch.tensor([[0.2, 1.0], [0.5, 0.9]], dtype=torch.float64)
    least = sum(-p * math.log(p) - (1 - p) * math.log(1 - p) for p in (0.2, 0.5, 0.9)) / 4
    assert float(LOSSES["bce"]().level(0.25, soft, soft)) == pytest.approx(0.75 * least + 0.25 * math.log(2))
    numbers = torch.tensor([[0.0, 10.0], [2.0, 16.0]], dtype=torch.float64)  # variances 1 and 9
    assert float(LOSSES["mse"]().level(0.25, numbers, numbers)) == pytest.approx(0.25 * 5)


def test_a_figure_that_is_no_number_is_the_worst_and_replaced_by_any_other() -> None:
    lost, large = (TaskMetrics("rmse", value, 1.0, 4, {}) for value in (math.nan, 1e9))
    selection, model = Selection(), nn.Linear(2, 2)
    assert [selection.consider(epoch, model, each) for epoch, each in enumerate([lost, large, lost])] == [1, 1, 0]
    assert large.rank() < replace(lost, higher_is_better=True).rank()


@pytest.mark.parametrize("task", TASKS)
def test_the_radius_from_the_data_is_a_rise_of_this_loss(task: str) -> None:
    model, loss = network(task), by_hand(task)
    inputs, targets = data(task)[0]
    rho = pof.SharpnessAware(model, loss=LOSS[task]).calibrate([(inputs, targets)], level=0.2, level_kind="rise")
    before = loss(model(inputs), targets)
    grads = torch.autograd.grad(before, list(model.parameters()))
    norm = torch.sqrt(sum(g.square().sum() for g in grads))
    moved = {n: p + rho * g / norm for (n, p), g in zip(model.named_parameters(), grads, strict=True)}
    risen = loss(torch.func.functional_call(model, moved, (inputs,)), targets) - before
    # The radius is good to 5 %, and the loss rises a little faster than it.
    assert float(risen.detach()) == pytest.approx(0.2 * GUESSING[task](targets), rel=0.15)


def test_a_loss_without_a_scale_has_no_level_and_the_message_names_methods_that_need_none() -> None:
    inputs, targets = data("mse")[0]
    shifted = lambda z, t: F.mse_loss(z[:, 0], t) - 100.0  # noqa: E731
    with pytest.raises(ValueError, match=r"outputs that are all 0 is -\d.*pof.PoF, or pof.SharpnessAware"):
        pof.HeadAscent(network("mse"), loss=shifted)(inputs, targets)


FIGURES: dict[str, dict[str, Callable[[Tensor, Tensor], Any]]] = {
    "bce": {"error": lambda z, t: ((z[:, 0] > 0) != t).double().mean()},
    "several": {"error": lambda z, t: ((z > 0) != t.bool()).double().mean()},
    "mse": {
        "rmse": lambda z, t: (z[:, 0] - t).square().mean().sqrt(),
        "mae": lambda z, t: (z[:, 0] - t).abs().mean(),
        "r2": lambda z, t: 1 - (z[:, 0] - t).square().sum() / (t - t.mean()).square().sum(),
    },
    "ordinal": {
        "mae": lambda z, t: ((z > 0).sum(1) - t).abs().double().mean(),
        "error": lambda z, t: ((z > 0).sum(1) != t).double().mean(),
    },
    "l1": {},
}


@pytest.mark.parametrize("task", TASKS)
def test_figures_are_those_of_all_samples(task: str) -> None:
    model, held_out = network(task), data(task)
    x, targets = (torch.cat(parts) for parts in zip(*held_out, strict=True))
    found = pof.evaluate(model, held_out, loss=LOSS[task])
    assert isinstance(found, pof.TaskMetrics)
    outputs = model(x).detach()
    assert (found.n, found.metric) == (31, next(iter(FIGURES[task]), "loss"))
    assert found.loss == pytest.approx(float(by_hand(task)(outputs, targets)), rel=1e-9)
    assert found.figures == pytest.approx({k: float(f(outputs, targets)) for k, f in FIGURES[task].items()}, rel=1e-9)


def closeness(outputs: Tensor, targets: Tensor) -> Tensor:
    return -(outputs[:, 0] - targets).abs().amax()


closeness.higher_is_better = True  # type: ignore[attr-defined]


@pytest.mark.parametrize("metric", ["rmse", "r2", "loss", closeness])
def test_the_best_epoch_is_that_of_the_metric_and_the_best_network_is_handed_back(metric: Any) -> None:
    model, held_out = network("mse"), data("mse", first=10)
    method = pof.Finetune(model, loss="mse")
    result = fitted(
        method, "mse", val_loader=held_out, metric=metric, epochs=6, optimizer=lambda p: torch.optim.SGD(p, 1.2)
    )
    name = metric if isinstance(metric, str) else "closeness"
    values = [row[f"val_{name}"] for row in result.history]
    sign = -1 if name in {"r2", "closeness"} else 1
    best = min(range(len(values)), key=lambda epoch: sign * values[epoch])
    assert (result.best_epoch, result.stopped) == (best, None)
    after = pof.evaluate(model, held_out, loss="mse", metric=metric)
    assert after.value == pytest.approx(values[best], rel=1e-9)
    assert f"validation {name} " in result.message or "handed back unchanged" in result.message


def test_a_metric_beside_the_cross_entropy() -> None:
    model, (x, y) = mlp(), batch()
    found = pof.evaluate(model, [(x, y)], metric=lambda z, t: (z.argmax(1) == t).double().sum())
    assert found.value == 16 * (1 - pof.evaluate(model, [(x, y)]).error)


def test_a_resumed_run_takes_the_same_metric(tmp_path: Any) -> None:
    common: Any = {"val_loader": data("mse"), "checkpoint_dir": tmp_path}
    rows: list[Any] = []
    fitted(pof.Finetune(network("mse"), loss="mse"), "mse", metric="mae", log=rows.append, **common)
    result = fitted(pof.Finetune(model := network("mse"), loss="mse"), "mse", metric="mae", resume=True, **common)
    assert result.history[-1] == rows[-2]
    assert result.best_epoch == 2
    same(model, loop("mse"))
    with pytest.raises(pof.CheckpointError, match="metric"):
        fitted(pof.Finetune(network("mse"), loss="mse"), "mse", metric="r2", resume=True, **common)
    with pytest.raises(pof.CheckpointError, match="loss"):
        fitted(pof.Finetune(network("mse"), loss=F.l1_loss), "mse", metric="mae", resume=True, **common)


# Nothing silently wrong


def test_values_per_sample_are_averaged_by_the_weights_of_the_loss() -> None:
    weights = torch.tensor([0.2, 1.0, 3.0, 0.5]).double()
    (x, y), model = batch(), mlp()
    y[0] = -100
    for mean, each in (
        (nn.CrossEntropyLoss(weights), nn.CrossEntropyLoss(weights, reduction="none")),
        (partial(F.cross_entropy, weight=weights), partial(F.cross_entropy, weight=weights, reduction="none")),
        (
            lambda z, t: F.l1_loss(z, t.abs()[:, None] * torch.ones(4)),
            lambda z, t: (z - t.abs()[:, None]).abs().mean(1),
        ),
    ):
        wanted = mean(model(x), y)
        torch.testing.assert_close(pof.Finetune(model, loss=each)(x, y).loss, wanted)


@pytest.mark.parametrize(
    ("loss", "targets", "message"),
    [
        (
            lambda z, t: (z - t).abs().mean(),
            lambda y: y.double(),
            r"broadcasts targets \(16,\) against outputs \(16, 1\)",
        ),
        (lambda z, t: (z - t[:, None]).square(), lambda y: y.double(), r"returned \(16, 1\)"),
        (lambda z, t: 1.0, lambda y: y, "returned float"),
        ("bce", lambda y: y * 2, "targets in .0, 1.; got 2"),
        ("bce", lambda y: torch.ones(16, 2), r"a target for each output, \(16, 1\); got \(16, 2\)"),
        ("mse", lambda y: torch.full((16,), math.nan), "finite targets; got nan"),
        ("mse", lambda y: torch.ones(16, 2), r"mse needs a target for each output, \(16, 1\)"),
        ("ordinal", lambda y: y.float(), "class indices"),
        ("ordinal", lambda y: y + 1, "classes from 0 to 1; got 2"),
    ],
)
def test_targets_that_do_not_fit_are_refused(loss: Any, targets: Any, message: str) -> None:
    x, y = batch(classes=2)
    method = pof.Finetune(mlp(1), loss=loss)
    with pytest.raises(ValueError, match=message):
        method(x, targets(y))


def test_a_loss_that_sums_is_refused() -> None:
    for loss in (nn.MSELoss(reduction="sum"), partial(F.cross_entropy, reduction="sum")):
        with pytest.raises(ValueError, match="sums over the mini-batch"):
            pof.Finetune(mlp(), loss=loss)


def test_adarand_refuses_targets_without_a_class_and_names_what_needs_none() -> None:
    task = "several"
    statistics = pof.AdaRand.from_loader(pof.split(network("ordinal")), data("ordinal"), num_classes=4)
    with pytest.raises(ValueError, match=r"FNP, .*L2SP, BSS and DELTA need none"):
        fitted(pof.Regularized(network(task), statistics, loss="bce"), task)
    assert fitted(pof.Regularized(network("ordinal"), statistics, loss="ordinal"), "ordinal").stopped is None


# A network that ends in a sigmoid or softmax


def ended(task: str, end: nn.Module) -> nn.Module:
    model = nn.Sequential()
    for name, part in network(task).named_children():
        model.add_module(name, part)
    model.add_module("end", end)
    return model


@pytest.mark.parametrize("task", ["bce", "several", "ordinal"])
def test_a_sigmoid_at_the_end_is_seen_through(task: str) -> None:
    plain, model, held_out = network(task), ended(task, nn.Sigmoid()), data(task)
    with pytest.warns(UserWarning, match="their logit is taken"):
        found = pof.evaluate(model, held_out, loss=LOSS[task])
    assert found == pof.evaluate(plain, held_out, loss=LOSS[task]) or found.loss == pytest.approx(
        pof.evaluate(plain, held_out, loss=LOSS[task]).loss, rel=1e-6
    )
    for method, other in ((pof.Finetune, plain), (pof.PoF, network(task))):
        model = ended(task, nn.Sigmoid())
        fitted(method(model, loss=LOSS[task]), task)
        fitted(method(other, loss=LOSS[task]), task)
        same(other, model)


def test_an_end_of_another_task_is_refused() -> None:
    sigmoid, softmax, (x, y) = ended("several", nn.Sigmoid()), ended("several", nn.Softmax(1)), batch(classes=3)
    ones = F.one_hot(y, 3).float()
    with pytest.raises(ValueError, match=r"ends in a sigmoid.*loss='bce'"):
        pof.evaluate(sigmoid, [(x, y)])
    with pytest.raises(ValueError, match=r"returns the sigmoid of its head 'fc'.*loss='bce'"):
        pof.Finetune(sigmoid)(x, y)
    with pytest.raises(ValueError, match="probabilities of a softmax"):
        pof.evaluate(softmax, [(x, ones)], loss="bce")
    with pytest.raises(ValueError, match=r"returns the softmax of its head 'fc'.*let the network return the logits"):
        pof.Finetune(softmax, loss="bce")(x, ones)
    # Logits that happen to lie there are logits.
    small = network("several")
    nn.init.zeros_(small.fc.weight)
    nn.init.constant_(small.fc.bias, 0.5)
    assert pof.evaluate(small, [(x, y)]).nll == pytest.approx(math.log(3))
    assert pof.evaluate(small, [(x, ones)], loss="bce").loss == pytest.approx(
        float(F.binary_cross_entropy_with_logits(torch.full((16, 3), 0.5), ones))
    )


def test_outputs_between_0_and_1_of_a_network_without_a_head_are_told() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :3].sigmoid()

    x, y = batch(classes=3)
    with pytest.warns(UserWarning, match=r"all outputs of Scaled lie in \[0, 1\]: taken for logits"):
        assert pof.evaluate(Scaled(), [(x, y)]).nll == pytest.approx(float(F.cross_entropy(x[:, :3].sigmoid(), y)))
    with pytest.raises(ValueError, match=r"lie in \[0, 1\], and its head does not tell why"):
        pof.evaluate(Scaled(), [(x, F.one_hot(y, 3).float())], loss="bce")


def test_what_loss_and_metric_may_be() -> None:
    with pytest.raises(ValueError, match=f"loss must be one of {', '.join(LOSSES)}, or a function"):
        pof.Finetune(mlp(), loss="hinge")
    with pytest.raises(ValueError, match="metric must be one of rmse, mae, r2, loss for this loss"):
        pof.evaluate(network("mse"), data("mse"), loss="mse", metric="error")
    with pytest.raises(ValueError, match="must be a number"):
        pof.evaluate(network("mse"), data("mse"), loss="mse", metric=lambda z, t: z)
    with pytest.raises(ValueError, match="label_smoothing and class_weights belong to the cross-entropy"):
        pof.SharpnessAware(mlp(), loss="bce", label_smoothing=0.1)


def test_averages_are_judged_by_the_loss_of_their_method() -> None:
    model = network("mse")
    method = pof.Averaged(pof.Finetune(model, loss="mse"), "ema", decay=0.5)
    result = fitted(method, "mse", val_loader=data("mse", first=10))
    assert set(result.history[0]) >= {"val_rmse", "val_mae", "val_r2", "val_loss", "val_n"}
    average: Any = copy.deepcopy(network("mse"))
    hand, count = network("mse"), 0
    optimizer = sgd(hand.parameters())
    for _ in range(2):
        for inputs, targets in data("mse"):
            optimizer.zero_grad()
            by_hand("mse")(hand(inputs), targets).backward()
            optimizer.step()
            count += 1
            for p, q in zip(average.parameters(), hand.parameters(), strict=True):
                p.data.lerp_(q.data, 1.0 if count == 1 else 0.5)
    same(average, model)


def test_metrics_of_other_libraries_are_not_misread() -> None:
    """R2 of scikit-learn was called with its arguments swapped, and the worst epoch chosen."""
    model, held_out = network("mse"), data("mse", first=10)
    for metric in (sklearn.metrics.r2_score, partial(sklearn.metrics.r2_score, force_finite=False)):
        with pytest.raises(ValueError, match=r"r2_score of scikit-learn takes.*r2_score\(targets, out"):
            pof.evaluate(model, held_out, loss="mse", metric=metric)

    def score(outputs: Tensor, targets: Tensor) -> float:
        return float(sklearn.metrics.r2_score(targets, outputs[:, 0]))

    found = pof.evaluate(model, held_out, loss="mse", metric=score)
    assert isinstance(found, pof.TaskMetrics) and found.value == pytest.approx(found.figures["r2"], rel=1e-6)

    def theirs(outputs: Tensor, targets: Tensor) -> float:
        return 1.0

    theirs.__module__ = "torchmetrics.functional.regression.r2"
    with pytest.raises(ValueError, match="theirs of torchmetrics does not say whether more of it is better"):
        pof.evaluate(model, held_out, loss="mse", metric=theirs)
    for higher in (True, False):
        theirs.higher_is_better = higher  # type: ignore[attr-defined]
        found = pof.evaluate(model, held_out, loss="mse", metric=theirs)
        assert isinstance(found, pof.TaskMetrics) and (found.value, found.higher_is_better) == (1.0, higher)
