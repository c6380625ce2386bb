"""One optimizer step over a window of mini-batches: passes, accumulation, scaling, clipping."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from pof._support import distributed
from pof._support.modules import frozen_statistics
from pof.methods import Method, StepOutput
from pof.optim import PerturbingOptimizer
from pof.training.stream import Micro

Precision = Literal["fp32", "bf16", "fp16"]
AUTOCAST: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepResult:
    """Means over the samples of a step, on the device."""

    loss: Tensor
    samples: int
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Stepper:
    """Takes optimizer steps with a method.

    Gradients are those of the mean over all samples of the window and of all processes: a short mini-batch counts
    by its samples.  With SAM the second pass leaves running statistics alone, and its gradient is the one clipped.

    Args:
        method: on its device.
        optimizer: over the method's trainable parameters.
        precision: of autocast; ``"fp16"`` scales the loss.
        clip_norm: upper bound on the gradient's 2-norm, or None.
    """

    def __init__(
        self,
        method: Method,
        optimizer: Optimizer,
        precision: Precision = "fp32",
        clip_norm: float | None = None,
    ) -> None:
        self.method, self.optimizer, self.clip_norm = method, optimizer, clip_norm
        self.device = next(method.parameters()).device
        self.autocast = AUTOCAST[precision]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.module: nn.Module = method
        if distributed.active():
            devices = [self.device] if self.device.type == "cuda" else None
            self.module = DistributedDataParallel(method, device_ids=devices)

    def step(self, window: list[Micro]) -> StepResult:
        """Take one optimizer step.

        Returns:
            Mean loss and metrics of the (first) pass.
        """
        result = self._passes(window)
        self.scaler.unscale_(self.optimizer)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(list(self.method.trainable_parameters()), self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.method.after_step()
        return result

    def _passes(self, window: list[Micro]) -> StepResult:
        """Compute the gradients, as often as the optimizer wants; running statistics are those of the first pass."""
        if not isinstance(self.optimizer, PerturbingOptimizer):
            return self._gradients(window)
        passes: Iterator[AbstractContextManager[None]] = iter([nullcontext(), frozen_statistics(self.method)])

        def one() -> StepResult:
            with next(passes):
                return self._gradients(window)

        return self.optimizer.run_passes(one)

    def _gradients(self, window: list[Micro]) -> StepResult:
        self.optimizer.zero_grad(set_to_none=True)
        sizes = [micro.size for micro in window]
        total, processes = all_samples(sum(sizes), self.device)
        outputs = []
        for number, (micro, size) in enumerate(zip(window, sizes, strict=True)):
            with self._synchronised(last=number + 1 == len(window)):
                output = self._forward(micro)
                # DDP divides by the number of processes.
                weight = size * processes / total
                torch.autograd.backward(self.scaler.scale(output.loss if weight == 1.0 else output.loss * weight))
            outputs.append(output)
        return _mean(outputs, sizes)

    def _forward(self, micro: Micro) -> StepOutput:
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            output: StepOutput = self.module(micro.inputs, micro.targets, *(micro.reference or ()))
        return output

    def _synchronised(self, *, last: bool) -> AbstractContextManager[None]:
        if last or not isinstance(self.module, DistributedDataParallel):
            return nullcontext()
        return self.module.no_sync()


def all_samples(local: int, device: torch.device) -> tuple[int, int]:
    """Samples of the step over all processes, and the number of processes."""
    if not distributed.active():
        return local, 1
    total = torch.tensor([local], device=device)
    dist.all_reduce(total)
    return int(total), dist.get_world_size()


def _mean(outputs: list[StepOutput], sizes: list[int]) -> StepResult:
    # A process may have no sample in a window.
    weights = [size / max(sum(sizes), 1) for size in sizes]

    def mean(values: list[Tensor]) -> Tensor:
        terms = [v.detach().double() * w for v, w in zip(values, weights, strict=True)]
        return torch.stack(terms).sum()

    names = set(outputs[0].metrics).intersection(*(o.metrics for o in outputs))
    metrics = {name: mean([o.metrics[name] for o in outputs]) for name in sorted(names)}
    return StepResult(mean([o.loss for o in outputs]), sum(sizes), metrics)
