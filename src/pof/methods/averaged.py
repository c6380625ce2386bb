"""Averages of the iterates, around any method: what is validated and delivered is the average.

SWA (Izmailov et al., UAI 2018), EMA, and LAWA (Kaddour, 2022), on ``torch.optim.swa_utils``.  An averaged network
has no batch-norm statistics of its own: they are estimated anew from the training set, samples weighted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pof._support.batches import Inputs
from pof.combine.statistics import estimate_statistics
from pof.methods.base import Method, StepOutput, check_choice

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

    Raises:
        ValueError: if an option is out of range.
    """

    def __init__(
        self, method: Method, average: Average, *, decay: float = 0.99, start: float = 0.0, window: int = 5
    ) -> None:
        super().__init__()
        check_choice("average", average, get_args(Average))
        if not 0.0 <= decay < 1.0 or not 0.0 <= start < 1.0 or window < 1:
            raise ValueError(
                f"decay and start must be in [0, 1), window >= 1; got decay={decay}, start={start}, window={window}"
            )
        self.method, self.average = method, average
        self.decay, self.start, self.window = decay, start, window
        self.needs_reference, self.remedy = method.needs_reference, method.remedy
        multi = get_ema_multi_avg_fn(decay) if average == "ema" else None  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(method.model, multi_avg_fn=multi).requires_grad_(False)
        self._recent: list[dict[str, Tensor]] = []

    @property
    def model(self) -> nn.Module:
        """The user's model itself: the iterate, until the run ends."""
        return self.method.model

    @property
    def head_name(self) -> str:
        """That of the inner method."""
        return self.method.head_name

    def build_optimizer(self, base: Callable[..., Optimizer], **options: Any) -> Optimizer:
        """Make the inner method's optimizer."""
        return self.method.build_optimizer(base, **options)

    def forward(
        self,
        inputs: Inputs,
        targets: Tensor,
        reference_inputs: Inputs | None = None,
        reference_targets: Tensor | None = None,
    ) -> StepOutput:
        """The output of the inner method, which may want the reference."""
        output: StepOutput = self.method(inputs, targets, reference_inputs, reference_targets)
        return output

    def before_epoch(self, epoch: int, epochs: int, optimizer: Optimizer) -> None:
        """Tell the inner method."""
        self.method.before_epoch(epoch, epochs, optimizer)

    def after_step(self) -> None:
        """Tell the inner method, and move the EMA."""
        self.method.after_step()
        if self.average == "ema":
            self.averaged.update_parameters(self.model)

    def after_epoch(self, epoch: int, epochs: int, batches: Callable[[], Iterable[Inputs]]) -> None:
        """Take the network of this epoch into the average, and estimate its batch-norm statistics."""
        self.method.after_epoch(epoch, epochs, batches)
        if self.average == "swa" and epoch >= self.start * epochs:
            self.averaged.update_parameters(self.model)
        if self.average == "lawa":
            now = {name: p.detach().clone() for name, p in self.model.named_parameters()}
            self._recent = [*self._recent, now][-self.window :]
            self._set_mean_of_recent()
        if self._has_average():
            _copy_buffers(self.model, self.averaged.module)
            estimate_statistics(self.averaged.module, batches())

    def candidate(self) -> nn.Module:
        """The average; the iterate as long as nothing has been averaged."""
        module: nn.Module = self.averaged.module
        return module if self._has_average() else self.model

    def _has_average(self) -> bool:
        return int(self.averaged.n_averaged) > 0

    @torch.no_grad()
    def _set_mean_of_recent(self) -> None:
        for name, parameter in self.averaged.module.named_parameters():
            parameter.copy_(torch.stack([weights[name] for weights in self._recent]).mean(dim=0))
        self.averaged.n_averaged.fill_(len(self._recent))

    def get_extra_state(self) -> dict[str, Any]:
        """The networks that LAWA holds."""
        return {"recent": self._recent}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`get_extra_state` gave."""
        device = next(self.method.parameters()).device
        self._recent = [{name: p.to(device) for name, p in weights.items()} for weights in state["recent"]]


@torch.no_grad()
def _copy_buffers(source: nn.Module, target: nn.Module) -> None:
    """Buffers that are no running statistics are those of the iterate."""
    for (_, old), (_, new) in zip(target.named_buffers(), source.named_buffers(), strict=True):
        old.copy_(new)
