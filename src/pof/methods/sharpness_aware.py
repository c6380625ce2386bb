"""Training with SAM and its relatives: the plain loss, and an optimizer that wants it at a perturbed point.

SAM (Foret et al., ICLR 2021), ASAM (Kwon et al., 2021), SAM-ON (Mueller et al., NeurIPS 2023), MSAM (Becker et al.,
arXiv 2401.12033), each from the start or for the last epochs only (late-phase SAM, Zhou et al., ICLR 2025), and with
the direction of the ascent from a part of the mini-batch (Bahri et al., ACL 2022, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.optim import Optimizer

from pof._batches import Inputs, batch_size, first_samples
from pof.head import split
from pof.methods._method import Method, StepOutput, check_loss_options, cross_entropy_step
from pof.optim import ASAM, MSAM, SAM, SAMON, PerturbingOptimizer

Kind = Literal["sam", "asam", "sam-on", "msam"]
# The radii that the papers recommend for networks like these.
DEFAULT_RHO: dict[Kind, float] = {"sam": 0.05, "asam": 0.5, "sam-on": 0.5, "msam": 0.3}


class SharpnessAware(Method):
    """Training with a sharpness-aware optimizer; :meth:`build_optimizer` makes it.

    Args:
        model: any classifier; it is used as it is, in place.
        head: qualified name of the head; found by :func:`pof.find_head` if None.
        kind: ``"sam"``, ``"asam"``, ``"sam-on"`` or ``"msam"``.
        rho: radius of the perturbation, >= 0; None takes the one usual for ``kind``.
        last_epochs: perturb in the last so many epochs only (late-phase SAM); None: in all.
        ascent_share: share of each mini-batch that the first pass, which gives the direction of the ascent, is made
            of, in (0, 1]; a step then costs 1 + ascent_share plain ones.  Not for ``"msam"``, which has no such pass.
        label_smoothing: of the cross-entropy, in [0, 1).
        class_weights: (C,) of the cross-entropy, or None.

    Raises:
        ValueError: if an option is out of range.
    """

    remedy = "lower the learning rate or rho"

    def __init__(
        self,
        model: nn.Module,
        head: str | None = None,
        *,
        kind: Kind = "sam",
        rho: float | None = None,
        last_epochs: int | None = None,
        ascent_share: float = 1.0,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}; got {kind!r}")
        if last_epochs is not None and last_epochs < 1:
            raise ValueError(f"last_epochs must be >= 1, or None for all; got {last_epochs}")
        if not 0.0 < ascent_share <= 1.0:
            raise ValueError(f"ascent_share is a share of the mini-batch and must be in (0, 1]; got {ascent_share}")
        if kind == "msam" and ascent_share < 1.0:
            raise ValueError(f"msam ascends along its momentum and has no pass for ascent_share {ascent_share}")
        check_loss_options(label_smoothing, class_weights)
        self.network = split(model, head)
        self.kind, self.rho = kind, DEFAULT_RHO[kind] if rho is None else rho
        self.last_epochs, self.ascent_share, self.label_smoothing = last_epochs, ascent_share, label_smoothing
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.class_weights: Tensor | None
        self._optimizer: PerturbingOptimizer | None = None

    @property
    def model(self) -> nn.Module:
        """The user's model itself."""
        return self.network.model

    def settings(self) -> dict[str, Any]:
        """The options that a run may not change when it resumes.

        Returns:
            Names and values.
        """
        return {name: getattr(self, name) for name in ("kind", "rho", "last_epochs", "ascent_share", "label_smoothing")}

    def build_optimizer(self, base: Callable[..., Optimizer], **options: Any) -> Optimizer:
        """Wrap a plain optimizer.

        Args:
            base: an optimizer class; ``"msam"`` needs one with momentum.
            **options: its options.

        Returns:
            The sharpness-aware optimizer over the trainable parameters.
        """
        parameters = list(self.trainable_parameters())
        if self.kind == "msam":
            return MSAM(parameters, base, self.rho, **options)
        makes: dict[Kind, Callable[..., PerturbingOptimizer]] = {"sam": SAM, "asam": ASAM, "sam-on": SAMON}
        self._optimizer = makes[self.kind](parameters, base, self.rho, model=self.model, **options)
        return self._optimizer

    def before_epoch(self, epoch: int, epochs: int, optimizer: Optimizer) -> None:
        """Switch the perturbation on for the last epochs; with radius 0 a step is the plain one, at its cost."""
        if self.last_epochs is not None:
            for group in optimizer.param_groups:
                group["rho"] = self.rho if epoch >= epochs - self.last_epochs else 0.0

    def forward(
        self,
        inputs: Inputs,
        targets: Tensor,
        reference_inputs: Inputs | None = None,
        reference_targets: Tensor | None = None,
    ) -> StepOutput:
        """Loss and logits of one pass; with an ``ascent_share``, an ascent is made of the first samples only."""
        if self.training and self.ascent_share < 1.0 and self._optimizer is not None and self._optimizer.will_ascend:
            count = math.ceil(self.ascent_share * batch_size(inputs))
            inputs, targets = first_samples(inputs, targets, count)
        return cross_entropy_step(self.network, inputs, targets, self.label_smoothing, self.class_weights)[0]
