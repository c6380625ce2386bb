"""Training with SAM and its relatives: the plain loss, and an optimizer that wants it at a perturbed point.

SAM (Foret et al., ICLR 2021), ASAM (Kwon et al., 2021), SAM-ON (Mueller et al., NeurIPS 2023), MSAM (Becker et al.,
arXiv 2401.12033), each from the start or for the last epochs only (late-phase SAM, Zhou et al., ICLR 2025), and with
the direction of the ascent from a part of the mini-batch (Bahri et al., ACL 2022, section 4).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice, product
from statistics import median
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pof._support import distributed
from pof._support.batches import Inputs, first_samples, to_device, unpack
from pof._support.checks import whole_number
from pof._support.modules import frozen_statistics, in_training
from pof._support.random import isolated, preserved
from pof.combine.statistics import estimate_statistics
from pof.head.split import split
from pof.methods.base import Method, StepOutput, check_choice
from pof.methods.loss import CrossEntropy, plain_step
from pof.optim import ASAM, MSAM, SAM, SAMON, PerturbingOptimizer, rho_for_level

Window = list[tuple[Inputs, Tensor]]
Kind = Literal["sam", "asam", "sam-on", "msam"]
# The radii that the papers recommend for networks like these.
DEFAULT_RHO: dict[Kind, float] = {"sam": 0.05, "asam": 0.5, "sam-on": 0.5, "msam": 0.3}
# Of a network with dropout: steps with each mini-batch of the calibration, and the factor between radii that are tried.
DRAWS, APART = 8, 1.6


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
        check_choice("kind", kind, get_args(Kind))
        if last_epochs is not None:
            whole_number("last_epochs", last_epochs, 1)
        if not 0.0 < ascent_share <= 1.0:
            raise ValueError(f"ascent_share is a share of the mini-batch and must be in (0, 1]; got {ascent_share}")
        if kind == "msam" and ascent_share < 1.0:
            raise ValueError(f"msam ascends along its momentum and has no pass for ascent_share {ascent_share}")
        self.loss: CrossEntropy = CrossEntropy(label_smoothing, class_weights)
        self.network = split(model, head)
        self.kind, self.rho = kind, DEFAULT_RHO[kind] if rho is None else rho
        self.last_epochs, self.ascent_share = last_epochs, ascent_share
        self._optimizer: PerturbingOptimizer | None = None
        self._calibrated = False

    def settings(self) -> dict[str, Any]:
        """As those of any method; a radius that was calibrated is not compared."""
        ((name, own),) = super().settings().items()
        # One from the data is in the state of the optimizer, and may be computed with other last bits elsewhere.
        return {name: own | ({"rho": "from the data"} if self._calibrated else {})}

    def build_optimizer(self, base: Callable[..., Optimizer], **options: Any) -> Optimizer:
        """Wrap a plain optimizer.

        Args:
            base: an optimizer class; ``"msam"`` needs one with momentum.
            **options: its options.

        Returns:
            The sharpness-aware optimizer over the trainable parameters.
        """
        self._optimizer = self._around(base, **options)
        return self._optimizer

    def _around(self, base: Callable[..., Optimizer], **options: Any) -> PerturbingOptimizer:
        if self.kind == "msam":
            return MSAM(list(self.trainable_parameters()), base, self.rho, **options)
        makes: dict[Kind, Callable[..., PerturbingOptimizer]] = {"sam": SAM, "asam": ASAM, "sam-on": SAMON}
        return makes[self.kind](list(self.trainable_parameters()), base, self.rho, model=self.model, **options)

    def calibrate(
        self, batches: Iterable[Any], *, level: float = 0.15, num_batches: int = 4, accumulation: int = 1
    ) -> float:
        """Take the radius from the data: the loss at the perturbed weights is to be a share of that of guessing.

        A radius in the units of the weights suits one network and not the next.  This one is the median over some
        mini-batches of the radius at which their loss has risen to ``level`` times log C, or with soft or smoothed
        targets of entropy H to H + ``level`` times (log C - H): ours, after the line search of PoF, and at the level of
        :class:`~pof.HeadAscent`.  As in a step, the perturbed pass draws other dropout masks than the ascent.  A
        network whose loss is above that already is one that does not fit its data: the radius is then 0, the steps are
        plain ones, and a warning says so.

        Call it before :meth:`build_optimizer`, with a network that is trained already.  It costs about ten training
        steps, with dropout eighty, once; weights, running statistics, modes and random state (the loader's own
        generators too) stay, gradients are cleared.

        Args:
            batches: of the training set, of the size and augmentation that will be trained with; each process its own.
            level: share of the loss of guessing, in (0, 1).
            num_batches: steps' worth of them to take.
            accumulation: mini-batches per optimizer step.

        Returns:
            rho, to two digits; the method has it from now on.

        Raises:
            ValueError: for ``"msam"``, which has no ascent; without mini-batches; for an option out of range; if the
                loss is not a number, or does not rise.
            RuntimeError: if the optimizer is there already.
        """
        if not 0.0 < level < 1.0 or num_batches < 1 or accumulation < 1:
            raise ValueError(
                "level must be in (0, 1), num_batches and accumulation >= 1; got"
                f" {level}, {num_batches} and {accumulation}"
            )
        if self.kind == "msam":
            raise ValueError("msam ascends along its momentum, and no mini-batch has a radius for that: give rho")
        if self._optimizer is not None:
            raise RuntimeError("calibrate() comes before build_optimizer(): this optimizer has its rho already")
        optimizer = self._around(torch.optim.SGD, lr=0.0)
        device = next(self.model.parameters()).device
        with in_training(self.model), frozen_statistics(self.model), preserved(batches):
            taken = (to_device(unpack(batch), device) for batch in islice(batches, num_batches * accumulation))
            windows = iter(lambda: list(islice(taken, accumulation)), [])
            counted = [window for window in windows if any(distributed.gather_objects(self._counts(window)))]
            if not counted:
                raise ValueError("calibrate() got no mini-batch")
            try:
                rho = self._rho_for(counted, optimizer, level)
            finally:
                optimizer.zero_grad()
        self.rho, self._calibrated = float(f"{rho:.2g}"), True
        if self.rho == 0:
            warnings.warn(
                f"rho is 0: the loss of this network is above {level:g} times that of guessing before any perturbation,"
                " so it does not fit these data, and every step will be one of plain training; give rho for others",
                stacklevel=2,
            )
        return self.rho

    def _counts(self, window: Window) -> bool:
        return any(float(self.weight_of(targets)) > 0 for _, targets in window)

    def _rho_for(self, windows: list[Window], optimizer: PerturbingOptimizer, level: float) -> float:
        """The median radius of some steps; of a network that draws masks, where their mean loss is at the level."""
        found: list[float] = []
        for window in windows:
            wanted = self._ascent(window, optimizer, level, seed=0)
            guess = found[-1] if found and found[-1] else 0.1
            found.append(rho_for_level(optimizer, partial(self._loss, window, seed=1), wanted, guess=guess))
        rho = median(found)
        return self._of_mean(windows, optimizer, level, rho) if rho and self._draws_masks(windows[0]) else rho

    def _of_mean(self, windows: list[Window], optimizer: PerturbingOptimizer, level: float, rho: float) -> float:
        """The radius near ``rho`` at which the mean loss of steps is at the level; single draws scatter too much."""
        radii, wanted, losses = (rho / APART, rho, rho * APART), 0.0, [0.0, 0.0, 0.0]
        for window, draw in product(windows, range(1, 1 + DRAWS)):
            wanted += self._ascent(window, optimizer, level, seed=2 * draw)
            for number, radius in enumerate(radii):
                for group in optimizer.param_groups:
                    group["rho"] = radius
                with optimizer.perturbed(), torch.no_grad():
                    losses[number] += self._loss(window, seed=2 * draw + 1)
        # On the line through two of the three, in logarithms.
        pair = losses[:2] if losses[1] > wanted else losses[1:]
        slope = math.log(max(pair[1] / pair[0], 1.1))
        share = math.log(wanted / pair[0]) / slope
        factor: float = APART ** min(max(share, -1.0), 2.0)
        return factor * (radii[0] if losses[1] > wanted else radii[1])

    def _ascent(self, window: Window, optimizer: PerturbingOptimizer, level: float, seed: int) -> float:
        """The gradients of a step's first pass, of the part that ascends; gives the level of all of it, in nats."""
        optimizer.zero_grad()
        levels = []
        for inputs, targets in window:
            part = self._of_ascent(inputs, targets)
            out = self._drawn(seed, *part)
            torch.autograd.backward(out.loss * self.weight_of(part[1]).to(out.loss.dtype))
            levels.append(self.loss.level(level, targets, out.logits))
        distributed.add_up(p.grad for p in self.trainable_parameters() if p.grad is not None)
        return self._mean(window, levels)

    def _loss(self, window: Window, seed: int) -> float:
        return self._mean(window, [self._drawn(seed, *batch).loss for batch in window])

    @torch.no_grad()
    def _draws_masks(self, window: Window) -> bool:
        """Whether the network is another one in each pass, as with dropout."""
        one, other = (self._drawn(seed, *self._of_ascent(*window[0])).logits for seed in (0, 1))
        return any(distributed.gather_objects(not torch.equal(one, other)))

    def _drawn(self, seed: int, inputs: Inputs, targets: Tensor) -> StepOutput:
        """A pass with the dropout masks of a seed."""
        with isolated(seed, next(self.model.parameters()).device):
            return plain_step(self.network, self.loss, inputs, targets)[0]

    def _mean(self, window: Window, values: Sequence[Tensor | float]) -> float:
        """The mean of a step, over all processes, of one value for each mini-batch."""
        weights = [float(self.weight_of(targets)) for _, targets in window]
        own = sum(weight * float(value) for weight, value in zip(weights, values, strict=True) if weight)
        device = next(self.model.parameters()).device
        mean = torch.tensor([[own / (sum(weights) or 1.0)]], device=device)
        return distributed.weighted_mean(mean, torch.tensor([sum(weights)], device=device))[0][0][0]

    def _of_ascent(self, inputs: Inputs, targets: Tensor) -> tuple[Inputs, Tensor]:
        """The part of a mini-batch that gives the direction; of two samples at least, for batch norms."""
        if self.ascent_share == 1.0:
            return inputs, targets
        return first_samples(inputs, targets, max(2, math.ceil(self.ascent_share * len(targets))))

    def before_epoch(self, epoch: int, epochs: int, optimizer: Optimizer) -> None:
        """Switch the perturbation on for the last epochs; with radius 0 a step is the plain one, at its cost.

        Raises:
            ValueError: for a plain optimizer, with which nothing would be perturbed.
        """
        inner = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps
        if not isinstance(inner, PerturbingOptimizer):
            raise ValueError(
                f"{type(inner).__name__} perturbs nothing: give the optimizer that"
                " method.build_optimizer(torch.optim.SGD, lr=...) makes"
            )
        self._optimizer = inner
        if self.last_epochs is not None:
            for group in optimizer.param_groups:
                group["rho"] = self.rho if epoch >= epochs - self.last_epochs else 0.0

    def after_epoch(self, epoch: int, epochs: int, batches: Callable[[], Iterable[Inputs]]) -> None:
        """MSAM has no pass at the weights themselves: estimate their batch-norm statistics, which are evaluated."""
        if self.kind == "msam" and self._optimizer is not None and self._optimizer.will_ascend:
            estimate_statistics(self.model, batches())

    def forward(
        self,
        inputs: Inputs,
        targets: Tensor,
        reference_inputs: Inputs | None = None,
        reference_targets: Tensor | None = None,
    ) -> StepOutput:
        """Loss and logits of one pass; with an ``ascent_share``, an ascent is made of the first samples only."""
        optimizer = self._optimizer
        if self.training and optimizer is not None and optimizer.will_ascend:
            inputs, targets = self._of_ascent(inputs, targets)
        out, _ = plain_step(self.network, self.loss, inputs, targets)
        if optimizer is None:
            return out
        radius = torch.full_like(out.loss.detach(), optimizer.param_groups[0]["rho"])
        return replace(out, metrics={"radius": radius})
