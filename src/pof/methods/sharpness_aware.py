"""Training with SAM and its relatives: the plain loss, and an optimizer that wants it at a perturbed point.

SAM (Foret et al., ICLR 2021), ASAM (Kwon et al., 2021), SAM-ON (Mueller et al., NeurIPS 2023), MSAM (Becker et al.,
arXiv 2401.12033), each from the start or for the last epochs only (late-phase SAM, Zhou et al., ICLR 2025), and with
the direction of the ascent from a part of the mini-batch (Bahri et al., ACL 2022, section 4).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from statistics import median
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pof import _distributed
from pof._batches import Inputs, batch_size, first_samples, to_device, unpack
from pof._modules import frozen_statistics, in_training
from pof._random import isolated
from pof.head import split
from pof.methods._method import Method, StepOutput, check_loss_options, cross_entropy_step, mean_loss
from pof.optim import ASAM, MSAM, SAM, SAMON, PerturbingOptimizer, rho_for_level

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
        if self.kind == "msam":
            return MSAM(list(self.trainable_parameters()), base, self.rho, **options)
        self._optimizer = self._around(base, **options)
        return self._optimizer

    def _around(self, base: Callable[..., Optimizer], **options: Any) -> PerturbingOptimizer:
        makes: dict[Kind, Callable[..., PerturbingOptimizer]] = {"sam": SAM, "asam": ASAM, "sam-on": SAMON}
        return makes[self.kind](list(self.trainable_parameters()), base, self.rho, model=self.model, **options)

    def calibrate(self, batches: Iterable[Any], *, level: float = 0.15, num_batches: int = 4) -> float:
        """Take the radius from the data: the loss at the perturbed weights is to be a share of that of guessing.

        A radius in the units of the weights suits one network and not the next.  This one is the median over some
        mini-batches of the radius at which their cross-entropy has risen to ``level`` times log C: ours, after the
        line search of PoF, and at the level of :class:`~pof.HeadAscent`.  A network whose loss is above that already
        is one that does not fit its data: the radius is then 0, the steps are plain ones, and a warning says so.

        Call it before :meth:`build_optimizer`, with a network that is trained already.  It costs about ten training
        steps, once; weights, running statistics, modes and random state stay, gradients are cleared.

        Args:
            batches: of the training set, of the size and augmentation that will be trained with; each process its own.
            level: share of the loss of guessing, in (0, 1).
            num_batches: how many of them to take.

        Returns:
            rho, to two digits; the method has it from now on.

        Raises:
            ValueError: for ``"msam"``, which has no ascent; without mini-batches; for an option out of range; if the
                loss is not a number, or does not rise.
            RuntimeError: if the optimizer is there already.
        """
        if not 0.0 < level < 1.0 or num_batches < 1:
            raise ValueError(f"level must be in (0, 1) and num_batches >= 1; got {level} and {num_batches}")
        if self.kind == "msam":
            raise ValueError("msam ascends along its momentum, and no mini-batch has a radius for that: give rho")
        if self._optimizer is not None:
            raise RuntimeError("calibrate() comes before build_optimizer(): this optimizer has its rho already")
        optimizer = self._around(torch.optim.SGD, lr=0.0)
        found: list[float] = []
        with in_training(self), frozen_statistics(self.model):
            for batch in islice(batches, num_batches):
                found.append(self._rho_of(batch, optimizer, level, found[-1] if found and found[-1] else 0.1))
        if not found:
            raise ValueError("calibrate() got no mini-batch")
        self.rho = float(f"{median(found):.2g}")
        if self.rho == 0:
            warnings.warn(
                f"rho is 0: the loss of this network is above {level:g} times that of guessing before any perturbation,"
                " so it does not fit these data, and every step will be one of plain training; give rho for others",
                stacklevel=2,
            )
        return self.rho

    def _rho_of(self, batch: Any, optimizer: PerturbingOptimizer, level: float, guess: float) -> float:
        device = next(self.model.parameters()).device
        inputs, targets = to_device(unpack(batch), device)

        def output() -> StepOutput:
            # The same dropout masks at every radius.
            with isolated(0, device):
                return cross_entropy_step(self.network, inputs, targets, self.label_smoothing, self.class_weights)[0]

        def loss() -> float:
            logits = output().logits
            mean = mean_loss(logits, targets, 0.0, self.class_weights)
            count = torch.full((1,), float(len(logits)), device=device)
            return _distributed.weighted_mean(mean.view(1, 1).float(), count)[0][0][0]

        optimizer.zero_grad()
        out = output()
        torch.autograd.backward(out.loss * len(out.logits))
        _distributed.add_up(p.grad for p in self.trainable_parameters() if p.grad is not None)
        rho = rho_for_level(optimizer, loss, level * math.log(out.logits.shape[1]), guess=guess)
        optimizer.zero_grad()
        return rho

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
        ascending = self._optimizer is not None and self._optimizer.will_ascend
        if self.training and self.ascent_share < 1.0 and ascending:
            count = math.ceil(self.ascent_share * batch_size(inputs))
            inputs, targets = first_samples(inputs, targets, count)
        out, _ = cross_entropy_step(self.network, inputs, targets, self.label_smoothing, self.class_weights)
        radius = self.rho if self._optimizer is None else self._optimizer.param_groups[0]["rho"]
        return replace(out, metrics={"radius": torch.full_like(out.loss.detach(), radius)})
