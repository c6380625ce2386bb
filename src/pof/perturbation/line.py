"""The loss of a mini-batch along its own head gradient, as one object: direction, minimum, level, logits.

    mini-batch -> extractor -> features -> HeadLine -> radius -> logits of the moved head -> loss

A point of the line is theta - amount * g_hat: a positive amount goes *down* the gradient g_hat = g / ||g|| of the head
theta, as PoF does; head ascent goes up, with a negative one.  No parameter is modified.  A ``HeadLine`` has

- ``norm``: ||g||, scalar; where it is 0, so is g_hat;
- ``loss_at(amount)``: the loss of the mini-batch there;
- ``minimise()``: the amount >= 0 at which it is least;
- ``reach(level)``: the distance *up* the gradient at which it has risen to a level, so that -radius is the amount;
- ``logits(features, logits, amount)``: those of any mini-batch there.

With a linear head and the cross-entropy all of it is exact and in closed form (``pof.perturbation.linear``).  For
any other head or loss an evaluation is a forward of the head without dropout, and the first point found by doubling is
taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self, TypeGuard

import torch
from torch import Tensor, nn

from pof._support.distributed import call_with, whole
from pof._support.modules import frozen_statistics, without_dropout
from pof._support.norms import global_norm
from pof._support.precision import wide_dtype, without_autocast
from pof.head.calls import refuse_checkpoint, refusing_checkpoints
from pof.head.split import SplitModel
from pof.perturbation.gram import GramGradient, pays
from pof.perturbation.linear import (
    HeadGradient,
    LineSearch,
    gradient_of,
    level_along,
    minimum_along,
    respond,
)
from pof.perturbation.loss import CrossEntropy, LossFunction
from pof.perturbation.search import last_of
from pof.perturbation.targets import Targets, cross_entropy, logit_gradient

# For any head: radii between 2^-10 and 2^4 times the head's norm, then to 2^-16 of the octave.
_EXPONENTS, _HALVINGS = (-10, 4), 16


@dataclass(frozen=True, eq=False)
class LinearLine:
    """For a linear head and the cross-entropy: loss(amount) = mean CE(Z - amount * R, y)."""

    gradient: HeadGradient | GramGradient
    base: Tensor
    """(N, C), Z."""
    response: Tensor
    """(N, C), R, to g_hat."""
    targets: Targets
    carried: tuple[Tensor, Tensor] | None = None
    """Features (N, D) of which R with its graph is known, and that; None where no graph is wanted."""

    @property
    def norm(self) -> Tensor:
        """||g||, scalar."""
        return self.gradient.norm

    @classmethod
    def along(
        cls,
        network: SplitModel,
        features: Tensor,
        targets: Tensor,
        loss: CrossEntropy,
        logits: Tensor | None = None,
    ) -> Self:
        """As :func:`along_head_gradient`; half precision is computed in float32."""
        given, features, weight, bias = features, features.detach(), network.weight.detach(), network.bias
        dtype = wide_dtype(features, weight)
        features = features.to(dtype)
        if logits is None or logits.dtype != dtype:
            logits = respond(features, weight.to(dtype), None if bias is None else bias.detach().to(dtype))
        try:
            encoded = loss.encode(targets, logits, check=False)
            residual = logit_gradient(logits, encoded)
        except RuntimeError:
            # An index out of range, or one to be ignored: asked for afterwards, that costs other steps nothing.
            encoded = loss.encode(targets, logits)
            residual = logit_gradient(logits, encoded)
        gradient: HeadGradient | GramGradient
        if pays(features.shape[0], features.shape[1], logits.shape[1]):
            gradient, response = GramGradient.along(features, residual, bias=bias is not None)
        else:
            with without_autocast(features.device):
                gradient = gradient_of(features, residual, bias=bias is not None)
            response = gradient.respond(given)
            if response.requires_grad:
                return cls(gradient, logits, response.detach(), encoded, (given, response))
        return cls(gradient, logits, response, encoded)

    @torch.no_grad()
    def over(self, features: Tensor, logits: Tensor, targets: Tensor, loss: CrossEntropy) -> Self:
        """The same direction, with the loss of other samples: features (N, D), logits (N, C) in the dtype wanted."""
        response = self.gradient.respond(features).to(logits.dtype)
        return replace(self, base=logits, response=response, targets=loss.encode(targets, logits), carried=None)

    def loss_at(self, amount: Tensor | float) -> Tensor:
        """Compute mean CE(Z - amount * R, y)."""
        return cross_entropy(self.base - amount * self.response, self.targets)

    def minimise(self) -> LineSearch:
        """Find the minimum exactly; ``bounded`` is False where the mini-batch is separable along the ray."""
        return minimum_along(self.base, self.response, self.targets)

    def minimise_behind(self) -> LineSearch:
        """As :meth:`minimise`, up the gradient: the amount is the negative of the radius."""
        return minimum_along(self.base, -self.response, self.targets)

    def reach(self, level: Tensor | float) -> LineSearch:
        """Find the level exactly; ``bounded`` is False where the gradient is zero."""
        return level_along(self.base, self.response, self.targets, level)

    def logits(self, features: Tensor, logits: Tensor, amount: Tensor) -> Tensor:
        """Logits (N, C) at theta - amount * g_hat, from features (N, D) and the logits (N, C) at theta, with graph."""
        known = self.carried is not None and self.carried[0] is features
        response = self.carried[1] if self.carried and known else self.gradient.respond(features)
        return torch.addcmul(logits, response, amount, value=-1)


@dataclass(frozen=True, eq=False)
class ModuleLine:
    """For any head and any loss, by functional call; the loss is not convex here, and its minimum a local one."""

    norm: Tensor
    head: nn.Module
    theta: dict[str, Tensor]
    """Parameter name -> tensor without graph, whole where it is sharded."""
    direction: dict[str, Tensor]
    """Parameter name -> g_hat; unit joint norm, or zero where the gradient is zero."""
    features: Tensor
    targets: Tensor
    loss: LossFunction

    @classmethod
    def along(cls, head: nn.Module, features: Tensor, targets: Tensor, loss: LossFunction) -> Self:
        """As :func:`along_head_gradient`, for the head itself."""
        theta = {name: whole(p).detach() for name, p in head.named_parameters()}
        leaves = {name: p.clone().requires_grad_() for name, p in theta.items()}
        features = features.detach()
        with without_dropout(head), torch.enable_grad():
            value = loss(_call(head, leaves, features), targets)
            gradients = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        norm = global_norm(gradients)
        safe = torch.where(norm > 0, norm, torch.ones_like(norm))
        direction = {name: g / safe for name, g in zip(leaves, gradients, strict=True)}
        return cls(norm, head, theta, direction, features, targets, loss)

    def loss_at(self, amount: Tensor | float) -> Tensor:
        """Compute the loss there, without dropout; batch norms in their own mode, as in the loss that is trained."""
        with without_dropout(self.head):
            return self.loss(_call(self.head, self._moved(amount), self.features), self.targets)

    def _slope(self, amount: Tensor) -> Tensor:
        with torch.enable_grad():
            amount = amount.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.loss_at(amount), amount)
        return slope

    def _moved(self, amount: Tensor | float) -> dict[str, Tensor]:
        return {name: p - amount * self.direction[name] for name, p in self.theta.items()}

    def _last_of(self, holds: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The first radius, found by doubling, behind which a condition on a scalar amount fails."""
        unit = global_norm(self.theta.values()).clamp_min(1e-6)

        def so_far(radii: Tensor) -> Tensor:
            return torch.stack([holds(radius) for radius in radii]).cumprod(0).bool()

        octaves = _EXPONENTS[1] - _EXPONENTS[0] + 1
        return last_of(so_far, unit, _EXPONENTS, parts=(octaves, 2), rounds=_HALVINGS)

    @torch.no_grad()
    def minimise(self) -> LineSearch:
        """Find the first local minimum; ``bounded`` is False where the loss still falls at 16 times the head's norm."""
        # A slope so much smaller than the first is rounding: far out on a separable mini-batch it has either sign.
        flat = torch.finfo(self.norm.dtype).eps * self.norm
        found, bounded = self._last_of(lambda xi: self._slope(xi) <= flat)
        start, end = self.loss_at(0.0), self.loss_at(found)
        radius = torch.where(bounded & (end < start), found, torch.zeros_like(found))
        return LineSearch(radius, bounded, lambda _: torch.where(radius > 0, end, start))

    @torch.no_grad()
    def reach(self, level: Tensor | float) -> LineSearch:
        """Find the first radius at the level; ``bounded`` is False where none is within 16 times the head's norm."""
        start = self.loss_at(0.0)
        found, reached = self._last_of(lambda rho: self.loss_at(-rho) < level)
        radius = torch.where(reached & (start < level), found, torch.zeros_like(found))
        return LineSearch(radius, reached | (start >= level), lambda r: self.loss_at(-r))

    def logits(self, features: Tensor, logits: Tensor, amount: Tensor) -> Tensor:
        """Logits (N, C) at theta - amount * g_hat, the head in its own mode; the graph reaches ``features`` only."""
        # The head's own statistics have seen this mini-batch in the forward before.
        with frozen_statistics(self.head), refusing_checkpoints():
            moved = _call(self.head, self._moved(amount), features)
        refuse_checkpoint(moved, features)
        return moved


