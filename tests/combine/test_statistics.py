"""Statistics of batch norms estimated anew: in half precision, of norms that do not run, and without a trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pof.combine import estimate_statistics


def samples() -> Tensor:
    return 3 + torch.randn(4000, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_in_half_precision_are_the_mean_of_many_mini_batches(dtype: torch.dtype) -> None:
    """In the buffers themselves a mean over 1000 stands still after some hundred: it was 2 instead of 3."""
    norm, wide = nn.BatchNorm1d(6).to(dtype), nn.BatchNorm1d(6)
    estimate_statistics(norm, list(samples().to(dtype).split(4)))
    estimate_statistics(wide, list(samples().to(dtype).float().split(4)))
    for name in ("running_mean", "running_var"):
        found: Tensor = getattr(norm, name)
        assert found.dtype == dtype
        # Each mini-batch is rounded, without bias, and the result.
        torch.testing.assert_close(found.float(), getattr(wide, name), rtol=0.01, atol=0)


def test_what_stands_for_targets_is_not_read() -> None:
    norm, plain = nn.BatchNorm1d(6), nn.BatchNorm1d(6)
    estimate_statistics(norm, [(x, 0) for x in samples().split(100)])
    estimate_statistics(plain, samples().split(100))
    assert torch.equal(norm.running_mean, plain.running_mean) and norm.running_mean.mean() > 2.9


class Auxiliary(nn.Module):
    """A norm that runs in training mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.aside, self.head = nn.BatchNorm1d(6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.aside(x)
        return self.head(self.norm(input=x))


def test_a_norm_that_does_not_run_keeps_what_it_had() -> None:
    model = Auxiliary()
    model(samples())
    before = {name: value.clone() for name, value in model.aside.state_dict().items()}
    estimate_statistics(model, [samples()])
    assert all(torch.equal(value, before[name]) for name, value in model.aside.state_dict().items())
    torch.testing.assert_close(model.norm.running_mean, samples().mean(dim=0))
    assert model.aside.momentum == model.norm.momentum == 0.1 and not model.norm._forward_hooks


@pytest.mark.parametrize("generator", [None, torch.Generator()])
def test_no_generator_moves(generator: Any) -> None:
    loader = DataLoader(TensorDataset(samples(), torch.zeros(4000)), 100, shuffle=True, generator=generator)
    states = [torch.get_rng_state(), generator and generator.get_state()]
    estimate_statistics(nn.BatchNorm1d(6), loader)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert generator is None or torch.equal(generator.get_state(), states[1])


@pytest.mark.parametrize("beside", [(None,), (["a.png", "b.png"],), (), ({"box": torch.zeros(8, 4)},)])
def test_what_cannot_be_a_target_is_not_read(beside: tuple[Any, ...]) -> None:
    plain, other = nn.BatchNorm1d(6), nn.BatchNorm1d(6)
    x = torch.randn(8, 6)
    estimate_statistics(plain, [x])
    estimate_statistics(other, [(x, *beside)])
    assert torch.equal(plain.running_mean, other.running_mean)
    estimate_statistics(nn.Sequential(other), [{"input": x, "labels": None}])
