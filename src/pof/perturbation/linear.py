"""The perturbation of PoF (Sato et al., ICML 2022) and of head ascent for a linear head, as pure functions.

With the cross-entropy everything is exact and in closed form up to a one-dimensional convex search.  With logits
Z = F W^T + b and the response R = F g_W^T + g_b of the logits to the direction g_hat:

    loss(theta - xi g_hat) = mean CE(Z - xi R, y),

so that after two matrix products no evaluation sees the network again.  PoF takes the xi >= 0 of the least loss.  The
other way, at theta + rho g_hat, the loss is increasing, and head ascent takes the only rho at which it is at a level.
Nothing here is read back from an accelerator; on a processor, where that costs nothing, the search ends as soon as it
can.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pof._support.norms import norm_of
from pof._support.precision import wide_dtype, without_autocast
from pof.perturbation.search import Condition, crossing, last_of
from pof.perturbation.targets import Targets, cross_entropy, encode_targets, logit_gradient

# On an accelerator: elements of one round's (K, N, C) tensor, and the bits that a round adds.
_ROUND, _MOST_BITS = 2**23, 12


@dataclass(frozen=True)
class HeadGradient:
    """The normalised head gradient g_hat = g / ||g||, the norm over weight and bias jointly."""

    weight: Tensor
    """(C, D)."""
    bias: Tensor | None
    """(C,), or None for a head without bias."""
    norm: Tensor
    """||g||, scalar; where it is 0, weight and bias are 0 too."""

    def respond(self, features: Tensor) -> Tensor:
        """Response R (N, C) of the logits of features (N, D) to g_hat, with their graph."""
        return respond(features, self.weight, self.bias)


@dataclass(frozen=True, eq=False)
class LineSearch:
    """Where the loss along a ray has its minimum, or reaches a level."""

    radius: Tensor
    """xi* or rho, scalar, in units of parameter distance; 0 where unbounded."""
    bounded: Tensor
    """bool scalar: False where there is no such point: the mini-batch is separable along the ray, so that its loss has
    no minimum; or the loss does not rise to the level."""
    loss_at: Callable[[Tensor], Tensor] = field(repr=False)
    """The mean loss at a radius; scalars."""

    @cached_property
    @torch.no_grad()
    def loss(self) -> Tensor:
        """The mean loss at ``radius``, scalar; computed when it is first asked for."""
        return self.loss_at(self.radius)


def respond(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F W^T + b (N, C) outside of autocast: logits, or with a direction (C, D), (C,) their response to it."""
    with without_autocast(features.device):
        return F.linear(features.to(weight.dtype), weight, bias)


@torch.no_grad()
def head_gradient(
    features: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    label_smoothing: float = 0.0,
    *,
    class_weights: Tensor | None = None,
) -> HeadGradient:
    """Direction of PoF: the normalised gradient of the mean cross-entropy in the parameters of a linear head.

    g = dL_B / d(W, b) = (dZ^T F, sum_n dZ_n), g_hat = g / ||g|| (slides of Sato et al., step 1).

    Args:
        features: (N, D) of mini-batch B; half precision is computed in float32.
        targets: (N,) class indices or (N, C) probabilities.
        weight: (C, D).
        bias: (C,) or None.
        label_smoothing: in [0, 1].
        class_weights: (C,) or None.

    Returns:
        The direction, of unit joint norm, and ||g||; zero (not NaN) where the gradient is zero.

    Raises:
        ValueError: if the shapes do not fit or a class index is out of range.
    """
    _check_linear(features, weight, bias)
    dtype = wide_dtype(features, weight)
    features, weight = features.to(dtype), weight.to(dtype)
    with without_autocast(features.device):
        logits = F.linear(features, weight, None if bias is None else bias.to(dtype))
        encoded = encode_targets(targets, logits, label_smoothing, class_weights=class_weights)
        return gradient_of(features, logit_gradient(logits, encoded), bias=bias is not None)


