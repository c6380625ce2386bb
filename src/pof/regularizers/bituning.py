"""Bi-Tuning (Zhong et al., arXiv 2011.06182): the classes are told apart among stored keys, at the head and beside it.

A slowly moving copy of the network encodes keys, and a queue holds the last of each class.  Contrastive cross-entropy
(CCE) contrasts, for each sample, its own class among these keys; categorical contrastive learning (CCL) contrasts the
keys for each sample, after a projection.  docs/methods/bi-tuning.md says what is the paper's and what is ours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pof._support import distributed
from pof._support.batches import Inputs, to_device
from pof._support.checks import finite, whole_number
from pof._support.modules import copied, device_of, packed, unpacked
from pof._support.passes import in_second_pass
from pof._support.precision import at_least_float32, without_autocast
from pof._support.random import isolated
from pof.head.split import split
from pof.regularizers._base import Regularizer, check_features, check_targets, counted_of, zero


def contrast(own: Tensor, stored: Tensor, positive: Tensor, filled: Tensor, temperature: float) -> Tensor:
    """-1/|P_n| sum_{p in P_n} log softmax(scores_n / temperature)_p, over the own key and all filled places.

    For scores own (N,) and stored (N, Q), positive (N, Q) bool, filled (Q,) bool; P_n are the own key and the positive
    filled places.

    Returns:
        (N,).
    """
    scores = torch.cat([own[:, None], stored.masked_fill(~filled, -torch.inf)], dim=1)
    logarithms = torch.log_softmax(scores / temperature, dim=1)
    found = positive & filled
    total = logarithms[:, 0] + torch.where(found, logarithms[:, 1:], 0).sum(dim=1)
    return -total / (1 + found.sum(dim=1))


def places(targets: Tensor, count: Tensor, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where the next keys of targets (N,) go in rings of ``keys`` places for each class, count (K,) being there before.

    Returns:
        places (N,); which of them stay, (N,) bool: of a class with more new keys than places the last; the new counts.
    """
    member = F.one_hot(targets, len(count))
    rank = (member.cumsum(dim=0) - 1).gather(1, targets[:, None]).squeeze(1)
    new = member.sum(dim=0)
    return (count[targets] + rank) % keys, rank >= (new - keys)[targets], count + new


def with_one(features: Tensor) -> Tensor:
    """Features (N, D) with a 1 for the bias, of norm 1: (N, D + 1)."""
    return F.normalize(F.pad(features, (0, 1), value=1.0), dim=1)


