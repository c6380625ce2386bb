"""Learning-rate schedules: the factor on the optimizer's learning rates as a function of the step."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pof._support.checks import whole_number

if TYPE_CHECKING:  # options and help texts need no torch
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule over the optimizer steps of a run.

    Args:
        kind: ``"constant"``, ``"step"`` (times ``decay`` at each milestone) or ``"cosine"`` (half a period, to 0).
        warmup_steps: steps of linear increase at the beginning.
        milestones: fractions of the run in (0, 1), for ``"step"``.
        decay: factor at each milestone, for ``"step"``.

    Raises:
        ValueError: if a value is out of range.
    """

    kind: Literal["constant", "step", "cosine"] = "cosine"
    warmup_steps: int = 0
    milestones: tuple[float, ...] = (0.5, 0.75)
    decay: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in {"constant", "step", "cosine"}:
            raise ValueError(f"schedule must be constant, step or cosine; got {self.kind!r}")
        whole_number("warmup_steps", self.warmup_steps, 0)
        if any(not 0.0 < m < 1.0 for m in self.milestones):
            raise ValueError(f"milestones are fractions of the run in (0, 1); got {self.milestones}")
        if not 0.0 < self.decay <= 1.0:
            raise ValueError(f"decay must be in (0, 1]; got {self.decay}")

    def factor(self, step: int, total: int) -> float:
        """Factor in [0, 1] on the learning rate at a step, from 0, of a run of ``total`` steps."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.kind == "cosine":
            span = max(1, total - self.warmup_steps)
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - self.warmup_steps) / span)))
        if self.kind == "step":
            return float(self.decay ** sum(step >= m * total for m in self.milestones))
        return 1.0

    def attach(self, optimizer: "Optimizer", total: int) -> "LambdaLR":
        """Attach the schedule, stepped once after every optimizer step, to an optimizer at its peak learning rates."""
        from torch.optim.lr_scheduler import LambdaLR

        if self.warmup_steps >= total:
            raise ValueError(
                f"warmup_steps {self.warmup_steps}: the run has {total} steps, all of them in the warm-up; give fewer"
            )
        return LambdaLR(optimizer, lambda step: self.factor(step, total))
