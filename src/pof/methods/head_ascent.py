"""Head ascent: PoF turned round, and without its second forward; our own method.

1. mini-batch -> features -> normalised head gradient g_hat of this very mini-batch;
2. radius rho at which its loss along the ascent, L(phi, theta_0 + rho g_hat), has risen to a level;
3. the extractor descends L(phi, theta_0 + rho g_hat), the head stays as it is.

Sharpness-aware minimisation (Foret et al., 2021) of the head alone does the same with a radius of fixed length; here
direction and radius are closed form and search on features that are there anyway, so that a step costs what plain
training costs.  A mini-batch whose loss is above the level is trained on plainly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pof._support import distributed
from pof._support.batches import Inputs
from pof._support.modules import frozen_statistics
from pof.head.split import split
from pof.methods.base import Method, StepOutput, check_loss_options, check_not_in_ddp, float32_logits, mean_loss
from pof.perturbation.ascent import module_reach, reach
from pof.perturbation.linear import HeadGradient, LineSearch, head_gradient, respond
from pof.perturbation.module import Loss, module_gradient, perturbed_call


@dataclass(frozen=True, kw_only=True)
class HeadAscentOutput(StepOutput):
    """One step of head ascent; ``loss`` is taken at the perturbed head and its graph reaches the extractor only."""

    radius: Tensor
    """rho, scalar, in units of head-parameter distance; 0 where there is no perturbation."""
    gradient_norm: Tensor
    """||g||, scalar."""
    clean_loss: Tensor
    """Scalar: the loss at theta_0, without graph."""


class HeadAscent(Method):
    """Training of the extractor at the head that makes its mini-batch as hard as ``level``.

    The head's parameters are frozen (``requires_grad=False``) and stay bit-identical.  In eval mode the loss is the
    plain one.  Under ``torch.distributed`` the mini-batches of all ranks act as one.

    Args:
        model: any trained classifier; it is used as it is, in place.
        head: qualified name of the head; found by :func:`pof.find_head` if None.
        level: the loss that the ascent ends at, as a share of log C, the loss of guessing among C classes; in [0, 1).
            0 is plain training with a frozen head, exactly.
        label_smoothing: of the cross-entropy, in [0, 1).
        class_weights: (C,) of the cross-entropy, or None.
        loss: a loss of one's own, ``loss(logits, targets)`` -> scalar mean; takes the general path, where the first
            radius found is taken.  None is the cross-entropy.

    Raises:
        ValueError: if an option is out of range, or ``model`` is in ``DistributedDataParallel`` already with a head
            that is trained.
    """

    remedy = "lower the learning rate, or level"

    def __init__(
        self,
        model: nn.Module,
        head: str | None = None,
        *,
        level: float = 0.15,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        loss: Loss | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 <= level < 1.0:
            raise ValueError(f"level is a share of the loss of guessing and must be in [0, 1); got {level}")
        check_loss_options(label_smoothing, class_weights)
        if loss is not None and (label_smoothing or class_weights is not None):
            raise ValueError("label_smoothing and class_weights belong to the cross-entropy: put them into your loss")
        self.network = split(model, head)
        check_not_in_ddp(model, self.network.head)
        distributed.reshard(model)
        self.network.head.requires_grad_(False)
        self.level, self.label_smoothing, self.loss = level, label_smoothing, loss
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.class_weights: Tensor | None

    @property
    def model(self) -> nn.Module:
        """The user's model itself."""
        return self.network.model

    def settings(self) -> dict[str, Any]:
        """The options that a run may not change when it resumes.

        Returns:
            Names and values.
        """
        return {"head_ascent.level": self.level, "head_ascent.label_smoothing": self.label_smoothing}

    def forward(
        self,
        inputs: Inputs,
        targets: Tensor,
        reference_inputs: Inputs | None = None,
        reference_targets: Tensor | None = None,
    ) -> HeadAscentOutput:
        """Radius and loss at the perturbed head of the mini-batch itself; a reference mini-batch is not used."""
        features, logits = self.network.features_and_logits(inputs)
        logits = float32_logits(self.network, features, logits)
        clean = self._loss(logits.detach(), targets)
        radius = norm = torch.zeros_like(clean)
        perturbed = logits
        if self.training and self.level:
            radius, norm, perturbed = self._perturb(features, logits, targets)
        return HeadAscentOutput(
            loss=self._loss(perturbed, targets),
            logits=logits.detach(),
            metrics={"radius": radius, "clean_loss": clean, "gradient_norm": norm},
            radius=radius,
            gradient_norm=norm,
            clean_loss=clean,
        )

    def _perturb(self, features: Tensor, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Radius, ||g|| and perturbed logits (N, C)."""
        seen, labels = distributed.gather_rows(features.detach(), targets)
        level = self.level * math.log(logits.shape[1])
        if self.network.linear and self.loss is None:
            gradient, search = self._linear_ascent(seen, labels, level)
            return (
                search.radius,
                gradient.norm,
                logits + search.radius * respond(features, gradient.weight, gradient.bias),
            )
        head = self.network.head
        direction = module_gradient(head, seen, labels, self._loss)
        search = module_reach(head, direction.direction, seen, labels, level, self._loss)
        # The head's running statistics have seen this mini-batch in the forward before.
        with frozen_statistics(head):
            perturbed = perturbed_call(head, direction.direction, -search.radius, features)
        return search.radius, direction.norm, perturbed

    @torch.no_grad()
    def _linear_ascent(self, features: Tensor, targets: Tensor, level: float) -> tuple[HeadGradient, LineSearch]:
        weight, bias, smoothing = self.network.weight, self.network.bias, self.label_smoothing
        gradient = head_gradient(features, targets, weight, bias, smoothing, class_weights=self.class_weights)
        dtype = gradient.weight.dtype
        search = reach(
            respond(features, weight.to(dtype), None if bias is None else bias.to(dtype)),
            respond(features, gradient.weight, gradient.bias),
            targets,
            level,
            smoothing,
            class_weights=self.class_weights,
        )
        return gradient, search

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.loss is not None and logits.shape[0]:
            return self.loss(logits, targets)
        return mean_loss(logits, targets, self.label_smoothing, self.class_weights)