class BiTuning(Regularizer):
    """strength * (CCE + CCL), with keys of a momentum copy of the network.

    :meth:`update`, once after each optimizer step, moves the copy and stores the step's keys.  The projection is
    trained with the network: it is in ``parameters()``, which the optimizer must get too
    (``pof.Regularized(...).trainable_parameters()`` has it).  All state is in ``state_dict``.

    Args:
        model: the network that is fine-tuned, with a linear head for its K classes.
        head: qualified name of the head; found by :func:`pof.find_head` if None.
        strength: weight of both losses, >= 0.  At 0 nothing is copied or stored.
        keys: places for each class, >= 1.
        dimension: L of the projection, >= 1.
        temperature: tau, > 0.
        momentum: share of the old value in the copy's parameters, in [0, 1).
        seed: of the projection.

    Raises:
        ValueError: if a setting is out of range, or the head is not linear.
    """

    queue: Tensor
    projected: Tensor
    count: Tensor

    def __init__(
        self,
        model: nn.Module,
        head: str | None = None,
        *,
        strength: float = 1.0,
        keys: int = 40,
        dimension: int = 128,
        temperature: float = 0.07,
        momentum: float = 0.999,
        seed: int = 0,
    ) -> None:
        super().__init__(strength)
        whole_number("keys", keys, 1)
        whole_number("dimension", dimension, 1)
        finite("temperature", temperature, above=0)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1); got {momentum!r}")
        network = split(model, head)
        weight = network.weight.detach()
        self.head, self.keys, self.dimension = network.head_name, keys, dimension
        self.temperature, self.momentum, self.seed = temperature, momentum, seed
        # In a tuple: as a submodule the network would be in this module's state and parameters.
        self._network = (network,)
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []
        if self.strength > 0:
            classes, size = weight.shape
            with isolated(seed):
                projection = nn.Linear(size, dimension)
            weight = at_least_float32(weight)
            self.projection = projection.to(weight.device, weight.dtype)
            self.key_projection = copied(self.projection).requires_grad_(False)
            self.key = split(copied(model).requires_grad_(False), self.head)
            self.register_buffer("queue", weight.new_zeros(classes, keys, size + 1))
            self.register_buffer("projected", weight.new_zeros(classes, keys, dimension))
            self.register_buffer("count", torch.zeros(classes, dtype=torch.int64, device=weight.device))

    def held_parameters(self) -> set[nn.Parameter]:
        """All of its model."""
        return set(self._network[0].parameters())

    def forward(self, features: Tensor, targets: Tensor | None = None, inputs: Inputs | None = None) -> Tensor:
        """Compute the penalty; the network's copy is run once on the inputs, without gradients.

        Args:
            features: (N, D) with graph.
            targets: (N,) class indices; samples with -100 have no part and leave no keys.
            inputs: (N, ...), those of the features.

        Returns:
            A scalar, float32 (float64 for float64 features).

        Raises:
            ValueError: if there are no inputs, features or targets do not fit, or the network is in half precision.
        """
        if self.strength == 0:
            return zero(features)
        check_features(features, self.projection.in_features)
        if inputs is None:
            raise ValueError("BiTuning needs the inputs: call regularizer(features, targets, inputs)")
        if self._network[0].weight.itemsize < 4:
            raise ValueError(
                "BiTuning's copy follows the network in steps that half precision rounds away: keep the weights in"
                " float32, and compute under autocast"
            )
        counted = counted_of(targets)
        targets = check_targets(targets, features, len(self.count))
        with torch.no_grad():
            encoded = self.key.features(inputs)
        if counted is not None:
            features, targets, encoded = features[counted], targets[counted], encoded[counted]
        if not len(targets):
            return features.sum()
        with without_autocast(features.device):
            features, encoded = at_least_float32(features), at_least_float32(encoded)
            key = F.normalize(self.key_projection(encoded), dim=1)
            if not in_second_pass(self.projection) and not in_second_pass(self._network[0].model):
                self._pending.append((with_one(encoded), key, targets))
            return self.strength * (self._cross_entropy(features, targets) + self._categorical(features, key, targets))

    def _cross_entropy(self, features: Tensor, targets: Tensor) -> Tensor:
        """CCE: each sample's class vector, without gradient, finds the sample and the keys of its class."""
        network = self._network[0]
        bias = network.weight.new_zeros(len(self.count)) if network.bias is None else network.bias
        vectors = F.normalize(torch.cat([network.weight, bias[:, None]], dim=1).detach(), dim=1).to(features.dtype)
        own = (with_one(features) * vectors[targets]).sum(dim=1)
        return self._contrasted(own, vectors[targets] @ self.queue.flatten(0, 1).T, targets)

    def _categorical(self, features: Tensor, key: Tensor, targets: Tensor) -> Tensor:
        """CCL: each projected sample finds its own key and the keys of its class."""
        query = F.normalize(self.projection(features), dim=1)
        return self._contrasted((query * key).sum(dim=1), query @ self.projected.flatten(0, 1).T, targets)

    def _contrasted(self, own: Tensor, stored: Tensor, targets: Tensor) -> Tensor:
        classes = torch.arange(len(self.count), device=targets.device).repeat_interleave(self.keys)
        filled = torch.arange(self.keys, device=targets.device) < self.count[:, None]
        positive = targets[:, None] == classes
        return contrast(own, stored, positive, filled.flatten(), self.temperature).mean()

    def get_extra_state(self) -> Tensor:
        """The keys of a step that is not taken yet: a checkpoint may come between its mini-batches."""
        return packed({"pending": self._pending})

    def set_extra_state(self, state: Any) -> None:
        """Take back what :meth:`get_extra_state` gave."""
        state = unpacked(state)
        self._pending = to_device(state["pending"], device_of(self._network[0]))

    @torch.no_grad()
    def update(self, features: Tensor, targets: Tensor) -> None:
        """Move the copy towards the network, and store the keys of the step; a collective call of several processes.

        Args:
            features: not read: the keys are those that the penalty was computed with.
            targets: not read.
        """
        if self.strength == 0:
            return
        followers: list[Tensor] = [*self.key.parameters(), *self.key_projection.parameters()]
        leaders: list[Tensor] = [*self._network[0].parameters(), *self.projection.parameters()]
        torch._foreach_lerp_(followers, leaders, 1 - self.momentum)
        none = self.queue.new_empty(0, self.queue.shape[2]), self.projected.new_empty(0, self.dimension)
        parts = [(*none, self.count.new_empty(0)), *self._pending]  # a process may have no sample in a step
        self._pending.clear()
        keys, projected, targets = (torch.cat(each) for each in zip(*parts, strict=True))
        if distributed.active():
            keys, projected, targets = distributed.gather_rows(keys, projected, targets)
        where, stays, count = places(targets, self.count, self.keys)
        self.queue[targets[stays], where[stays]] = keys[stays]
        self.projected[targets[stays], where[stays]] = projected[stays]
        self.count.copy_(count)
