"""What a mini-batch counts: its samples, with class weights their sum, and nothing for targets to be ignored."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

import pof
from pof.perturbation.loss import CrossEntropy, Loss, weight_of
from tests.cases import batch, mlp
from tests.processes import ranks

WEIGHTS = torch.tensor([0.1, 1.0, 3.0, 0.0], dtype=torch.float64)
Make = Callable[..., pof.Method]
ACCUMULATING: dict[str, Make] = {"finetune": pof.Finetune, "sam": pof.SharpnessAware}
EVERY: dict[str, Make] = {**ACCUMULATING, "pof": pof.PoF, "head ascent": pof.HeadAscent}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return mlp()


def trained(method: pof.Method, data: Any, **options: Any) -> dict[str, Tensor]:
    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.5)

    makes = method.build_optimizer(torch.optim.SGD, lr=0.5) if isinstance(method, pof.SharpnessAware) else optimizer
    plain: Any = {"epochs": 1, "schedule": pof.Schedule("constant"), "device": "cpu", **options}
    result = pof.fit(method, data, optimizer=makes, **plain)
    figures = {"loss": torch.tensor(result.history[1]["train_loss"])}
    return {**method.model.state_dict(), **figures}


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12, msg=name)


def sorted_batch() -> tuple[Tensor, Tensor]:
    inputs, targets = batch(32)
    return inputs, targets.sort().values


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", ACCUMULATING)
def test_accumulated_with_class_weights_is_the_mean_of_the_whole(name: str, smoothing: float) -> None:
    make, (x, y) = ACCUMULATING[name], sorted_batch()
    # Smoothing gives samples of a class of weight 0 a loss, but their mini-batch no weight.
    options: Any = {"class_weights": WEIGHTS.clamp_min(0.1) if smoothing else WEIGHTS, "label_smoothing": smoothing}
    whole = trained(make(network(), **options), [(x, y)])
    parts = list(zip(x.split(10), y.split(10), strict=True))
    assert_close(trained(make(network(), **options), parts, accumulation=4), whole)


def share_of_a_rank(rank: int) -> dict[str, Tensor]:
    x, y = sorted_batch()
    rows = slice(rank, None) if dist.get_world_size() == 1 else slice(10 * rank, 10 + 22 * rank)
    return trained(pof.Finetune(network(), class_weights=WEIGHTS), [(x[rows], y[rows])])


def test_processes_with_class_weights_are_one(tmp_path: Path) -> None:
    whole = trained(pof.Finetune(network(), class_weights=WEIGHTS), [sorted_batch()])
    for found in ranks(share_of_a_rank, 2, tmp_path):
        assert_close(found, whole)


def ignoring(x: Tensor, y: Tensor, *rows: int) -> tuple[Tensor, Tensor]:
    y = y.clone()
    y[list(rows)] = -100
    return x, y


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("name", EVERY)
def test_ignored_targets_have_no_weight(name: str, weights: Tensor | None) -> None:
    """A mini-batch with targets of -100 is the one without their rows, in the loss and in what is made of it."""
    kept = [i for i in range(16) if i not in (2, 3, 15)]
    (x, y), reference = batch(), batch(seed=1)

    def loss(*rows: Tensor) -> tuple[Tensor, Tensor]:
        method = EVERY[name](network(), class_weights=weights)
        out = method(*rows)
        out.loss.backward()
        return out.loss.detach(), method.model[0].weight.grad

    masked, others = ignoring(x, y, 2, 3, 15), ignoring(*reference, 2, 3, 15)
    with_rows = loss(*masked, *others)
    without = loss(x[kept], y[kept], reference[0][kept], reference[1][kept])
    torch.testing.assert_close(with_rows, without, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ACCUMULATING)
def test_accumulated_with_ignored_targets_is_the_mean_of_those_that_count(name: str) -> None:
    """The last mini-batch has none that counts."""
    x, y = batch(32)
    kept = list(range(10, 20))
    masked = ignoring(x, y, *(i for i in range(32) if i not in kept))
    whole = trained(ACCUMULATING[name](network()), [(x[kept], y[kept])])
    parts = list(zip(*(each.split(8) for each in masked), strict=True))
    assert_close(trained(ACCUMULATING[name](network()), parts, accumulation=4), whole)


def test_a_step_without_a_target_that_counts_changes_nothing_and_is_finite() -> None:
    for options in ({}, {"class_weights": WEIGHTS}, {"class_weights": WEIGHTS, "label_smoothing": 0.1}):
        for targets in (torch.full((16,), -100), torch.full((16,), 3)):
            counts = bool((targets >= 0).all()) and "class_weights" not in options
            model = network()
            before = copy.deepcopy(model.state_dict())
            found = trained(pof.Finetune(model, **options), [(batch()[0], targets)])
            assert found["loss"].isfinite()
            assert counts or all(torch.equal(found[name], value) for name, value in before.items())


def test_evaluation_leaves_ignored_targets_out() -> None:
    (x, y), model = batch(), network()
    wanted = pof.evaluate(model, [(x[2:], y[2:])])
    assert pof.evaluate(model, [ignoring(x, y, 0, 1)]) == wanted


class Tabular(nn.Module):
    """Its inputs are a dict whose first tensor has no row per sample."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, scale: Tensor, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x * scale)
        return logits


