"""Labels that are not one class per sample: through ``loss=``, or an error that says what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pof
from pof.methods import Method
from tests.cases import batch, mlp


def several(n: int = 16) -> Tensor:
    return (torch.rand(n, 4, generator=torch.Generator().manual_seed(3)) > 0.5).double()


def binary(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets)


def test_several_labels_per_sample_through_a_loss() -> None:
    """The radius is where the loss of B is least along its own head gradient; the loss is that of B~ beyond it."""
    torch.manual_seed(0)
    model = mlp()
    (inputs, _), (others, _) = batch(), batch(seed=1)
    method = pof.PoF(model, loss=binary, sampling="fixed", gamma=2.0)
    out = method(inputs, several(), others, several())
    out.loss.backward()
    assert float(out.radius) > 0
    head: Any = model.fc
    weight, bias = (p.detach().clone().requires_grad_() for p in (head.weight, head.bias))
    features = model[:-1](others).detach()
    gradients = torch.autograd.grad(binary(features @ weight.T + bias, several()), [weight, bias])
    norm = torch.sqrt(sum(g.square().sum() for g in gradients))  # type: ignore[arg-type]

    def along(radius: float, features: Tensor) -> Tensor:
        moved = [p - radius * g / norm for p, g in zip((weight, bias), gradients, strict=True)]
        return binary(features @ moved[0].T + moved[1], several())

    xi = float(out.radius)
    # Half a percent beside the minimum the loss is larger; in float64 it can be told.
    assert along(xi, features) < min(along(0.995 * xi, features), along(1.005 * xi, features))
    torch.testing.assert_close(out.loss, along(2 * xi, model[:-1](inputs)), rtol=1e-10, atol=1e-12)
    assert head.weight.grad is None and model[0].weight.grad.abs().sum() > 0


def methods(model: nn.Module) -> list[Method]:
    return [pof.PoF(model), pof.Finetune(model), pof.SharpnessAware(model), pof.Averaged(pof.PoF(model), "ema")]


@pytest.mark.parametrize("number", range(4))
def test_several_labels_per_sample_are_not_taken_for_probabilities(number: int) -> None:
    method = methods(mlp())[number]
    (inputs, _), (others, _) = batch(), batch(seed=1)
    with pytest.raises(ValueError, match=r"rows of floating-point targets must sum to 1.*give loss=.bce."):
        method(inputs, several(), others, several())
    soft = several().softmax(dim=1)
    assert bool(torch.isfinite(method(inputs, soft, others, soft).loss))


class Tagger(nn.Module):
    """One prediction per token: (N, T, D) -> (N, T, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(5, 6)
        self.fc = nn.Linear(6, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.body(inputs).tanh())
        return logits


@pytest.mark.parametrize("loss", [None, binary])
def test_one_label_per_token_is_refused_with_the_shape(loss: Any) -> None:
    method = pof.PoF(Tagger(), loss=loss)
    tokens, labels = torch.randn(3, 7, 5), torch.zeros(3, 7, dtype=torch.long)
    with pytest.raises(ValueError, match=r"features of shape \(3, 7, 6\).*applied to tokens or map positions"):
        method(tokens, labels, tokens, labels)
