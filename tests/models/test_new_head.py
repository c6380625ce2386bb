from __future__ import annotations

import pytest
import torch
from torch import nn

from pof.models import replace_head


@pytest.mark.parametrize("bias", [True, False])
def test_linear_head(bias):
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3, bias=bias))).double()
    body = [p.clone() for p in model[1][0].parameters()]
    new = replace_head(model, 5)
    assert model[1][2] is new
    assert new.weight.shape == (5, 6)
    assert new.weight.dtype == torch.float64
    assert (new.bias is not None) is bias
    assert model(torch.ones(2, 4, dtype=torch.float64)).shape == (2, 5)
    assert all(torch.equal(p, q) for p, q in zip(model[1][0].parameters(), body, strict=True))


@pytest.mark.parametrize("bias", [True, False])
def test_convolutional_head(bias):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 3, 1, bias=bias), nn.Flatten())
    new = replace_head(model, 7, head="2")
    assert isinstance(new, nn.Conv2d)
    assert (new.bias is not None) is bias
    assert model(torch.ones(2, 3, 5, 5)).shape == (2, 7)


def test_heads_that_are_not_linear_are_refused():
    with pytest.raises(ValueError, match="linear"):
        replace_head(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), 2, head="1")
