"""One optimizer step over a window of mini-batches: passes, accumulation, scaling, clipping."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

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

TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class StepResult:
    """Means over a step, on the device."""

    loss: Tensor
    weight: Tensor
    """What the step counts in the mean of an epoch, scalar of float64: the weights of its mini-batches."""
    samples: int
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Stepper:
    """Takes optimizer steps with a method.

    Gradients are those of the mean over all samples of the window and of all processes: a mini-batch counts as
    ``method.weight_of`` says, by its samples or class weights.  With SAM the second pass leaves running statistics
    alone, and its gradient is the one clipped.  ``precision="fp16"`` scales the loss.
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
        if precision == "fp16" and any(p.dtype == torch.float16 for p in method.trainable_parameters()):
            raise ValueError(
                "precision='fp16' casts float32 weights for each pass, and these are float16 themselves: use"
                " model.float(), or precision='fp32', which leaves the dtype as it is"
            )
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
            # Of what is trained: gradients outside of the optimizer are neither cleared nor unscaled.
            trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(trained, self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.method.after_step()
        return result

    def optimizer_mode(self, *, training: bool) -> None:
        """Tell optimizers that train other weights than those to be evaluated (schedule-free)."""
        for optimizer in (self.optimizer, getattr(self.optimizer, "base_optimizer", None)):
            switch = getattr(optimizer, "train" if training else "eval", None)
            if callable(switch):
                switch()

    def _passes(self, window: list[Micro]) -> StepResult:
        """Compute the gradients, as often as the optimizer wants."""
        if not isinstance(self.optimizer, PerturbingOptimizer):
            return self._gradients(window)
        if self.scaler.is_enabled():
            self.optimizer.loss_scale = self.scaler.get_scale()
        result = self.optimizer.run_passes(lambda: self._gradients(window), self.method)
        if "budget" not in result.metrics:
            return result
        # LE-SAM's radius is known after the pass whose metrics count.
        radius = self.optimizer.radius if self.optimizer.radius is not None else torch.zeros_like(result.loss)
        return replace(result, metrics=result.metrics | {"radius": radius.to(result.loss)})

    def _gradients(self, window: list[Micro]) -> StepResult:
        self.optimizer.zero_grad(set_to_none=True)
        weights = [self.method.weight_of(micro.targets) for micro in window]
        shares = shares_of(weights)
        counts = [self.method.penalty_weight_of(micro.targets) for micro in window]
        known = [count for count in counts if count is not None]
        own = shares_of(known) if known else [None] * len(window)
        outputs = []
        for number, (micro, share, of_penalty) in enumerate(zip(window, shares, own, strict=True)):
            with self._synchronised(last=number + 1 == len(window)):
                output = self._forward(micro)
                loss = weighted(output.loss, share)
                if output.penalty is not None and share is not None and of_penalty is not None:
                    loss = loss + weighted(output.penalty, of_penalty - share)
                torch.autograd.backward(self.scaler.scale(loss))
            outputs.append(output)
        return _mean(outputs, weights, sum(micro.size for micro in window))

    def _forward(self, micro: Micro) -> StepOutput:
        with autocast(self.device, self.autocast):
            output: StepOutput = self.module(micro.inputs, micro.targets, *(micro.reference or ()))
        return output

    def _synchronised(self, *, last: bool) -> AbstractContextManager[None]:
        if last or not isinstance(self.module, DistributedDataParallel):
            return nullcontext()
        return self.module.no_sync()


def weighted(loss: Tensor, share: Tensor | None) -> Tensor:
    """The loss of a mini-batch times its share of the step; None is all of it."""
    return loss if share is None else loss * share.to(loss.dtype)


def shares_of(weights: list[Tensor]) -> list[Tensor] | list[None]:
    """The shares of mini-batches in a step over all processes; times the number of processes, by which DDP divides."""
    if len(weights) == 1 and not distributed.active():
        return [None]
    total, processes = over_processes(torch.stack(weights).sum())
    return [weight * processes / total.clamp_min(TINY) for weight in weights]


def over_processes(weight: Tensor) -> tuple[Tensor, int]:
    """The sum of a weight over all processes, and the number of processes."""
    if not distributed.active():
        return weight, 1
    total = weight.clone()
    dist.all_reduce(total)
    return total, dist.get_world_size()


def _mean(outputs: list[StepOutput], counts: list[Tensor], samples: int) -> StepResult:
    if len(outputs) == 1:
        only = {name: value.detach() for name, value in sorted(outputs[0].metrics.items())}
        return StepResult(outputs[0].loss.detach(), counts[0], samples, only)
    # A process may have no sample in a window, or none that counts.
    weights = torch.stack(counts)
    shares = weights / weights.sum().clamp_min(TINY)

    def mean(values: list[Tensor]) -> Tensor:
        return (torch.stack([v.detach().double() for v in values]) * shares).sum()

    names = set(outputs[0].metrics).intersection(*(o.metrics for o in outputs))
    metrics = {name: mean([o.metrics[name] for o in outputs]) for name in sorted(names)}
    return StepResult(mean([o.loss for o in outputs]), weights.sum(), samples, metrics)


def read_results(results: list[StepResult]) -> tuple[list[list[float]], list[float]]:
    """Means and weights of steps over the processes, as numbers: one host synchronisation for all of them."""
    values, weights = [[r.loss, *r.metrics.values()] for r in results], [r.weight for r in results]
    if weights[0].device.type == "cpu" and not distributed.active():
        return [[float(each) for each in row] for row in values], [float(each) for each in weights]
    own = torch.stack([torch.stack([each.double() for each in row]) for row in values])
    return distributed.weighted_mean(own, torch.stack(weights))


def in_words(error: Exception, step: int, samples: int, unreached: Sequence[str]) -> str | None:
    """Say what an error of torch means whose cause is known; ``unreached`` are parameters without a gradient."""
    if "Expected more than 1 value per channel" in str(error):
        return (
            f"step {step} has a mini-batch of {samples} sample, too few for batch norm: give the loader drop_last=True,"
            " or freeze the norms with eval()"
        )
    if "Expected to have finished reduction in the prior iteration" in str(error):
        name = next(iter(unreached), "a parameter")
        return (
            f"step {step}: the loss does not reach {name!r} (an auxiliary head?), for whose gradient the processes"
            " would wait: freeze it with requires_grad_(False)"
        )
    return None