HeadLine = LinearLine | ModuleLine


def is_exact(loss: LossFunction, network: SplitModel) -> TypeGuard[CrossEntropy]:
    """Whether the loss along the line is known in closed form, without a call of the head."""
    return network.linear and isinstance(loss, CrossEntropy)


def along_head_gradient(
    network: SplitModel, features: Tensor, targets: Tensor, loss: LossFunction, logits: Tensor | None = None
) -> HeadLine:
    """Take the line along the head gradient of a mini-batch.

    Args:
        network: the model, split; not changed.
        features: what enters the head, first axis N; (N, D) for a linear head.  Their graph is not that of the line;
            with one, :meth:`LinearLine.logits` of these very features needs no product any more.
        targets: whatever ``loss`` takes.
        loss: a mean over the mini-batch.
        logits: (N, C) of the features, without graph, where they are known.

    Returns:
        The line, exact where the head is linear and the loss the cross-entropy.

    Raises:
        ValueError: if there is no sample.
    """
    if not len(features):
        raise ValueError("the mini-batch is empty: give it at least one sample")
    if is_exact(loss, network):
        return LinearLine.along(network, features, targets, loss, logits)
    return ModuleLine.along(network.head, features, targets, loss)


def _call(head: nn.Module, parameters: dict[str, Tensor], features: Tensor) -> Tensor:
    logits: Tensor = call_with(head, parameters, features)
    return logits.flatten(1)
