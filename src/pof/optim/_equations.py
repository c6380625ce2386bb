"""The equations of SAM and its relatives, as functions of tensors.

SAM (Foret et al., ICLR 2021, arXiv 2010.01412), Eq. 2: eps = rho * g / ||g||_2 over all parameters.
ASAM (Kwon et al., ICML 2021): eps = rho * T^2 g / ||T g||_2 with T = |w| + eta, of biases T = 1.
LE-SAM (Wang et al., ICML 2026, arXiv 2605.10183): rho_t = min(sigma_t / ||g||_2, rho_max), sigma_t a loss.
There is no host synchronisation: what must not happen (0/0, inf) is replaced, not branched on.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pof._support.precision import wide_dtype


def adaptive_scale(parameter: Tensor, eta: float) -> Tensor:
    """Compute T = |w| + eta, ASAM's element-wise normalisation operator, in float32 or wider."""
    return parameter.to(wide_dtype(parameter)).abs().add_(eta)


def radius_within(radius: float, budget: Tensor | float, norm: Tensor) -> Tensor:
    """Compute LE-SAM's radius (Eq. of rho_t): budget / norm, at most ``radius``, with its sign.

    The first-order rise of the loss along the direction is radius times norm.  Scalar, of the norm's dtype.
    """
    return torch.full_like(norm, abs(radius)).minimum(budget / norm) * (1.0 if radius > 0 else -1.0)


def perturb_(parameter: Tensor, direction: Tensor, factor: Tensor) -> None:
    """Add factor * direction to a parameter, in place; where that is not finite, nothing.

    Without a direction (norm 0) the factor radius / norm is infinite, and 0 * inf is NaN; an overflow in the gradient
    makes the norm infinite, the factor 0 and the product NaN there and 0 elsewhere.  The weights stay where they are in
    both cases, as every product is either 0 or not finite.  The factor is float32 or wider: the product is rounded
    once, on addition.
    """
    step = direction.to(factor.dtype) * factor.to(direction.device)
    parameter.add_(step.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0))


def annealed(budget: float, epoch: int, epochs: int, share: float) -> float:
    """LE-SAM's budget in an epoch, from 0, of a run: half a cosine, to 0 at the end, over the last ``share`` of it."""
    left = (epochs - epoch) / (share * epochs) if share else 1.0
    return budget if left >= 1.0 else 0.5 * budget * (1.0 - math.cos(math.pi * left))
