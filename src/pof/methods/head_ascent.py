"""Head ascent: PoF turned round, and without its second forward; our own method.

1. mini-batch -> features -> normalised head gradient g_hat of this very mini-batch;
2. radius rho at which its loss along the ascent, L(phi, theta_0 + rho g_hat), has risen to a level;
3. the extractor descends L(phi, theta_0 + rho g_hat), the head stays as it is.

Sharpness-aware minimisation (Foret et al., 2021) of the head alone does the same with a radius of fixed length; here
direction and radius are closed form and search on features that are there anyway, so that a step costs what plain
training costs.  A mini-batch whose loss is above the level is trained on plainly.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pof._support import distributed
from pof._support.batches import Inputs
from pof.head.split import split
from pof.methods.base import Method, StepOutput
from pof.methods.loss import AskedLoss, chosen_loss, features_and_logits, mean_loss
from pof.perturbation.line import along_head_gradient


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
            With soft or smoothed targets, whose loss is never below their entropy H, a share of the way from H to
            log C.  Of another loss a share of its own loss of guessing: log 2 per label of ``"bce"`` and ``"ordinal"``,
            the variance of the mini-batch's targets of ``"mse"``, the loss of outputs that are all 0 of a function.
            0 is plain training with a frozen head, exactly.
        label_smoothing: of the cross-entropy, in [0, 1).
        class_weights: (C,) of the cross-entropy, or None.
        loss: ``"bce"`` (one logit, several labels), ``"mse"`` (regression), ``"ordinal"`` (ordered classes), or a
            function ``loss(outputs, targets)`` -> scalar mean or (N,); None is the cross-entropy.

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
        loss: AskedLoss = None,
    ) -> None:
        super().__init__()
        if not 0.0 <= level < 1.0:
            raise ValueError(f"level is a share of the loss of guessing and must be in [0, 1); got {level}")
        self.level, self.loss = level, chosen_loss(loss, label_smoothing, class_weights)
        self.network = split(model, head, end=self.loss.end)
        self._freeze_head()

    def forward(
        self,
        inputs: Inputs,
        targets: Tensor,
        reference_inputs: Inputs | None = None,
        reference_targets: Tensor | None = None,
    ) -> HeadAscentOutput:
        """Radius and loss at the perturbed head of the mini-batch itself; a reference mini-batch is not used."""
        features, logits = features_and_logits(self.network, inputs)
        plain = logits.detach()
        if self.training and self.level:
            seen, labels = distributed.gather_batch(features, targets)
            known = plain if seen is features else None
            line = along_head_gradient(self.network, seen, labels, self.loss, known)
            norm, radius = line.norm, line.reach(self.loss.level(self.level, labels, plain)).radius
            perturbed = line.logits(features, logits, -radius)
        else:
            perturbed, radius, norm = logits, logits.new_zeros(()), logits.new_zeros(())
        clean = mean_loss(self.loss, plain, targets)
        return HeadAscentOutput(
            loss=mean_loss(self.loss, perturbed, targets),
            logits=plain,
            metrics={"radius": radius, "clean_loss": clean, "gradient_norm": norm},
            radius=radius,
            gradient_norm=norm,
            clean_loss=clean,
        )