def gradient_of(features: Tensor, residual: Tensor, *, bias: bool) -> HeadGradient:
    """As :func:`head_gradient`, of features (N, D) and the gradient dZ (N, C) of the logits: one dtype, no autocast."""
    c, d, tiny = residual.shape[1], features.shape[1], torch.finfo(features.dtype).tiny
    if _on_processor(features):
        weight, offset = residual.T @ features, residual.sum(0) if bias else None
        parts = [weight] if offset is None else [weight, offset]
        size = math.hypot(*[norm_of(part).item() for part in parts])
        for part in parts:
            part.div_(max(size, tiny))
        return HeadGradient(weight, offset, weight.new_full((), size))
    # Fewer kernels than one after the other.
    joint = features.new_empty(c * d + c * bias)
    weight, offset = joint.split_with_sizes((c * d, c)) if bias else (joint, None)
    weight = torch.mm(residual.T, features, out=weight.view(c, d))
    if offset is not None:
        torch.sum(residual, 0, out=offset)
    norm = norm_of(joint)
    joint.div_(norm.clamp_min(tiny))
    return HeadGradient(weight, offset, norm.to(joint.dtype))


@torch.no_grad()
def line_search(
    logits: Tensor,
    response: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    *,
    class_weights: Tensor | None = None,
) -> LineSearch:
    """Radius of PoF: xi* = argmin_{xi >= 0} mean CE(logits - xi * response, targets), exactly.

    The loss is convex in xi.  Its slope is -sum_n w_n sum_c p_nc(xi) m_nc, with the response m centred on the
    targets (sum_c P_nc m_nc = 0), and tends to sum_n w_n (-min_c m_nc) >= 0.  Where this limit is zero and the
    response is not constant, the loss falls for ever: the batch is separable along the ray.  Otherwise the root of
    the slope is searched to the last bits of the dtype, all candidates of a round in one (K, N, C) tensor.

    Args:
        logits: (N, C), Z.
        response: (N, C), R = F g_W^T + g_b.
        targets: (N,) class indices or (N, C) probabilities.
        label_smoothing: in [0, 1].
        class_weights: (C,) or None.

    Returns:
        Radius, bounded and loss, scalar tensors on the device of ``logits``; nothing is read back from it.  On an
        accelerator the radius is NaN where an input is.

    Raises:
        ValueError: if the shapes do not fit, a class index is out of range, or, on a CPU, an input is NaN.
    """
    logits, response = _check_ray(logits, response)
    encoded = encode_targets(targets, logits, label_smoothing, class_weights=class_weights)
    return _open_nan(minimum_along(logits, response, encoded), logits, response)


