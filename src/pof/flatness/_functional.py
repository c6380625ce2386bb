"""Loss and gradient of a network with other weights than its own, by functional call: no parameter is modified."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pof._support.batches import Inputs, batch_size, logits_of
from pof.flatness._measure import Loss, batch_weight

Weights = dict[str, Tensor]
Data = list[tuple[Inputs, Tensor]]


@torch.no_grad()
def mean_loss(model: nn.Module, loss: Loss, weights: Weights, data: Data) -> float:
    """Mean loss over the data of the model with other weights.

    Args:
        model: read only.
        loss: the mean over a batch.
        weights: parameter name -> tensor; names left out keep the model's.
        data: batches.

    Returns:
        The mean over samples, accumulated in float64.
    """
    total = sum(batch_weight(loss, batch_size(x), y) for x, y in data)
    return sum(
        float(loss(_forward(model, weights, x), y)) * batch_weight(loss, batch_size(x), y) / total for x, y in data
    )


@torch.enable_grad()
def mean_gradient(model: nn.Module, loss: Loss, weights: Weights, data: Data) -> tuple[float, Weights]:
    """Mean loss over the data and its gradient in ``weights``.

    Args:
        model: read only; no ``.grad`` is written.
        loss: the mean over a batch.
        weights: parameter name -> tensor.
        data: batches.

    Returns:
        The loss and parameter name -> gradient, zero for parameters that take no part.
    """
    total = sum(batch_weight(loss, batch_size(x), y) for x, y in data)
    leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
    mean, sums = 0.0, {name: torch.zeros_like(w) for name, w in weights.items()}
    for x, y in data:
        value = loss(_forward(model, leaves, x), y)
        share = batch_weight(loss, batch_size(x), y) / total
        for name, g in zip(
            leaves, torch.autograd.grad(value, list(leaves.values()), materialize_grads=True), strict=True
        ):
            sums[name] += share * g
        mean += share * float(value.detach())
    return mean, sums


def _forward(model: nn.Module, weights: Weights, inputs: Inputs) -> Tensor:
    if isinstance(inputs, Mapping):
        return logits_of(functional_call(model, weights, (), dict(inputs)))
    return logits_of(functional_call(model, weights, (inputs,)))
