"""The perturbation of PoF (Sato et al., ICML 2022) and of head ascent for a linear head, as pure functions.

With the cross-entropy everything is exact and in closed form up to a one-dimensional convex search.  With logits
Z = F W^T + b and the response R = F g_W^T + g_b of the logits to the direction g_hat:

    loss(theta - xi g_hat) = mean CE(Z - xi R, y),

so that after two matrix products no evaluation sees the network again.  PoF takes the xi >= 0 of the least loss.  The
other way, at theta + rho g_hat, the loss is increasing, and head ascent takes the only rho at which it is at a level.
Nothing here is read back from the device.

Weighted targets are written as a distribution P (N, C) and sample weights w (N,):
CE = sum_n w_n (logsumexp z_n - P_n . z_n), which is ``torch.nn.functional.cross_entropy`` for hard labels, label
smoothing, class weights and soft targets alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pof._support.batches import class_targets
from pof._support.precision import wide_dtype, without_autocast
from pof.perturbation.search import Condition, last_of

# Elements of one round's (K, N, C) tensor: on a CPU arithmetic is what costs, on an accelerator the number of rounds.
_CPU_ROUND, _ACCELERATOR_ROUND = 2**13, 2**22
_MIN_CANDIDATES, _MAX_CANDIDATES = 3, 31

IGNORED = -100
"""The class index of a sample without part in the cross-entropy, torch's ``ignore_index``."""


@dataclass(frozen=True)
class HeadGradient:
    """The normalised head gradient g_hat = g / ||g||, the norm over weight and bias jointly."""

    weight: Tensor
    """(C, D)."""
    bias: Tensor | None
    """(C,), or None for a head without bias."""
    norm: Tensor
    """||g||, scalar; where it is 0, weight and bias are 0 too."""


@dataclass(frozen=True)
class LineSearch:
    """Where the loss along a ray has its minimum, or reaches a level."""

    radius: Tensor
    """xi* or rho, scalar, in units of parameter distance; 0 where unbounded."""
    bounded: Tensor
    """bool scalar: False where there is no such point: the mini-batch is separable along the ray, so that its loss has
    no minimum; or the loss does not rise to the level."""
    loss: Tensor
    """The mean loss at ``radius``, scalar."""


@dataclass(frozen=True)
class Targets:
    """Targets of the cross-entropy as a distribution P (N, C), rows summing to 1, and sample weights w (N,)."""

    distribution: Tensor
    weights: Tensor


def encode_targets(
    targets: Tensor,
    like: Tensor,
    label_smoothing: float = 0.0,
    *,
    class_weights: Tensor | None = None,
) -> Targets:
    """Write any targets of ``F.cross_entropy``, (N,) or (N, C), as a distribution and sample weights.

    With class indices the mean is over the class weights (C,) of the samples, with probabilities over N, as there.

    Returns:
        The targets, in dtype and on the device of the logits ``like`` (N, C).

    Raises:
        ValueError: if the shapes do not fit, a class index is out of range (checked where that needs no host
            synchronisation), or ``label_smoothing`` is outside [0, 1].
    """
    n, c = like.shape
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1]; got {label_smoothing}")
    if n == 0:
        raise ValueError("the mini-batch is empty: give it at least one sample")
    targets = class_targets(targets, c)
    if targets.is_floating_point():
        if targets.shape != like.shape:
            raise ValueError(f"soft targets must have the logits' shape {(n, c)}; got {tuple(targets.shape)}")
        mass, total = targets.to(like.dtype), like.new_tensor(float(n))
    else:
        _check_indices(targets, n, c)
        counted = (targets != IGNORED).to(like.dtype)
        indices = targets.clamp_min(0)
        mass = F.one_hot(indices, c).to(like.dtype)
        total = counted.sum() if class_weights is None else (class_weights.to(like)[indices] * counted).sum()
    if label_smoothing:
        mass = mass * (1.0 - label_smoothing) + label_smoothing / c
    if class_weights is not None:
        mass = mass * class_weights.to(like)
    rows, tiny = mass.sum(dim=1), torch.finfo(like.dtype).tiny
    weights = rows if targets.is_floating_point() else rows * counted
    return Targets(mass / rows.clamp_min(tiny).unsqueeze(1), weights / total.clamp_min(tiny))


def _check_indices(targets: Tensor, n: int, c: int) -> None:
    if targets.shape != (n,):
        raise ValueError(
            f"targets must be ({n},) class indices or ({n}, {c}) probabilities; got {tuple(targets.shape)}"
        )
    if targets.device.type == "cpu":
        # -100, to be ignored, is as good as 0.
        low, high = (int(value) for value in torch.aminmax(torch.where(targets == IGNORED, 0, targets)))
        if low < 0 or high >= c:
            raise ValueError(f"class indices must be in [0, {c - 1}]; got values from {low} to {high}")


def cross_entropy(logits: Tensor, targets: Targets) -> Tensor:
    """Mean cross-entropy sum_n w_n (logsumexp z_n - P_n . z_n) of logits (..., N, C): one loss per leading index."""
    centred = logits - (targets.distribution * logits).sum(dim=-1, keepdim=True)
    return torch.logsumexp(centred, dim=-1) @ targets.weights


def logit_gradient(logits: Tensor, targets: Targets) -> Tensor:
    """Gradient (N, C) of the mean cross-entropy with respect to the logits (N, C): w_n (p_nc - P_nc)."""
    # Every row sums to zero; writing the largest target entry as minus the sum of the others keeps the digits that
    # p - 1 loses for confident samples.
    difference = torch.softmax(logits, dim=1) - targets.distribution
    difference = difference - targets.distribution * difference.sum(dim=1, keepdim=True)
    return difference * targets.weights.unsqueeze(1)


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
    logits = respond(features, weight, None if bias is None else bias.to(weight.dtype))
    encoded = encode_targets(targets, logits, label_smoothing, class_weights=class_weights)
    return gradient_of(features, logits, encoded, bias=bias is not None)


