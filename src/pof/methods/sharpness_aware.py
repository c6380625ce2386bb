"""Training with SAM and its relatives: the plain loss, and an optimizer that wants it at a perturbed point.

SAM (Foret et al., ICLR 2021), ASAM (Kwon et al., 2021), SAM-ON (Mueller et al., NeurIPS 2023), MSAM (Becker et al.,
arXiv 2401.12033), LE-SAM (Wang et al., ICML 2026, arXiv 2605.10183), each from the start or for the last epochs only
(late-phase SAM, Zhou et al., ICLR 2025), and with the direction of the ascent from a part of the mini-batch (Bahri et
al., ACL 2022, section 4).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pof._support import distributed
from pof._support.batches import Inputs, first_samples, for_training, samples_of, unpack
from pof._support.checks import finite, gives_batches, whole_number
from pof._support.modules import device_of, frozen_statistics, in_training, packed, unpacked
from pof._support.random import preserved
from pof._support.untold import Untold
from pof.combine.statistics import estimate_statistics
from pof.head.split import split
from pof.methods.base import Method, StepOutput, check_choice
from pof.methods.calibration import Calibration
from pof.methods.loss import AskedLoss, chosen_loss, plain_step
from pof.optim import ASAM, MSAM, SAM, SAMON, PerturbingOptimizer
from pof.optim._equations import annealed
from pof.optim._matching import other_than
from pof.optim.rise import LevelKind

Kind = Literal["sam", "asam", "sam-on", "msam"]
# The radii that the papers recommend for networks like these.
DEFAULT_RHO: dict[Kind, float] = {"sam": 0.05, "asam": 0.5, "sam-on": 0.5, "msam": 0.3}
WRAPPERS: dict[Kind, type[SAM | ASAM | SAMON | MSAM]] = {"sam": SAM, "asam": ASAM, "sam-on": SAMON, "msam": MSAM}


class SharpnessAware(Method):
    """Training with a sharpness-aware optimizer; :meth:`build_optimizer` makes it.

    Args:
        model: any classifier; it is used as it is, in place.
        head: qualified name of the head; found by :func:`pof.find_head` if None.
        kind: ``"sam"``, ``"asam"``, ``"sam-on"`` or ``"msam"``.
        rho: radius of the perturbation, >= 0; None takes the one usual for ``kind``.
        budget: LE-SAM's sigma, in nats, >= 0, for ``"sam"``: by so much the linearised loss rises in every step, at
            most at the radius ``rho``; None: the radius is ``rho``.
        layers: ``"all"``, or ``"head"``: only the head's parameters are perturbed, for ``"sam"``.
        anneal: share of the run, at its end, over which the budget falls to 0 along half a cosine, epoch by epoch, in
            [0, 1].
        last_epochs: perturb in the last so many epochs only (late-phase SAM); None: in all.
        ascent_share: share of each mini-batch that the first pass, which gives the direction of the ascent, is made
            of, in (0, 1]; a step then costs 1 + ascent_share plain ones.  Not for ``"msam"``, which has no such pass.
        label_smoothing: of the cross-entropy, in [0, 1).
        class_weights: (C,) of the cross-entropy, or None.
        loss: ``"bce"`` (one logit, several labels), ``"mse"`` (regression), ``"ordinal"`` (ordered classes), or a
            function ``loss(outputs, targets)`` -> scalar mean or (N,); None is the cross-entropy.

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
        budget: float | None = None,
        layers: Literal["all", "head"] = "all",
        anneal: float = 1.0,
        last_epochs: int | None = None,
        ascent_share: float = 1.0,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        loss: AskedLoss = None,
    ) -> None:
        super().__init__()
        check_choice("kind", kind, get_args(Kind))
        check_choice("layers", layers, ("all", "head"))
        if layers == "head" and kind != "sam":
            raise ValueError(f"layers 'head' is for kind sam; {kind} perturbs what its paper says")
        if last_epochs is not None:
            whole_number("last_epochs", last_epochs, 1)
        if isinstance(rho, str) and rho == "auto":
            raise ValueError(
                "rho must be a number; for a radius from the data leave it out, and call method.calibrate(loader)"
            )
        if rho is not None:
            finite("rho", rho, 0)
        if not 0.0 < ascent_share <= 1.0:
            raise ValueError(f"ascent_share is a share of the mini-batch and must be in (0, 1]; got {ascent_share}")
        if kind == "msam" and ascent_share < 1.0:
            raise ValueError(f"msam ascends along its momentum and has no pass for ascent_share {ascent_share}")
        if budget is not None and (kind != "sam" or not 0.0 <= budget < math.inf or not 0.0 <= anneal <= 1.0):
            raise ValueError(
                "budget is a finite loss >= 0 for kind sam, and anneal a share in [0, 1]; got"
                f" budget={budget}, anneal={anneal} for {kind}"
            )
        self.loss = chosen_loss(loss, label_smoothing, class_weights)
        self.network = split(model, head, end=self.loss.end)
        self.kind, self.rho, self._given = kind, DEFAULT_RHO[kind] if rho is None else rho, rho is not None
        self.nesterov = kind != "msam"  # its authors: plain momentum
        self.budget, self.anneal, self.layers = budget, anneal, layers
        self.last_epochs, self.ascent_share = last_epochs, ascent_share
        self._optimizer: PerturbingOptimizer | None = None
        self._taken: PerturbingOptimizer | None = None
        self._untold = Untold(
            "no step was one of pof's sharpness-aware optimizers, and one that perturbs nothing takes steps of plain"
            " training: take the one that method.build_optimizer(torch.optim.SGD, lr=...) makes, whose step takes a"
            " closure",
            tells="rho",
        )
        self._calibrated = False
        self.shares: dict[str, float] = {}
        # How to take the radius from the data again, and after how many epochs.
        self._every: int | None = None
        self._as_before: dict[str, Any] = {}

    def settings(self) -> dict[str, Any]:
        """As those of any method; a radius that was calibrated is not compared."""
        ((name, own),) = super().settings().items()
        # One from the data is in the state of the optimizer, and may be computed with other last bits elsewhere.
        return {name: own | ({"rho": "from the data"} if self._calibrated else {})}

    def build_optimizer(self, base: Callable[..., Optimizer], **options: Any) -> Optimizer:
        """Wrap a plain optimizer.

        Args:
            base: an optimizer class, or a function of the parameters; ``"msam"`` needs one with momentum.
            **options: its options.

        Returns:
            The sharpness-aware optimizer over the trainable parameters.

        Raises:
            ValueError: if a function gives one of pof's that does not do what the options say.
        """
        if callable(base) and not isinstance(base, type):
            made = base(list(self.trainable_parameters()), **options)
            if isinstance(made, PerturbingOptimizer):
                self._take(made, new=True)
                return made
            base, options = lambda _: made, {}
        self._optimizer = self._around(base, **options)
        return self._optimizer

    def _around(self, base: Callable[..., Optimizer], **options: Any) -> PerturbingOptimizer:
        if self.kind == "msam":
            return MSAM(list(self.trainable_parameters()), base, self.rho, **options)
        if self.budget is not None:
            options["budget"] = self.budget
        if self.layers == "head":
            options["only"] = list(self.network.head.parameters())
        return WRAPPERS[self.kind](list(self.trainable_parameters()), base, self.rho, model=self.model, **options)

    def calibrate(
        self,
        batches: Iterable[Any],
        *,
        level: float = 0.15,
        level_kind: LevelKind = "level",
        every: int | None = None,
        num_batches: int = 4,
        accumulation: int = 1,
    ) -> float:
        """Take the radius from the data: the loss at the perturbed weights is to be a share of that of guessing.

        A radius in the units of the weights suits one network and not the next.  This one is the median over some
        mini-batches of the radius at which their loss has risen to ``level`` times log C, or with soft or smoothed
        targets of entropy H to H + ``level`` times (log C - H): ours, after the line search of PoF, and at the level of
        :class:`~pof.HeadAscent`.  As in a step, the perturbed pass draws other dropout masks than the ascent.  A
        network whose loss is above that already is one that does not fit its data: the radius is then 0, the steps are
        plain ones, and a warning says so.  As a ``"rise"`` the level counts from each mini-batch's own loss, and such a
        network gets a radius too.  A radius belongs to one size of the mini-batch.  The loss of guessing is that of the
        loss: log 2 per label of ``"bce"`` and ``"ordinal"``, the variance of the targets of ``"mse"``, that of outputs
        which are all 0 of a function.

        Call it before :meth:`build_optimizer`, with a network that is trained already.  It costs about ten training
        steps, with dropout eighty, once; weights, running statistics, modes and random state (the loader's own
        generators too) stay, gradients are cleared.

        Args:
            batches: of the training set, of the size and augmentation that will be trained with; each process its own.
            level: share of the loss of guessing, in (0, 1).
            level_kind: ``"level"`` or ``"rise"``.
            every: epochs after which :func:`pof.fit` takes the radius anew, from the network of then; None: never.
            num_batches: steps' worth of them to take.
            accumulation: mini-batches per optimizer step.

        Returns:
            rho, to two digits; the method has it from now on.  ``shares`` then says which share of ||eps||^2 each layer
            group has, by name; :func:`pof.fit` logs it with each epoch.

        Raises:
            ValueError: for ``"msam"``, which has no ascent; without mini-batches; for an option out of range; if the
                loss is not a number, or does not rise.
            RuntimeError: if the optimizer is there already.
        """
        check_choice("level_kind", level_kind, get_args(LevelKind))
        if every is not None:
            whole_number("every", every, 1)
        if not 0.0 < level < 1.0 or num_batches < 1 or accumulation < 1:
            raise ValueError(
                f"level must be in (0, 1), num_batches, accumulation >= 1; got {level}, {num_batches}, {accumulation}"
            )
        if self.kind == "msam":
            raise ValueError("msam ascends along its momentum, and no mini-batch has a radius for that: give rho")
        if self.budget is not None:
            raise ValueError(f"the budget {self.budget:g} sets the radius of every step: leave one of the two out")
        if self._optimizer is not None:
            raise RuntimeError("calibrate() comes before build_optimizer(): this optimizer has its rho already")
        gives_batches("batches", batches)
        self._every, self._as_before = every, {"level": level, "level_kind": level_kind, "num_batches": num_batches}
        self._as_before["accumulation"] = accumulation
        return self._take_radius(batches, **self._as_before)

    def _take_radius(
        self, batches: Iterable[Any], *, level: float, level_kind: LevelKind, num_batches: int, accumulation: int
    ) -> float:
        optimizer = self._around(torch.optim.SGD, lr=0.0)
        for group in optimizer.param_groups:
            group["rho"] = 1.0  # any: the search has its own
        device = device_of(self.model)
        with in_training(self.model), frozen_statistics(self.model), preserved(batches):
            taken = (for_training(unpack(batch), device) for batch in islice(batches, num_batches * accumulation))
            windows = iter(lambda: list(islice(taken, accumulation)), [])
            search = Calibration(self, self.loss, self._of_ascent, optimizer, level, level_kind)
            rho, self.shares = search.radius(windows)
        self.rho, self._calibrated = float(f"{rho:.2g}"), True
        if self.rho == 0:
            warnings.warn(
                f"rho is 0: the loss of this network is above {level:g} times that of guessing before any perturbation,"
                " so it does not fit these data, and every step will be one of plain training; give rho for others, or"
                " take the radius from a rise of the loss (level_kind)",
                stacklevel=3,
            )
        return self.rho

    def _of_ascent(self, inputs: Inputs, targets: Tensor) -> tuple[Inputs, Tensor]:
        """The part of a mini-batch that gives the direction; of two samples at least, for batch norms."""
        if self.ascent_share == 1.0:
            return inputs, targets
        return first_samples(inputs, targets, max(2, math.ceil(self.ascent_share * samples_of(targets))))

    def before_epoch(self, epoch: int, epochs: int, optimizer: Optimizer) -> None:
        """Switch the perturbation on for the last epochs; with radius 0 a step is the plain one, at its cost.

        Raises:
            ValueError: for a plain optimizer, with which nothing would be perturbed, and for one that does not do what
                the method's options say.
        """
        inner = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps
        if inner is not self._taken:
            self._take(inner, new=epoch == 0 and not getattr(inner, "goes_on", False))
        if self.last_epochs is not None:
            for group in optimizer.param_groups:
                group["rho"] = self.rho if epoch >= epochs - self.last_epochs else 0.0
        if self.budget is not None:
            for group in optimizer.param_groups:
                group["budget"] = annealed(self.budget, epoch, epochs, self.anneal)

    def _take(self, optimizer: Optimizer, *, new: bool = False) -> None:
        """Go on with an optimizer, if it does what the options say: somebody else may have made it."""
        if optimizer is not self._optimizer and (why := self._other_than_asked(optimizer, new)) is not None:
            raise ValueError(
                f"{type(optimizer).__name__} {why}: give the optimizer that method.build_optimizer(torch.optim.SGD,"
                " lr=...) makes"
            )
        groups = optimizer.param_groups
        for name, is_set in (("rho", self._sets_radius()), ("budget", self.budget is not None)):
            if is_set and any(group.get(name) != groups[0].get(name) for group in groups):
                raise ValueError(
                    f"{type(optimizer).__name__} has groups of several values of {name}, and these options set one for"
                    " all: give all groups the same, or leave out last_epochs, budget and calibrate(every=)"
                )
        self._optimizer = self._taken = cast(PerturbingOptimizer, optimizer)

    def _sets_radius(self) -> bool:
        return self.last_epochs is not None or self._every is not None

    def _other_than_asked(self, optimizer: Optimizer, new: bool) -> str | None:
        """Say in which way an optimizer does not do what the options say; an old one may follow a schedule."""
        # FSDP2 lets no parameter be known again.
        head = self.network.head if self.layers == "head" and not distributed.has_fsdp(self.model) else None
        rho = self.rho if new and (self._calibrated or self._given) and not self._sets_radius() else None
        return other_than(optimizer, self.kind, WRAPPERS[self.kind], head, self.budget, rho)

    def after_epoch(self, epoch: int, epochs: int, batches: Callable[[], Iterable[tuple[Inputs, Tensor]]]) -> None:
        """Take the radius anew where that is due.

        MSAM has no pass at the weights themselves: estimate their batch-norm statistics, which are evaluated.
        """
        if self._every is not None and (epoch + 1) % self._every == 0 and epoch + 1 < epochs:
            self._take_radius(batches(), **self._as_before)
            for group in self._optimizer.param_groups if self._optimizer is not None else ():
                group["rho"] = self.rho
        if self.kind == "msam" and self._optimizer is not None and self._optimizer.will_ascend:
            estimate_statistics(self.model, batches())

    def by_epochs(self) -> str | None:
        """The last epochs, and the end of a budget's annealing."""
        if self.last_epochs is not None:
            return "last_epochs"
        return "anneal" if self.budget and self.anneal else None

    def epoch_metrics(self) -> dict[str, float]:
        """The shares of a radius from the data."""
        return {f"share_{name}": share for name, share in self.shares.items()}

    def get_extra_state(self) -> Tensor:
        """The radius from the data, which may have been taken on the way, and its shares."""
        return packed({"rho": self.rho, "shares": self.shares} if self._calibrated else {})

    def set_extra_state(self, state: Any) -> None:
        """Take back what :meth:`get_extra_state` gave."""
        state = unpacked(state)
        self.rho, self.shares = state.get("rho", self.rho), state.get("shares", self.shares)
        self._calibrated = self._calibrated or "rho" in state

    def forward(
        self,
        inputs: Inputs,
        targets: Tensor,
        reference_inputs: Inputs | None = None,
        reference_targets: Tensor | None = None,
    ) -> StepOutput:
        """Loss and logits of one pass; with an ``ascent_share``, an ascent is made of the first samples only."""
        optimizer = self._optimizer
        if self.training:
            self._untold.noticed(self.model)
        if self.training and optimizer is not None and optimizer.will_ascend:
            inputs, targets = self._of_ascent(inputs, targets)
        out = plain_step(self.network, self.loss, inputs, targets)
        if optimizer is None:
            return out
        # LE-SAM's radius is not known before the ascent.
        name = "radius" if self.budget is None else "budget"
        value = optimizer.param_groups[0][name.replace("radius", "rho")]
        return replace(out, metrics={name: torch.full_like(out.loss.detach(), value)})
