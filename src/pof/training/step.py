"""One optimizer step over a window of mini-batches: passes, accumulation, scaling, clipping."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from pof._support import distributed
from pof._support.precision import AUTOCAST, Precision, autocast
from pof.methods import Method, StepOutput
from pof.optim import PerturbingOptimizer
from pof.training.stream import Micro


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
    ``precision="fp16"`` scales the loss.
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
        """Take one optimizer step; loss and metrics are those of the (first) pass."""
        result = self._passes(window)
        self.scaler.unscale_(self.optimizer)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(list(self.method.trainable_parameters()), self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.method.after_step()
        return result

    def _passes(self, window: list[Micro]) -> StepResult:
        """Compute the gradients, as often as the optimizer wants."""
        if not isinstance(self.optimizer, PerturbingOptimizer):
            return self._gradients(window)
        return self.optimizer.run_passes(lambda: self._gradients(window), self.method)

    def _gradients(self, window: list[Micro]) -> StepResult:
        self.optimizer.zero_grad(set_to_none=True)
        sizes = [micro.size for micro in window]
        total, processes = all_samples(sum(sizes), self.device)
        outputs = []
        for number, (micro, size) in enumerate(zip(window, sizes, strict=True)):
            with self._synchronised(last=number + 1 == len(window)):
                output = self._forward(micro)
                loss = weighted(output.loss, size * processes / total)
                torch.autograd.backward(self.scaler.scale(loss))
            outputs.append(output)
        return _mean(outputs, sizes)

    def _forward(self, micro: Micro) -> StepOutput:
        with autocast(self.device, self.autocast):
            output: StepOutput = self.module(micro.inputs, micro.targets, *(micro.reference or ()))
        return output

    def _synchronised(self, *, last: bool) -> AbstractContextManager[None]:
        if last or not isinstance(self.module, DistributedDataParallel):
            return nullcontext()
        return self.module.no_sync()


def weighted(loss: Tensor, weight: float) -> Tensor:
    """The loss of a mini-batch times its share of the step; times the number of processes, by which DDP divides."""
    return loss if weight == 1.0 else loss * weight


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
