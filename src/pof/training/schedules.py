"""Learning-rate schedules: the factor on the optimizer's learning rates as a function of the step."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pof._support.checks import whole_number

if TYPE_CHECKING:  # options and help texts need no torch
    from torch.optim import Optimizer


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

    def attach(self, optimizer: "Optimizer", total: int) -> "Rates":
        """Attach the schedule, stepped once after every optimizer step, to an optimizer at its peak learning rates."""
        return Rates(self, optimizer, total)


class Rates:
    """The learning rates of an optimizer on a schedule: torch's LambdaLR without its bookkeeping, 0.1 ms a step."""

    def __init__(self, schedule: Schedule, optimizer: "Optimizer", total: int) -> None:
        self.schedule, self.optimizer, self.total = schedule, optimizer, total
        self.peaks = [float(group.setdefault("initial_lr", float(group["lr"]))) for group in optimizer.param_groups]
        self.steps = -1
        self.step()

    def step(self) -> None:
        """Set the rates of the next optimizer step."""
        self.steps += 1
        factor = self.schedule.factor(self.steps, self.total)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            if hasattr(group["lr"], "fill_"):  # a tensor, of a compiled optimizer
                group["lr"].fill_(peak * factor)
            else:
                group["lr"] = peak * factor

    def state_dict(self) -> dict[str, Any]:
        """Numbers, named as in LambdaLR."""
        return {"base_lrs": self.peaks, "last_epoch": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave; the rates themselves are in the optimizer's state."""
        self.peaks, self.steps = state["base_lrs"], state["last_epoch"]
