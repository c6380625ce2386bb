"""Averages of the iterates, around any method: what is validated and delivered is the average.

SWA (Izmailov et al., UAI 2018), EMA, and LAWA (Kaddour, 2022).  An averaged network has no batch-norm statistics of
its own: they are estimated anew from the training set, samples weighted.  Averages are kept in float32 at least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pof._support.batches import Inputs, to_device
from pof._support.checks import whole_number
from pof._support.modules import copied, device_of, packed, put_buffers, unpacked
from pof._support.passes import in_second_pass
from pof._support.untold import Untold
from pof.combine.statistics import estimate_statistics
from pof.methods.base import Method, StepOutput, check_choice
from pof.perturbation.loss import Loss

Average = Literal["swa", "ema", "lawa"]


class Averaged(Method):
    """A method whose average is delivered: ``Averaged(PoF(model), "ema")``.

    Args:
        method: trains the model.
        average: ``"swa"``, mean of the networks at the ends of epochs; ``"ema"``, exponential moving average over
            steps; ``"lawa"``, mean of the networks at the ends of the last ``window`` epochs.
        decay: of the EMA, in [0, 1).
        start: share of the run before SWA begins to average, in [0, 1).
        window: epochs that LAWA averages, >= 1.

    Each run of :func:`pof.fit` that is not resumed begins a new average.

    Raises:
        ValueError: if an option is out of range.
    """

    def __init__(
        self, method: Method, average: Average, *, decay: float = 0.99, start: float = 0.0, window: int = 5
    ) -> None:
        super().__init__()
        check_choice("average", average, get_args(Average))
        whole_number("window", window, 1)
        if not 0.0 <= decay < 1.0 or not 0.0 <= start < 1.0:
            raise ValueError(f"decay and start must be in [0, 1); got decay={decay}, start={start}")
        self.method, self.average = method, average
        self.schedule_kind = "constant" if average == "swa" else method.schedule_kind
        self.decay, self.start, self.window = decay, start, window
        self.needs_reference, self.remedy, self.nesterov = method.needs_reference, method.remedy, method.nesterov
        method.release()  # no hooks on the copy
        self.averaged = copied(method.model).requires_grad_(False)
        method.attach()
        # Of parameters in half precision, in which they may come later: there an EMA would not move.
        self._wide: dict[str, Tensor] = {}
        self.estimates = True
        """Whether the average gets batch-norm statistics after each epoch; else whoever judges it estimates them."""
        self._count = 0
        self._recent: list[dict[str, Tensor]] = []
        # Whether it has moved since it got its buffers.
        self._moved = False
        self._untold = Untold(
            "the EMA moves after each step, and it is not told of them: call method.after_step() behind"
            " optimizer.step(), as pof.fit does; until then method.candidate() is the network as it is"
        )

    @property
    def model(self) -> nn.Module:
        """The user's model itself: the iterate, until the run ends."""
        return self.method.model

    def weight_of(self, targets: Tensor) -> Tensor:
        """As the inner method counts."""
        return self.method.weight_of(targets)

    def judged_by(self) -> Loss | None:
        """That of the inner method."""
        return self.method.judged_by()

    def penalty_weight_of(self, targets: Tensor) -> Tensor | None:
        """As the inner method counts."""
        return self.method.penalty_weight_of(targets)

    @property
    def head_name(self) -> str:
        """That of the inner method."""
        return self.method.head_name

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """Those of the inner method, which may have some beside the model's.

        Yields:
            Parameters that require a gradient.
        """
        yield from self.method.trainable_parameters()

    def build_optimizer(self, base: Callable[..., Optimizer], **options: Any) -> Optimizer:
        """Make the inner method's optimizer."""
        return self.method.build_optimizer(base, **options)

    def attach(self) -> None:
        """As the inner method; the average begins anew, from the network as it is now."""
        self.method.attach()
        self._count, self._recent, self._wide = 0, [], {}

    def release(self) -> None:
        """As the inner method."""
        self.method.release()

    def forward(
        self,
        inputs: Inputs,
        targets: Tensor,
        reference_inputs: Inputs | None = None,
        reference_targets: Tensor | None = None,
    ) -> StepOutput:
        """The output of the inner method, which may want the reference."""
        if self.training and self.average == "ema" and not in_second_pass(self.model):
            self._untold.noticed(self.model)
        output: StepOutput = self.method(inputs, targets, reference_inputs, reference_targets)
        return output

    def before_epoch(self, epoch: int, epochs: int, optimizer: Optimizer) -> None:
        """Tell the inner method."""
        self.method.before_epoch(epoch, epochs, optimizer)

    def after_step(self) -> None:
        """Tell the inner method, and move the EMA."""
        self._untold.told()
        self.method.after_step()
        if self.average == "ema":
            self._move(1 - self.decay)

    def by_epochs(self) -> str | None:
        """SWA's start, or what the inner method goes by."""
        return "start" if self.average == "swa" and self.start else self.method.by_epochs()

    def epoch_metrics(self) -> dict[str, float]:
        """Those of the inner method."""
        return self.method.epoch_metrics()

    def after_epoch(self, epoch: int, epochs: int, batches: Callable[[], Iterable[tuple[Inputs, Tensor]]]) -> None:
        """Take the network of this epoch into the average, and estimate its batch-norm statistics."""
        self.method.after_epoch(epoch, epochs, batches)
        if self.average == "swa" and epoch >= self.start * epochs:
            self._move(1 / (self._count + 1))
        if self.average == "lawa":
            now = {name: p.detach().clone() for name, p in self.model.named_parameters()}
            self._recent = [*self._recent, now][-self.window :]
            self._set_mean_of_recent()
        if self._count:
            self._follow()
            if self.estimates:
                estimate_statistics(self.candidate(), batches())

    @torch.no_grad()
    def candidate(self) -> nn.Module:
        """The average; the iterate as long as nothing has been averaged.

        Returns:
            The network, with the running statistics that :meth:`after_epoch` estimated, or if it has moved since those
            of the iterate.
        """
        if not self._count:
            return self.model
        if self._moved:
            self._follow()
        for name, parameter in self.averaged.named_parameters():
            if name in self._wide:
                parameter.copy_(self._wide[name])
        return self.averaged

    def _averages(self) -> dict[str, Tensor]:
        """What is averaged, by name: in float32 at least."""
        own = {name: p.detach() for name, p in self.averaged.named_parameters()}
        own = {name: p for name, p in own.items() if p.is_floating_point() or p.is_complex()}
        narrow = {name: p for name, p in own.items() if p.itemsize < 4}
        self._wide = {name: self._wide.get(name, p).to(p.device, torch.float32) for name, p in narrow.items()}
        return {**own, **self._wide}

    @torch.no_grad()
    def _move(self, share: float) -> None:
        """Move the average to the iterate by a share of the way; the first time all of it."""
        iterate, averages = dict(self.model.named_parameters()), self._averages()
        into = list(averages.values())
        towards = [iterate[name].detach().to(p.device, p.dtype) for name, p in averages.items()]
        if self._count:
            torch._foreach_lerp_(into, towards, share)
        else:
            torch._foreach_copy_(into, towards)
        self._count += 1
        self._moved = True

    @torch.no_grad()
    def _set_mean_of_recent(self) -> None:
        for name, average in self._averages().items():
            recent = torch.stack([weights[name].to(average.dtype) for weights in self._recent])
            # A mean of equal values is rounded, and a frozen head is to stay as it is.
            average.copy_(torch.where((recent == recent[0]).all(dim=0), recent[0], recent.mean(dim=0)))
        self._count = len(self._recent)

    def _follow(self) -> None:
        """What is not averaged, buffers and modes, is as in the iterate."""
        modules = dict(self.averaged.named_modules())
        device = device_of(self.averaged)
        for name, source in self.model.named_modules():
            if name in modules:
                put_buffers(modules[name], source._buffers, device)
                modules[name].training = source.training
        self._moved = False

    def get_extra_state(self) -> Tensor:
        """The networks that LAWA holds, the averages of what is in half precision, and how many were averaged."""
        own = {"recent": self._recent, "wide": self._wide, "count": self._count, "moved": self._moved}
        return packed(own)

    def set_extra_state(self, state: Any) -> None:
        """Take back what :meth:`get_extra_state` gave."""
        state = unpacked(state)
        device = device_of(self.method)
        self._recent, self._wide = to_device(state["recent"], device), to_device(state["wide"], device)
        self._count, self._moved = state["count"], state.get("moved", False)
