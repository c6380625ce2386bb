"""The first stage of LP-FT read off its definition: Newton steps on all of W and b, sample by sample."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.functional import hessian


def objective(theta: Tensor, features: Tensor, targets: Tensor, classes: int, l2: float) -> Tensor:
    weight, bias = theta[:, :-1], theta[:, -1]
    total = torch.zeros((), dtype=theta.dtype)
    for f, y in zip(features, targets.tolist(), strict=True):
        scores = weight @ f + bias
        total = total - (scores[y].exp() / scores.exp().sum()).log()
    return total / len(features) + l2 / 2 * weight.square().sum()


def probe(features: Tensor, targets: Tensor, classes: int, l2: float, steps: int = 8) -> Tensor:
    """(C, D + 1), the bias last."""
    theta = torch.zeros(classes, features.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(objective(theta, features, targets, classes, l2), theta)
        curvature = hessian(lambda t: objective(t, features, targets, classes, l2), theta, vectorize=True)
        matrix = curvature.reshape(theta.numel(), theta.numel())
        # Biases of all classes can move together: the least-squares step does not.
        step = torch.linalg.pinv(matrix, rtol=1e-12) @ gradient.flatten()
        theta = (theta - step.view_as(theta)).detach().requires_grad_()
    return theta.detach()