def test_a_dict_whose_first_tensor_has_no_row_per_sample_counts_by_its_targets() -> None:
    x, y = batch(24)
    scale = torch.full((3,), 2.0, dtype=torch.float64)[:1]

    def rows(part: slice) -> dict[str, Tensor]:
        return {"scale": scale, "x": x[part], "labels": y[part]}

    whole = trained(pof.Finetune(Tabular()), [rows(slice(24))])
    parts = [rows(slice(20)), rows(slice(20, 24))]
    assert_close(trained(pof.Finetune(Tabular()), parts, accumulation=2), whole)
    half = pof.PoF(Tabular(), reference_size=4)
    half(*pof_batch(rows(slice(20))), *pof_batch(rows(slice(24))))


def pof_batch(rows: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    return {"scale": rows["scale"], "x": rows["x"]}, rows["labels"]


def test_the_weight_of_every_kind_of_loss() -> None:
    targets, soft = torch.tensor([0, 1, -100, 2, 2]), torch.rand(5, 4).softmax(dim=1)
    weights = WEIGHTS.float()

    def own(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets)

    cases: list[tuple[Any, Any, float]] = [
        (CrossEntropy(), targets, 4),
        (CrossEntropy(class_weights=weights), targets, 7.1),
        (CrossEntropy(class_weights=weights), soft, 5),
        (nn.CrossEntropyLoss(weight=weights, ignore_index=1), targets.clamp_min(0), 6.2),
        (nn.NLLLoss(weight=weights), targets, 7.1),
        (F.cross_entropy, targets, 4),
        (own, targets, 5),
        (None, targets, 5),
        (own, {"boxes": soft, "labels": targets}, 5),
    ]
    for loss, given, wanted in cases:
        assert float(weight_of(loss, given)) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, float("nan")], r"class_weights must not be negative, infinite, NaN or all 0; got \[1.0, nan\]"),
        ([0.0, 0.0], "class_weights must not be negative, infinite, NaN or all 0"),
        ([1.0, float("inf")], "class_weights must not be negative, infinite"),
        ([1.0, -1.0], "class_weights must not be negative"),
        ([[1.0, 2.0]], r"class_weights must be \(C,\), one per class; got shape \(1, 2\)"),
    ],
)
def test_class_weights_that_cannot_be_are_refused(weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pof.Finetune(network(), class_weights=torch.tensor(weights))


@pytest.mark.parametrize(
    "weights", [[1, 2, 3, 4], torch.arange(1, 5), torch.arange(1.0, 5), torch.arange(1.0, 5).double()]
)
def test_class_weights_of_any_kind_are_converted(weights: Any) -> None:
    expected = F.cross_entropy(network()(batch()[0]), batch()[1], weight=torch.arange(1.0, 5).double())
    for model, x in ((network(), batch()[0]), (network().float(), batch()[0].float())):
        found = pof.Finetune(model, class_weights=weights)(x, batch()[1]).loss
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_loss_says_itself_what_a_mini_batch_counts() -> None:
    class Own(Loss):
        def forward(self, outputs: Tensor, targets: Tensor, scale: float = 1.0) -> Tensor:
            return scale * outputs.mean()

        def level(self, share: float, targets: Tensor, like: Tensor) -> float:
            return share

        def weight_of(self, targets: Tensor) -> Tensor:
            return torch.tensor(7.0, dtype=torch.float64)

    for loss in (Own(), partial(Own(), scale=2.0)):
        assert float(weight_of(loss, torch.tensor([0, 1]))) == 7.0


SEEN = WEIGHTS.clamp_min(0.1)


class Hidden(nn.Module):
    """A loss of the user's own around one whose class weights nobody sees."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.CrossEntropyLoss(SEEN)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = self.inner(outputs, targets)
        return loss


class Said(Hidden):
    def weight_of(self, targets: Tensor) -> Tensor:
        return SEEN[targets].sum()


OTHER_MEAN = r"is no mean over the samples of a mini-batch.*class_weights=.*a method weight_of\(targets\)"


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("loss", [Hidden(), lambda z, y: F.cross_entropy(z, y, weight=SEEN)], ids=["module", "lambda"])
def test_class_weights_that_nobody_sees_are_noticed_where_they_matter(name: str, loss: Any) -> None:
    """Weighed by their samples, two mini-batches are not the mean of the whole one."""
    x, y = sorted_batch()
    parts = list(zip(x.split(10), y.split(10), strict=True))
    trained(EVERY[name](network(), loss=loss), parts)  # one mini-batch to a step: nothing is weighed
    with pytest.warns(UserWarning, match=OTHER_MEAN) as found:
        trained(EVERY[name](network(), loss=loss), parts, accumulation=4)
    assert len(found) == 1


@pytest.mark.parametrize("name", ACCUMULATING)
def test_a_loss_may_say_what_it_weighs(name: str) -> None:
    x, y = sorted_batch()
    parts = list(zip(x.split(10), y.split(10), strict=True))
    whole = trained(ACCUMULATING[name](network(), class_weights=SEEN), [(x, y)])
    assert_close(trained(ACCUMULATING[name](network(), loss=Said()), parts, accumulation=4), whole)


class Stateful(nn.Module):
    """A mean that counts how often it was taken."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        return F.mse_loss(outputs, F.one_hot(targets, 4).to(outputs))


MEANS: dict[str, Any] = {
    "values": lambda z, y: F.cross_entropy(z, y, reduction="none"),
    "torch's with weights": nn.CrossEntropyLoss(SEEN),
    "partial": partial(F.cross_entropy, weight=SEEN),
    "stateful": Stateful(),
    "draws": lambda z, y: F.cross_entropy(z + torch.randn_like(z), y),
    "wrong for a part": lambda z, y: F.cross_entropy(z, y) if len(z) > 5 else 1 / 0,
}


@pytest.mark.parametrize("loss", MEANS.values(), ids=MEANS)
def test_losses_that_are_means_or_that_nobody_can_judge_are_taken_as_they_are(loss: Any) -> None:
    x, y = sorted_batch()
    parts = list(zip(x.split(8), y.split(8), strict=True))
    before = torch.get_rng_state()
    trained(pof.Finetune(network(), loss=loss), parts, accumulation=4)
    if loss is MEANS["stateful"]:
        assert float(loss.calls) == 4 and torch.equal(torch.get_rng_state(), before)
