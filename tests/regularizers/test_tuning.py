"""Bi-Tuning and Co-Tuning, which have trained parts of their own: twins, closed forms, the queue, the optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

import pof
from pof.regularizers import BiTuning, CoTuning, Regularizer, category_relationship
from pof.regularizers.bituning import contrast, places
from tests.references import regularizers as twin
from tests.regularizers import problem

# Sums in another order differ by some 1e-15 and ten steps multiply that by less than 1e5 at a temperature of 0.2.
TOLERANCE = 1e-9


def bi_tuning(model: nn.Module, strength: float = 0.7) -> BiTuning:
    return BiTuning(model, "head", strength=strength, keys=3, dimension=4, temperature=0.2, momentum=0.9, seed=3)


def both_trained(model: nn.Module, own: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD([*model.parameters(), *own], lr=0.05, momentum=0.9)


def together(model: nn.Module, ours: Regularizer, copy: nn.Module, other: object, own: list) -> Iterator[str]:
    """Train both; yield the step's number when everything of the step has been compared."""
    mine = [p for p in ours.parameters() if p.requires_grad]
    optimizers = both_trained(model, mine), both_trained(copy, own)
    update = getattr(other, "update", lambda features, targets: None)
    data = problem.batches()
    pairs = zip(
        problem.train(model, ours, ours.update, data, optimizers[0]),
        problem.train(copy, lambda f, y, x: 0.7 * other.penalty(f, y, x), update, data, optimizers[1]),
        strict=True,
    )
    for step, (loss, expected) in enumerate(pairs):
        close(loss, expected, f"loss, step {step}")
        found = [*model.parameters(), *mine], [*copy.parameters(), *own]
        for p, q in zip(*found, strict=True):
            close(p.grad, q.grad, f"gradient, step {step}")
            close(p, q, f"parameter, step {step}")
        yield f"step {step}"


def close(actual: Tensor, expected: Tensor, message: str) -> None:
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda m: f"{message}: {m}")


def test_bi_tuning_equals_its_literal_twin_after_each_of_ten_steps() -> None:
    model = problem.network()
    copy, ours = deepcopy(model), bi_tuning(model)
    other = twin.BiTuningTwin(copy, ours.projection, keys=3, temperature=0.2, momentum=0.9)
    steps = 0
    for step in together(model, ours, copy, other, list(other.projection.parameters())):
        steps += 1
        for p, q in zip(ours.key.model.parameters(), other.key_model.parameters(), strict=True):
            close(p, q, f"key network, {step}")
        for y, stored in other.queue.items():
            rows = [(int(ours.count[y]) - len(stored) + i) % 3 for i in range(len(stored))]
            close(ours.queue[y, rows], torch.stack([a for a, _ in stored]), f"queue of class {y}, {step}")
            close(ours.projected[y, rows], torch.stack([b for _, b in stored]), f"projections of class {y}, {step}")
    assert steps == problem.STEPS and int(ours.count.sum()) == sum(problem.SIZES)
    assert any(len(stored) == 3 < int(ours.count[y]) for y, stored in other.queue.items())  # rings went round


def test_co_tuning_equals_its_literal_twin_after_each_of_ten_steps() -> None:
    model = problem.network()
    ours, other = (
        CoTuning(problem.source_head(), problem.relationship(), strength=0.7),
        twin.CoTuningTwin(problem.source_head(), problem.relationship()),
    )
    assert len(list(together(model, ours, deepcopy(model), other, [other.weight, other.bias]))) == problem.STEPS
    close(ours.source_head.weight, other.weight, "the source head is trained")
    assert not torch.equal(ours.source_head.weight, problem.source_head().weight)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_relationship_is_the_mean_probability_of_each_class(temperature: float) -> None:
    model, data = problem.network().eval(), problem.batches()
    kept = [(x[y != 3], y[y != 3]) for x, y in data if (y != 3).any()]  # a class without a sample: the mean of all
    network, head = pof.split(model, "head"), problem.source_head()
    found = category_relationship(network, head, kept, num_classes=problem.CLASSES, temperature=temperature)
    with torch.no_grad():
        logits = torch.cat([head(network.features(x)) for x, _ in kept])
    expected = twin.relationship(logits, torch.cat([y for _, y in kept]), problem.CLASSES, temperature)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    made = CoTuning.from_loader(network, head, kept, num_classes=problem.CLASSES, temperature=temperature)
    assert torch.equal(made.relationship, found) and made.strength == 2.3


def test_co_tuning_to_one_source_class_each_is_the_cross_entropy() -> None:
    features, targets = torch.randn(8, problem.DIM, dtype=torch.float64), torch.arange(8) % problem.CLASSES
    ours = CoTuning(problem.source_head(), torch.eye(problem.CLASSES, problem.SOURCE_CLASSES).double(), strength=2.0)
    expected = 2.0 * nn.functional.cross_entropy(problem.source_head()(features), targets)
    torch.testing.assert_close(ours(features, targets), expected, rtol=1e-14, atol=0)