def minimum_along(logits: Tensor, response: Tensor, encoded: Targets) -> LineSearch:
    """As :func:`line_search`, in the dtype of logits and response (N, C), which have no graph."""
    with without_autocast(logits.device):
        if encoded.unequal is not None:
            # Samples of weight zero have no part in the loss, nor in its separability.
            response = response.masked_fill((encoded.unequal == 0).unsqueeze(1), 0.0)
        moved = response - encoded.expectation(response)
        lead = encoded.lead(response, moved)
        if _on_processor(logits):
            lowest, highest = (end.item() for end in moved.aminmax())
            root, size = 0.0, max(-lowest, highest)
            turning = (lowest if lead is moved else lead.amin().item()) < 0 or not size > 0
            if turning and size > 0:
                moved = moved / size
                weighted = moved if encoded.unequal is None else encoded.weigh(moved)
                both = torch.stack([weighted, -weighted]).clamp_min_(0.0).flatten(1)
                values = torch.empty_like(logits)
                flat = values.view(-1)

                def sides(xi: float) -> Any:
                    torch.softmax(torch.add(logits, moved, alpha=-xi) if xi else logits, 1, out=values)
                    return torch.mv(both, flat).tolist()

                root = crossing(sides, torch.finfo(logits.dtype).eps)
            return _found(logits, response, encoded, *_tensors(root, size, turning, logits))
        scale = torch.linalg.vector_norm(moved, torch.inf)
        bounded = (lead.amin() < 0) | (scale == 0)
        scale = scale.clamp_min(torch.finfo(scale.dtype).tiny)
        moved = moved / scale
        weighted = encoded.weigh(moved).flatten()
        found, turns = _last_of(lambda z: torch.softmax(z, -1).flatten(1) @ weighted > 0, logits, moved)
        bounded = turns & bounded
        return _found(logits, response, encoded, torch.where(bounded, found / scale, 0.0), bounded)


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
        loss does not rise along the ray (a gradient of zero), the radius then 0.  Nothing is read back from the device.

    Raises:
        ValueError: if the shapes do not fit or a class index is out of range.
    """
    logits, response = _check_ray(logits, response)
    encoded = encode_targets(targets, logits, label_smoothing, class_weights=class_weights)
    return _open_nan(level_along(logits, response - encoded.expectation(response), encoded, level), logits, response)


def level_along(logits: Tensor, response: Tensor, encoded: Targets, level: Tensor | float) -> LineSearch:
    """As :func:`reach`; logits and response (N, C), its rows with sum 0 or 0 at the targets, in one dtype, no graph."""
    with without_autocast(logits.device):
        scale = torch.linalg.vector_norm(response, torch.inf)
        if _on_processor(logits):
            root, size, wanted = 0.0, scale.item(), float(level)

            def sides(xi: float) -> tuple[float, float]:
                return wanted, cross_entropy(torch.add(logits, response, alpha=xi / size), encoded).item()

            if size > 0:
                root = crossing(sides, torch.finfo(logits.dtype).eps)
            return _found(logits, response, encoded, *_tensors(root, size, size > 0, logits), up=True)
        moved, shares = -response, -encoded.weigh(encoded.distribution(logits))
        rises, scale = scale > 0, scale.clamp_min(torch.finfo(scale.dtype).tiny)
        moved, shares = moved / scale, shares.flatten()
        found, reached = _last_of(lambda z: torch.log_softmax(z, -1).flatten(1) @ shares < level, logits, moved)
        bounded = reached & rises
        return _found(logits, response, encoded, torch.where(bounded, found / scale, 0.0), bounded, up=True)


def _found(
    logits: Tensor, response: Tensor, encoded: Targets, radius: Tensor, bounded: Tensor, *, up: bool = False
) -> LineSearch:
    sign = 1 if up else -1
    return LineSearch(radius, bounded, lambda r: cross_entropy(torch.addcmul(logits, response, r, value=sign), encoded))


def _tensors(root: float, scale: float, bounded: bool, like: Tensor) -> tuple[Tensor, Tensor]:
    """Radius and bounded; no radius where there is no bound."""
    bounded = bounded and root < math.inf
    return like.new_full((), root / scale if bounded and root else 0.0), like.new_full((), bounded, dtype=torch.bool)


def _on_processor(logits: Tensor) -> bool:
    """Whether reading a value waits for nothing."""
    return logits.device.type == "cpu"


def _last_of(holds: Condition, logits: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    """The largest xi for which a condition on (K, N, C) logits holds, to the last bits; and whether it fails."""
    info = torch.finfo(logits.dtype)
    bits = max(2, min(_MOST_BITS, (_ROUND // logits.numel()).bit_length() - 1))
    normal = math.frexp(info.tiny)[1], math.frexp(info.max)[1] - 1
    return last_of(
        lambda xi: holds(torch.addcmul(logits, xi.view(-1, 1, 1), moved, value=-1)),
        logits.new_ones(()),
        normal,
        parts=(2 ** min(bits, 8), 2**bits),
        rounds=math.ceil(-math.log2(info.eps) / bits),
    )


def _check_ray(logits: Tensor, response: Tensor) -> tuple[Tensor, Tensor]:
    if logits.ndim != 2 or logits.shape != response.shape:
        raise ValueError(
            f"logits and response must both be (N, C); got {tuple(logits.shape)} and {tuple(response.shape)}"
        )
    if _on_processor(logits) and bool((logits.isnan() | ~response.isfinite()).any()):
        raise ValueError("logits or response hold NaN (or the response infinity): check the network and its inputs")
    dtype = wide_dtype(logits, response)
    return logits.to(dtype), response.to(dtype)


def _open_nan(found: LineSearch, logits: Tensor, response: Tensor) -> LineSearch:
    """NaN as radius where an input is, on an accelerator, where nothing is read."""
    if _on_processor(logits):
        return found
    usable = response.isfinite().all() & ~logits.isnan().any()
    return replace(found, radius=torch.where(usable, found.radius, torch.nan))


def _check_linear(features: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if features.ndim != 2 or weight.ndim != 2 or features.shape[1] != weight.shape[1]:
        raise ValueError(
            f"features must be (N, D) and weight (C, D); got {tuple(features.shape)} and {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be ({weight.shape[0]},); got {tuple(bias.shape)}")
