"""The equations of SAM and its relatives, as functions of tensors.

SAM (Foret et al., ICLR 2021, arXiv 2010.01412), Eq. 2: eps = rho * g / ||g||_2 over all parameters.
ASAM (Kwon et al., ICML 2021): eps = rho * T^2 g / ||T g||_2 with T = |w| + eta.
There is no host synchronisation: what must not happen (0/0, inf) is replaced, not branched on.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pof._support.distributed import is_sharded, whole
from pof._support.precision import wide_dtype


def global_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Compute the Euclidean norm of all tensors taken together, whatever their shapes, types and devices.

    Half precision is squared and summed in float32: float16 overflows at 65504, which a scaled gradient reaches.

    Args:
        tensors: real tensors of any shape; one at a time is asked for, so they may be computed on the way.  Of
            tensors that FSDP2 has sharded, all parts count.

    Returns:
        Scalar in float32 or wider, on the device of the first tensor; 0 if there is none.
    """
    norms = [torch.linalg.vector_norm(t, dtype=wide_dtype(t)) for t in tensors]
    if not norms:
        return torch.zeros(())
    sharded = [norm for norm in norms if is_sharded(norm)]
    here = [norm.to(norms[0].device) for norm in norms if not is_sharded(norm)]
    # One exchange for all of them.
    parts = [whole(torch.linalg.vector_norm(torch.stack(sharded)))] if sharded else []
    total: Tensor = torch.linalg.vector_norm(torch.stack([*parts, *here]))
    return total


def adaptive_scale(parameter: Tensor, eta: float) -> Tensor:
    """Compute T = |w| + eta, ASAM's element-wise normalisation operator.

    Args:
        parameter: w, of any shape.
        eta: keeps an element that is zero movable.

    Returns:
        T, of the shape of ``parameter``, in float32 or wider.
    """
    return parameter.to(wide_dtype(parameter)).abs().add_(eta)


def perturb_(parameter: Tensor, direction: Tensor, factor: Tensor) -> None:
    """Add factor * direction to a parameter, in place; where that is not finite, nothing.

    Without a direction (norm 0) the factor is infinite, and 0 * inf is NaN; an overflow in the gradient makes the
    norm infinite, the factor 0 and the product NaN there and 0 elsewhere.  The weights stay where they are in both
    cases, as every product is either 0 or not finite.

    Args:
        parameter: of any shape; its storage stays where it is.
        direction: of the shape of ``parameter``.
        factor: scalar, radius / norm, in float32 or wider: the product is rounded once, on addition.
    """
    step = direction.to(factor.dtype) * factor.to(direction.device)
    parameter.add_(step.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0))
