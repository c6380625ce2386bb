"""How far up the head gradient a mini-batch reaches a given loss: the radius of :class:`pof.HeadAscent`.

Along an ascent direction the loss of a linear head with the cross-entropy is convex and increasing, so that every
level above its start is reached at exactly one radius, found by the same search as PoF's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pof._support.modules import evaluating
from pof._support.precision import without_autocast
from pof.perturbation.linear import LineSearch, cross_entropy, encode_targets, last_of
from pof.perturbation.module import Loss, head_parameters, perturbed_call

# For heads that are not linear: doublings from 2^-24 of the head's norm to 2^4, then halvings.
_FIRST_POWER, _LAST_POWER, _HALVINGS = -24, 4, 20


@torch.no_grad()
def reach(
    logits: Tensor,
    response: Tensor,
    targets: Tensor,
    level: float,
    label_smoothing: float = 0.0,
    *,
    class_weights: Tensor | None = None,
) -> LineSearch:
    """Radius at which the loss has risen to a level: rho >= 0 with mean CE(logits + rho * response, targets) = level.

    Args:
        logits: (N, C), Z.
        response: (N, C), R = F g_W^T + g_b of an ascent direction.
        targets: (N,) class indices or (N, C) probabilities.
        level: a loss, in nats.
        label_smoothing: in [0, 1].
        class_weights: (C,) or None.

    Returns:
        Radius (0 where the loss is at the level or above already), the loss there, and ``bounded``: False where the
        loss does not rise along the ray (a gradient of zero), the radius then 0.  Nothing waits for the device.

    Raises:
        ValueError: if the shapes do not fit or a class index is out of range.
    """
    if logits.ndim != 2 or logits.shape != response.shape:
        raise ValueError(
            f"logits and response must both be (N, C); got {tuple(logits.shape)} and {tuple(response.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(logits.dtype, response.dtype), torch.float32)
    logits, response = logits.to(dtype), response.to(dtype)
    with without_autocast(logits.device):
        encoded = encode_targets(targets, logits, label_smoothing, class_weights=class_weights)
        moved = response - (encoded.distribution * response).sum(dim=1, keepdim=True)
        scale = moved.abs().amax()
        rises = scale > 0
        scale = torch.where(rises, scale, torch.ones_like(scale))

        def below(rho: Tensor) -> Tensor:
            return cross_entropy(torch.addcmul(logits, rho.view(-1, 1, 1), moved / scale), encoded) < level

        start = cross_entropy(logits, encoded)
        needed = rises & (start < level)
        radius = torch.where(needed, last_of(below, logits) / scale, torch.zeros_like(start))
        loss = torch.where(needed, cross_entropy(logits + radius * response, encoded), start)
        return LineSearch(radius=radius, bounded=rises, loss=loss)


@torch.no_grad()
def module_reach(
    head: nn.Module, direction: dict[str, Tensor], features: Tensor, targets: Tensor, level: float, loss: Loss
) -> LineSearch:
    """Radius at which the loss has risen to a level, for any head: the first one found by doubling.

    Args:
        head: any module; evaluated in eval mode.
        direction: parameter name -> tensor, unit joint norm.
        features: what enters the head, first axis N.
        targets: whatever ``loss`` takes.
        level: a loss.
        loss: ``loss(logits, targets)``, a scalar.

    Returns:
        As :func:`reach`; ``bounded`` is False, and the radius 0, where the level is not reached within 16 times the
        head's norm.
    """
    theta = head_parameters(head)
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p) for p in theta.values()]))

    def at(rho: Tensor) -> Tensor:
        return loss(perturbed_call(head, direction, -rho, features, theta), targets)

    with evaluating(head):
        start = at(torch.zeros_like(norm))
        powers = torch.arange(_FIRST_POWER, _LAST_POWER + 1, device=norm.device, dtype=norm.dtype)
        radii = torch.exp2(powers) * norm.clamp_min(1e-6)
        above = torch.stack([at(rho) for rho in radii]) >= level
        reached = above.any()
        upper = radii.gather(0, above.int().argmax().view(1)).squeeze(0)
        lower = torch.where(above[0], torch.zeros_like(upper), 0.5 * upper)
        for _ in range(_HALVINGS):
            middle = 0.5 * (lower + upper)
            low = at(middle) < level
            lower, upper = torch.where(low, middle, lower), torch.where(low, upper, middle)
        radius = torch.where(reached & (start < level), lower, torch.zeros_like(lower))
        return LineSearch(radius=radius, bounded=reached | (start >= level), loss=at(radius))
