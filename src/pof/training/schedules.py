"""Learning-rate schedules: the factor on the optimizer's learning rates as a function of the step."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pof._support.checks import whole_number

if TYPE_CHECKING:  # options and help texts need no torch
    from torch.optim import Optimizer


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule over the optimizer steps of a run.

    Args:
        kind: ``"constant"``, ``"step"`` (times ``decay`` at each milestone), ``"cosine"`` (half a period, to 0) or
            ``"auto"``: the method's own, which is the cosine but for SWA (constant) and the command line's ``rewarm``.
        warmup_steps: steps of linear increase at the beginning.
        warmup: the same as a share of the run, in [0, 1).
        milestones: fractions of the run in (0, 1), for ``"step"``.
        decay: factor at each milestone, for ``"step"``.

    Raises:
        ValueError: if a value is out of range.
    """

    kind: Literal["auto", "constant", "step", "cosine"] = "auto"
    warmup_steps: int = 0
    warmup: float = 0.0
    milestones: tuple[float, ...] = (0.5, 0.75)
    decay: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in {"auto", "constant", "step", "cosine"}:
            raise ValueError(f"schedule must be auto, constant, step or cosine; got {self.kind!r}")
        whole_number("warmup_steps", self.warmup_steps, 0)
        if not 0.0 <= self.warmup < 1.0 or (self.warmup and self.warmup_steps):
            raise ValueError(
                f"warmup is a share of the run in [0, 1), instead of warmup_steps; got {self.warmup} and"
                f" {self.warmup_steps} steps"
            )
        if any(not 0.0 < m < 1.0 for m in self.milestones):
            raise ValueError(f"milestones are fractions of the run in (0, 1); got {self.milestones}")
        if not 0.0 < self.decay <= 1.0:
            raise ValueError(f"decay must be in (0, 1]; got {self.decay}")

    def settled(self, own: "Schedule") -> "Schedule":
        """Decide what ``"auto"`` is for a method whose own schedule is ``own``.

        Raises:
            ValueError: for a cosine where the method averages its iterates at a constant rate.
        """
        if self.kind == "auto":
            asked = bool(self.warmup or self.warmup_steps)
            return replace(self, kind=own.kind, warmup=self.warmup if asked else own.warmup)
        if self.kind == "cosine" and own.kind == "constant":
            raise ValueError(
                "swa with a cosine schedule: the rate ends at 0, where all iterates are alike, and so is their mean;"
                " SWA averages at a constant rate (Izmailov et al., 2018): leave the schedule out, or give constant"
            )
        return self

    def factor(self, step: int, total: int) -> float:
        """Factor in [0, 1] on the learning rate at a step, from 0, of a run of ``total`` steps."""
        rising = self.warmup_steps or round(self.warmup * total)
        if step < rising:
            return (step + 1) / (rising + 1)
        if self.kind in {"auto", "cosine"}:
            span = max(1, total - rising)
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - rising) / span)))
        if self.kind == "step":
            return float(self.decay ** sum(step >= m * total for m in self.milestones))
        return 1.0

    def attach(self, optimizer: "Optimizer", total: int) -> "Rates":
        """Attach the schedule, stepped once after every optimizer step, to an optimizer at its peak learning rates."""
        if self.warmup_steps >= total:
            raise ValueError(
                f"warmup_steps {self.warmup_steps}: the run has {total} steps, all of them in the warm-up; give fewer"
            )
        return Rates(self, optimizer, total)


class Rates:
    """The learning rates of an optimizer on a schedule: torch's LambdaLR without its bookkeeping, 0.1 ms a step."""

    def __init__(self, schedule: Schedule, optimizer: "Optimizer", total: int) -> None:
        self.schedule, self.optimizer, self.total = schedule, optimizer, total
        self.peaks = [float(group["lr"]) for group in optimizer.param_groups]
        self.steps = -1
        self.step()

    def step(self) -> None:
        """Set the rates of the next optimizer step."""
        self.steps += 1
        self._set(self.schedule.factor(self.steps, self.total))

    def release(self) -> None:
        """Leave the optimizer at the rates that it came with: they are those of its next run, unless it gets others."""
        self._set(1.0)

    def _set(self, factor: float) -> None:
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
