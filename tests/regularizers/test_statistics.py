"""Class statistics from a loader, against Python's own arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pof
from pof.regularizers import AdaRand, RandReg, class_statistics
from tests.references import regularizers as twin
from tests.regularizers import problem


class Identity(nn.Module):
    """A model whose features are its inputs."""

    def features(self, inputs: Tensor) -> Tensor:
        return inputs


def data(offset: float = 0.0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    # Class 3 has one sample, class 4 none.
    targets = torch.tensor([0, 1, 2, 0, 1, 1, 0, 2, 2, 3, 0])
    return torch.randn(11, 3, generator=g, dtype=torch.float64) + offset + targets[:, None], targets


def batches(size: int, offset: float = 0.0) -> list[tuple[Tensor, Tensor]]:
    x, y = data(offset)
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.mark.parametrize("size", [1, 4, 11])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_equals_the_literal_twin_for_any_split_into_batches_unequal_last_one_included(size: int, offset: float) -> None:
    x, y = data(offset)
    found = class_statistics(Identity(), batches(size, offset), num_classes=5)
    marginal = [torch.tensor(m, dtype=torch.float64) for m in twin.moments(x.tolist())]
    # Features of size 1e6 are themselves known to 1e-10 only.
    close = {"rtol": 1e-12, "atol": 1e-12 if offset == 0 else 1e-9}
    torch.testing.assert_close(found.marginal_mean, marginal[0], **close)
    torch.testing.assert_close(found.marginal_std, marginal[1], **close)
    for k in range(3):
        mean, std = (torch.tensor(m, dtype=torch.float64) for m in twin.moments(x[y == k].tolist()))
        torch.testing.assert_close(found.mean[k], mean, **close)
        torch.testing.assert_close(found.std[k], std, **close)
    torch.testing.assert_close(found.mean[3], x[9], **close)
    torch.testing.assert_close(found.mean[4], marginal[0], **close)
    torch.testing.assert_close(found.std[3:], marginal[1].expand(2, -1), **close)
    assert found.count.tolist() == [4, 3, 3, 1, 0]


def test_one_sample_has_no_deviation() -> None:
    found = class_statistics(Identity(), [(torch.ones(1, 3), torch.tensor([1]))], num_classes=2)
    assert torch.equal(found.std, torch.zeros(2, 3))
    assert torch.equal(found.mean, torch.ones(2, 3))
    assert found.mean.dtype == torch.float32


def test_runs_in_eval_mode_and_puts_every_mode_back_even_after_an_error() -> None:
    model = problem.network(dropout=0.5)
    model.conv.eval()
    modes = [m.training for m in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    network = pof.split(model, "head")
    first, second = (class_statistics(network, problem.batches(), num_classes=problem.CLASSES) for _ in range(2))
    assert torch.equal(first.mean, second.mean)
    with pytest.raises(ValueError, match="label 4 is out of range for 2 classes"):
        class_statistics(network, problem.batches(), num_classes=2)
    assert [m.training for m in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_shuffling_loader_leaves_the_global_generators_where_they_were() -> None:
    x, y = data()
    loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True)
    state = torch.get_rng_state()
    class_statistics(Identity(), loader, num_classes=5)
    assert torch.equal(torch.get_rng_state(), state)


def test_dict_batches_and_bfloat16_features() -> None:
    x, y = data()

    class Keywords(nn.Module):
        def features(self, inputs: dict[str, Tensor]) -> Tensor:
            return inputs["x"].bfloat16()

    found = class_statistics(Keywords(), [{"x": x, "labels": y}], num_classes=5)
    assert found.mean.dtype == torch.float32
    torch.testing.assert_close(found.marginal_mean, x.bfloat16().float().mean(dim=0))


def test_from_loader_starts_adarand_and_randreg() -> None:
    network = pof.split(problem.network(), "head")
    loader = problem.batches()
    found = class_statistics(network, loader, num_classes=problem.CLASSES)
    adarand = AdaRand.from_loader(network, loader, num_classes=problem.CLASSES, strength=2.0, lr=0.1, alpha=0.2, seed=4)
    assert torch.equal(adarand.mu, found.mean)
    assert torch.equal(adarand.mu_bar, found.mean)
    assert torch.equal(adarand.sigma, found.std.bfloat16())
    assert (adarand.strength, adarand.lr, adarand.alpha, adarand.stream.seed) == (2.0, 0.1, 0.2, 4)
    by_class = RandReg.from_loader(network, loader, num_classes=problem.CLASSES, seed=4)
    marginal = RandReg.from_loader(network, loader, num_classes=problem.CLASSES, prior="features")
    assert torch.equal(by_class.std, found.std)
    assert torch.equal(marginal.mean, found.marginal_mean)
    assert torch.equal(marginal.std, found.marginal_std)


BAD = {
    "empty loader": (Identity(), [], "no batch in the loader"),
    "no features": (nn.Linear(3, 2), batches(4), r"Linear has no features\(inputs\): pass pof.split"),
    "maps": (Identity(), [(torch.zeros(2, 3, 1), torch.tensor([0, 1]))], r"must be \(N, D\)"),
    "not finite": (Identity(), [(torch.full((2, 3), float("nan")), torch.tensor([0, 1]))], "feature is not finite"),
    "soft labels": (Identity(), [(torch.zeros(2, 3), torch.ones(2, 5))], "soft and other targets"),
    "two widths": (Identity(), [*batches(11), (torch.zeros(1, 2), torch.tensor([0]))], "dimension 2"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_says_what_was_given_and_what_to_do(case: tuple) -> None:
    model, loader, message = case
    with pytest.raises(ValueError, match=message):
        class_statistics(model, loader, num_classes=5)


def test_numbers_of_another_task_are_no_labels_to_be_ignored() -> None:
    inputs = torch.randn(6, problem.DIM, generator=torch.Generator().manual_seed(0))
    numbers = torch.tensor([-100, 30, -100, 50, 40, 20])
    found = [
        class_statistics(Identity(), [(inputs, targets)], num_classes=3, by_class=False)
        for targets in (numbers, numbers.float())
    ]
    assert torch.equal(found[0].marginal_mean, found[1].marginal_mean)