def test_contrast_has_its_closed_forms() -> None:
    nothing = torch.zeros(2, 4, dtype=torch.float64)
    positive = torch.tensor([[True, True, False, False]] * 2)
    filled = torch.tensor([True, False, True, False])
    own = torch.zeros(2, dtype=torch.float64)
    # Equal scores: 1 / (own + two filled places), whatever is positive.
    torch.testing.assert_close(contrast(own, nothing, positive, filled, 0.1), torch.full_like(own, 3.0).log())
    # Nothing stored: the own key is all there is.
    assert contrast(own, nothing, positive, torch.zeros(4, dtype=torch.bool), 0.1).tolist() == [0.0, 0.0]
    stored = torch.tensor([[1.0, 9.0, 0.0, 9.0]] * 2).double().requires_grad_()
    contrast(own, stored, positive, filled, 1.0).sum().backward()
    assert stored.grad is not None
    # Softmax minus the share of the positives: e/(e+2) - 1/2 for the filled one; empty places have no gradient.
    e = torch.e
    torch.testing.assert_close(stored.grad[0], torch.tensor([e / (e + 2) - 0.5, 0.0, 1 / (e + 2), 0.0]).double())


def test_places_go_round_and_the_last_of_too_many_stay() -> None:
    where, stays, count = places(torch.tensor([1, 0, 1, 1, 1]), torch.tensor([2, 1, 5]), keys=3)
    assert (where.tolist(), stays.tolist(), count.tolist()) == (
        [1, 2, 2, 0, 1],
        [False, True, True, True, True],
        [3, 5, 5],
    )


@pytest.mark.parametrize("kind", ["bi", "co"])
def test_regularized_gives_the_own_parts_to_the_optimizer_and_fit_trains_them(kind: str) -> None:
    model, data = problem.network(), problem.batches()
    own = bi_tuning(model) if kind == "bi" else CoTuning(problem.source_head(), problem.relationship())
    method = pof.Regularized(model, own, "head")
    trained = [p for p in own.parameters() if p.requires_grad]
    found = {id(p) for p in method.trainable_parameters()}
    assert found == {id(p) for p in [*model.parameters(), *trained]} and trained
    before = [p.detach().clone() for p in trained]
    pof.fit(method, data, epochs=1, device="cpu")
    assert all(not torch.equal(p, q) for p, q in zip(trained, before, strict=True))
    assert set(method.model.state_dict()) == set(problem.network().state_dict())


def test_the_key_network_is_run_without_gradients_and_starts_as_the_network() -> None:
    model, (inputs, targets) = problem.network(), problem.batches()[0]
    ours = bi_tuning(model)
    features = pof.split(model, "head").features(inputs)
    value = ours(features, targets, inputs)
    # Nothing is stored yet: there is nothing to contrast with.
    assert value.item() == pytest.approx(0.0, abs=1e-12)
    value.backward()
    assert all(p.grad is None for p in ours.key.parameters())
    assert all(torch.equal(p, q) for p, q in zip(ours.key.model.parameters(), model.parameters(), strict=True))


BAD = {
    "keys": (lambda: BiTuning(problem.network(), "head", keys=0), "keys must be a whole number >= 1; got 0"),
    "dimension": (lambda: BiTuning(problem.network(), "head", dimension=0.5), "dimension must be a whole number"),
    "temperature": (lambda: BiTuning(problem.network(), "head", temperature=0), "temperature must be .* > 0; got 0"),
    "momentum": (lambda: BiTuning(problem.network(), "head", momentum=1.0), r"momentum must lie in \[0, 1\); got 1.0"),
    "no inputs": (
        lambda: bi_tuning(problem.network())(torch.zeros(3, 6), torch.tensor([0, 1, 4])),
        "needs the inputs: call regularizer",
    ),
    "no probabilities": (
        lambda: CoTuning(problem.source_head(), torch.ones(5, 7)),
        r"rows >= 0 of sum 1; got \(5, 7\)",
    ),
    "no matrix": (
        lambda: CoTuning(problem.source_head(), torch.ones(5)),
        r"\(K, S\) with rows >= 0 of sum 1; got \(5,\)",
    ),
    "another temperature": (
        lambda: category_relationship(problem.network(), problem.source_head(), [], num_classes=5, temperature=0.0),
        "temperature must be a finite number > 0; got 0.0",
    ),
    "no data": (
        lambda: category_relationship(pof.split(problem.network(), "head"), problem.source_head(), [], num_classes=5),
        "needs at least one sample",
    ),
    "one source logit": (
        lambda: category_relationship(
            pof.split(problem.network(), "head"), nn.Linear(6, 1).double(), problem.batches(), num_classes=5
        ),
        "the source head gives one logit, as for a binary loss, and Co-Tuning needs one for each source class",
    ),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_says_what_was_given_and_what_to_do(case: tuple) -> None:
    build, message = case
    with pytest.raises(ValueError, match=message):
        build()


def test_bi_tuning_refuses_steps_that_are_rounded_away() -> None:
    model = problem.network().bfloat16()
    penalty, (inputs, targets) = bi_tuning(model), problem.batches()[0]
    features = pof.split(model, "head").features(inputs.bfloat16())
    with pytest.raises(ValueError, match="half precision rounds away: keep the weights in float32"):
        penalty(features, targets, inputs.bfloat16())


def test_the_source_head_of_co_tuning_is_not_cast_with_the_network() -> None:
    model, data = problem.network(), problem.batches()
    regularizer = CoTuning.from_loader(
        pof.split(model, "head"), problem.source_head(), data, num_classes=problem.CLASSES
    )
    method = pof.Regularized(model, regularizer, "head").bfloat16()
    method(data[0][0].bfloat16(), data[0][1]).loss.backward()
    assert regularizer.source_head.weight.dtype == torch.float32 and regularizer.source_head.weight.grad is not None
