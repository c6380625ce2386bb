"""One optimizer step over a window of mini-batches: passes, accumulation, scaling, clipping."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from pof._support import distributed
from pof._support.modules import device_of
from pof._support.precision import AUTOCAST, Precision, autocast, widest
from pof.methods import Method, StepOutput
from pof.optim import PerturbingOptimizer
from pof.perturbation.tasks import Custom
from pof.training.stream import Micro

TINY = torch.finfo(torch.float32).tiny  # of float64 it is 0 on a device that has none
_NOTHING: AbstractContextManager[None] = nullcontext()


@dataclass(frozen=True)
class StepResult:
    """Means over a step, on the device."""

    means: dict[str, Tensor]
    """``loss``, and behind it the metrics in the order of their names."""
    weight: Tensor
    """What the step counts in the mean of an epoch, scalar of float64: the weights of its mini-batches."""
    samples: int


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
        self.device = device_of(method)
        self.autocast = AUTOCAST[precision]
        self._perturbing = optimizer if isinstance(optimizer, PerturbingOptimizer) else None
        if precision == "fp16" and any(p.dtype == torch.float16 for p in method.trainable_parameters()):
            raise ValueError(
                "precision='fp16' casts float32 weights for each pass, and these are float16 themselves: use"
                " model.float(), or precision='fp32', which leaves the dtype as it is"
            )
        self._scales = precision == "fp16"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self._scales)
        self.module: nn.Module = method
        if distributed.active():
            devices = [self.device] if self.device.type == "cuda" else None
            self.module = DistributedDataParallel(method, device_ids=devices)

    def step(self, window: list[Micro]) -> StepResult:
        """Take one optimizer step; loss and metrics are those of the (first) pass."""
        result = self._passes(window)
        if self._scales:
            self.scaler.unscale_(self.optimizer)
        if self.clip_norm is not None:
            # Of what is trained: gradients outside of the optimizer are neither cleared nor unscaled.
            trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(trained, self.clip_norm)
        if self._scales:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.method.after_step()
        return result

    def optimizer_mode(self, *, training: bool) -> None:
        """Tell optimizers that train other weights than those to be evaluated (schedule-free)."""
        switch = getattr(self.optimizer, "train" if training else "eval", None)
        if callable(switch):
            switch()

    def _passes(self, window: list[Micro]) -> StepResult:
        """Compute the gradients, as often as the optimizer wants."""
        optimizer = self._perturbing
        if optimizer is None:
            return self._gradients(window)
        if self._scales:
            optimizer.loss_scale = self.scaler.get_scale()
        result = optimizer.run_passes(lambda: self._gradients(window), self.method)
        if "budget" not in result.means:
            return result
        # LE-SAM's radius is known after the pass whose metrics count.
        loss = result.means["loss"]
        radius = optimizer.radius if optimizer.radius is not None else torch.zeros_like(loss)
        return replace(result, means=result.means | {"radius": radius.to(loss)})

    def _gradients(self, window: list[Micro]) -> StepResult:
        self._clear()
        weights = [self.method.weight_of(micro.targets) for micro in window]
        outputs = []
        for number, (micro, share) in enumerate(zip(window, self._shares(window, weights), strict=True), 1):
            with self._synchronised(last=number == len(window)):
                with autocast(self.device, self.autocast):
                    output: StepOutput = self.module(micro.inputs, micro.targets, *(micro.reference or ()))
                if share is not None:
                    warn_of_other_mean(self.method, output, micro.targets)
                loss = output.loss if share is None else share_of(output, *share)
                torch.autograd.backward(self.scaler.scale(loss) if self._scales else loss)
            outputs.append(output)
        return _mean(outputs, weights, sum([micro.size for micro in window]))

    def _clear(self) -> None:
        """Clear the gradients; torch's own ``zero_grad`` spends more time on its record for profilers than on that."""
        if getattr(self.optimizer.zero_grad, "__func__", None) is not Optimizer.zero_grad:
            self.optimizer.zero_grad(set_to_none=True)
            return
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _shares(self, window: list[Micro], weights: list[Tensor]) -> list[tuple[Tensor, Tensor | None]] | list[None]:
        """The share of each mini-batch in the step, and of its penalty where that is another one; None is all."""
        if len(window) == 1 and not isinstance(self.module, DistributedDataParallel):
            return [None]
        counts = [self.method.penalty_weight_of(micro.targets) for micro in window]
        known = [count for count in counts if count is not None]
        return list(zip(shares_of(weights), shares_of(known) if known else [None] * len(window), strict=True))

    def _synchronised(self, *, last: bool) -> AbstractContextManager[None]:
        if last or not isinstance(self.module, DistributedDataParallel):
            return _NOTHING
        return self.module.no_sync()


def warn_of_other_mean(method: Method, output: StepOutput, targets: Any) -> None:
    """Warn, once, of a loss that does not add up where a step has several mini-batches."""
    loss = method.judged_by()
    if isinstance(loss, Custom):
        loss.warn_of_other_mean(output.logits, targets)


def weighted(loss: Tensor, share: Tensor) -> Tensor:
    """The loss of a mini-batch times its share of the step."""
    return loss * share.to(loss.dtype)


def share_of(output: StepOutput, share: Tensor, of_penalty: Tensor | None) -> Tensor:
    """The loss of a mini-batch times its share of the step, its penalty times its own; None is the same one."""
    loss = weighted(output.loss, share)
    if output.penalty is None or of_penalty is None:
        return loss
    return loss + weighted(output.penalty, of_penalty - share)


def shares_of(weights: list[Tensor]) -> list[Tensor]:
    """The shares of mini-batches in a step over all processes; times the number of processes, by which DDP divides."""
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
    common = sorted(set(outputs[0].metrics).intersection(*(output.metrics for output in outputs[1:])))
    values = [{"loss": o.loss.detach(), **{name: o.metrics[name].detach() for name in common}} for o in outputs]
    if len(values) == 1:
        return StepResult(values[0], counts[0], samples)
    # A process may have no sample in a window, or none that counts.
    weights = torch.stack(counts)
    shares = weights / weights.sum().clamp_min(TINY)
    means = {name: (torch.stack([widest(each[name]) for each in values]) * shares).sum() for name in values[0]}
    return StepResult(means, weights.sum(), samples)


def read_results(results: list[StepResult]) -> Iterable[tuple[dict[str, float], float]]:
    """Means by their names and weights of steps over the processes: one host synchronisation for all of them."""
    if results[0].weight.device.type == "cpu" and not distributed.active():
        return [({name: each.item() for name, each in r.means.items()}, r.weight.item()) for r in results]
    own = torch.stack([torch.stack([widest(each) for each in r.means.values()]) for r in results])
    means, weights = distributed.weighted_mean(own, torch.stack([r.weight for r in results]))
    return zip((dict(zip(results[0].means, row, strict=True)) for row in means), weights, strict=True)


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
