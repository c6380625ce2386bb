"""The perturbation does not depend on the scale of the gradient, however small or large in float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pof
from pof._support.norms import global_norm
from tests.optim.problem import Build, build_batches, build_model, closure_of, every, weights_of

SCALES = [1e-28, 1e-25, 1e-20, 1e20, 1e25, 1e30]


@pytest.mark.parametrize("scale", SCALES)
@every
def test_the_perturbation_is_the_same_at_any_scale_of_the_gradient(build: Build, scale: float) -> None:
    model, batch = build_model().float(), build_batches(1)[0]
    optimizer = build(model)
    closure_of(model, optimizer, (batch[0].float(), batch[1]))()
    optimizer.base_optimizer.step()
    before, moved = weights_of(model), []
    for factor in (1.0, scale):
        buffers = [state["momentum_buffer"] for state in optimizer.state.values()]
        for tensor in [*buffers, *(p.grad for p in model.parameters())]:
            tensor.mul_(factor)
        with optimizer.perturbed():
            moved.append([p - w for p, w in zip(model.parameters(), before, strict=True)])
    assert max(float(change.detach().abs().max()) for change in moved[0]) > 1e-3
    # Both are differences of float32 numbers near 1.
    torch.testing.assert_close(moved[1], moved[0], rtol=1e-4, atol=3e-7)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_norm_is_at_least_float32_on_any_device(dtype: torch.dtype, device: str) -> None:
    tensors = [torch.full((3,), 2.0, dtype=dtype, device=device), torch.full((4,), 1.0, dtype=dtype, device=device)]
    norm = global_norm(tensors)
    assert norm.dtype == torch.promote_types(dtype, torch.float32) and norm.device.type == device
    assert device == "meta" or norm.item() == pytest.approx(4.0)


@pytest.mark.parametrize("scale", SCALES[1:-1])
def test_the_direction_of_a_head_that_is_not_linear_is_of_unit_length_at_any_scale(scale: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)))
    method = pof.PoF(model, "1", loss=lambda z, y: scale * F.cross_entropy(z, y), gamma=1.0, sampling="fixed")
    plain = pof.PoF(model, "1", loss=F.cross_entropy, gamma=1.0, sampling="fixed")
    x, y = torch.randn(20, 5), torch.randint(3, (20,))
    out, expected = (m(x, y, x.flip(0), y.flip(0)) for m in (method, plain))
    assert float(expected.radius) > 0.1
    torch.testing.assert_close(out.radius, expected.radius, rtol=1e-3, atol=0)