@torch.no_grad()
def gradient_of(features: Tensor, logits: Tensor, encoded: Targets, *, bias: bool) -> HeadGradient:
    """As :func:`head_gradient`, from features (N, D) and logits (N, C) in one dtype."""
    with without_autocast(features.device):
        residual = logit_gradient(logits, encoded)
        return _normalised(residual.T @ features, residual.sum(dim=0) if bias else None)


def _normalised(weight: Tensor, bias: Tensor | None) -> HeadGradient:
    parts = weight.flatten() if bias is None else torch.cat([weight.flatten(), bias])
    # Scaled by the largest entry first: squares of a well-fitted batch's gradient underflow in float32.
    largest = parts.abs().amax()
    safe = torch.where(largest > 0, largest, torch.ones_like(largest))
    length = torch.linalg.vector_norm(parts / safe)
    length = torch.where(largest > 0, length, torch.ones_like(length))
    unit = parts / safe / length
    direction = unit if bias is None else unit[: weight.numel()]
    return HeadGradient(
        weight=direction.view_as(weight),
        bias=None if bias is None else unit[weight.numel() :],
        norm=length * largest,
    )


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
        Radius, bounded and loss, scalar tensors on the device of ``logits``; nothing is read back from it.

    Raises:
        ValueError: if the shapes do not fit or a class index is out of range.
    """
    logits, response = _check_ray(logits, response)
    return minimum_along(
        logits, response, encode_targets(targets, logits, label_smoothing, class_weights=class_weights)
    )


@torch.no_grad()
def minimum_along(logits: Tensor, response: Tensor, encoded: Targets) -> LineSearch:
    """As :func:`line_search`, in the dtype of logits and response (N, C)."""
    with without_autocast(logits.device):
        # Samples of weight zero have no part in the loss, nor in its separability.
        response = torch.where(encoded.weights.unsqueeze(1) > 0, response, torch.zeros_like(response))
        spread = response - response.amin(dim=1, keepdim=True)
        separable = (encoded.distribution * spread).amax() == 0
        bounded = ~separable | (spread.amax() == 0)
        moved, scale = _centred(response, encoded)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        moved = moved / scale
        weighted = (moved * encoded.weights.unsqueeze(1)).flatten()

        def falls(xi: Tensor) -> Tensor:
            p = torch.softmax(torch.addcmul(logits, xi.view(-1, 1, 1), moved, value=-1), dim=-1)
            return p.flatten(1) @ weighted > 0

        root = _last_of(falls, logits) / scale
        radius = torch.where(bounded, root, torch.zeros_like(root))
        return LineSearch(radius=radius, bounded=bounded, loss=cross_entropy(logits - radius * response, encoded))


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
    return level_along(logits, response, encoded, level)


@torch.no_grad()
def level_along(logits: Tensor, response: Tensor, encoded: Targets, level: float) -> LineSearch:
    """As :func:`reach`, in the dtype of logits and response (N, C)."""
    with without_autocast(logits.device):
        moved, scale = _centred(response, encoded)
        rises = scale > 0
        scale = torch.where(rises, scale, torch.ones_like(scale))
        moved = moved / scale

        def below(rho: Tensor) -> Tensor:
            return cross_entropy(torch.addcmul(logits, rho.view(-1, 1, 1), moved), encoded) < level

        start = cross_entropy(logits, encoded)
        needed = rises & (start < level)
        radius = torch.where(needed, _last_of(below, logits) / scale, torch.zeros_like(start))
        loss = torch.where(needed, cross_entropy(logits + radius * response, encoded), start)
        return LineSearch(radius=radius, bounded=rises, loss=loss)


def _centred(response: Tensor, encoded: Targets) -> tuple[Tensor, Tensor]:
    """The response less its mean over the targets, which moves the loss alike; and its largest entry."""
    moved = response - (encoded.distribution * response).sum(dim=1, keepdim=True)
    return moved, moved.abs().amax()


def _last_of(holds: Condition, logits: Tensor) -> Tensor:
    """The largest xi for which a condition on (K, N, C) logits holds, to the last bits of the dtype."""
    info = torch.finfo(logits.dtype)
    elements = _CPU_ROUND if logits.device.type == "cpu" else _ACCELERATOR_ROUND
    parts = 1 + max(_MIN_CANDIDATES, min(_MAX_CANDIDATES, elements // logits.numel()))
    normal = math.frexp(info.tiny)[1], math.frexp(info.max)[1] - 1
    rounds = math.ceil(-math.log2(info.eps) / math.log2(parts))
    return last_of(holds, logits.new_ones(()), normal, parts=(parts, parts), rounds=rounds)[0]


def _check_ray(logits: Tensor, response: Tensor) -> tuple[Tensor, Tensor]:
    if logits.ndim != 2 or logits.shape != response.shape:
        raise ValueError(
            f"logits and response must both be (N, C); got {tuple(logits.shape)} and {tuple(response.shape)}"
        )
    dtype = wide_dtype(logits, response)
    return logits.to(dtype), response.to(dtype)


def _check_linear(features: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if features.ndim != 2 or weight.ndim != 2 or features.shape[1] != weight.shape[1]:
        raise ValueError(
            f"features must be (N, D) and weight (C, D); got {tuple(features.shape)} and {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be ({weight.shape[0]},); got {tuple(bias.shape)}")
