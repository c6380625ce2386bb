"""SAM's radius from the data: where the loss of whole steps at the perturbed weights has risen to a level."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import median

import torch
from torch import Tensor

from pof._support import distributed
from pof._support.batches import Inputs
from pof._support.modules import device_of, layer_groups
from pof._support.random import isolated
from pof.methods.base import Method, StepOutput
from pof.methods.loss import Loss, plain_step
from pof.optim import PerturbingOptimizer, perturbation_shares, rho_for_level
from pof.optim.rise import LevelKind

Window = list[tuple[Inputs, Tensor]]
"""The mini-batches of one optimizer step."""
DRAWS, APART = 8, 1.6
"""Of a network with dropout: steps with each window, and the factor between the radii that are tried."""


@dataclass
class Calibration:
    """The search of one method; its gradients are cleared afterwards, all else stays."""

    method: Method
    loss: Loss
    of_ascent: Callable[[Inputs, Tensor], tuple[Inputs, Tensor]]
    """The part of a mini-batch that gives the direction."""
    optimizer: PerturbingOptimizer
    level: float
    """Share of the way from the least loss to that of guessing."""
    kind: LevelKind

    def radius(self, windows: Iterable[Window]) -> tuple[float, dict[str, float]]:
        """Find the radius.

        Args:
            windows: steps' worth of mini-batches.

        Returns:
            The median of their radii; of a network that draws masks, the radius at which their mean loss is at the
            level.  And each layer group's share of ||eps||^2, by name.

        Raises:
            ValueError: without a mini-batch that counts.
        """
        counted = [window for window in windows if any(distributed.gather_objects(self._counts(window)))]
        if not counted:
            raise ValueError("calibrate() got no mini-batch")
        found: list[float] = []
        shares: list[dict[str, float]] = []
        try:
            for window in counted:
                wanted = self._ascent(window, seed=0)
                shares.append(perturbation_shares(self.optimizer, layer_groups(self.method.model)))
                guess, loss = found[-1] if found and found[-1] else 0.1, partial(self._loss, window, seed=1)
                found.append(rho_for_level(self.optimizer, loss, wanted, guess=guess, level_kind=self.kind))
            rho = median(found)
            if rho and self._draws_masks(counted[0]):
                rho = self._of_mean(counted, rho)
        finally:
            self.optimizer.zero_grad()
        return rho, {name: sum(share[name] for share in shares) / len(shares) for name in shares[0]}

    def _of_mean(self, windows: list[Window], rho: float) -> float:
        """The radius near ``rho`` at which the mean loss of steps is at the level; single draws scatter too much."""
        radii, wanted, losses = (rho / APART, rho, rho * APART), 0.0, [0.0, 0.0, 0.0]
        for window, draw in product(windows, range(1, 1 + DRAWS)):
            wanted += self._ascent(window, seed=2 * draw)
            with torch.no_grad():
                wanted += self._loss(window, seed=2 * draw + 1) if self.kind == "rise" else 0.0
            for number, radius in enumerate(radii):
                for group in self.optimizer.param_groups:
                    group["rho"] = radius
                with self.optimizer.perturbed(), torch.no_grad():
                    losses[number] += self._loss(window, seed=2 * draw + 1)
        # On the line through two of the three, in logarithms.
        pair = losses[:2] if losses[1] > wanted else losses[1:]
        slope = math.log(max(pair[1] / pair[0], 1.1))
        share = math.log(wanted / pair[0]) / slope
        return float((radii[0] if losses[1] > wanted else radii[1]) * APART ** min(max(share, -1.0), 2.0))

    def _ascent(self, window: Window, seed: int) -> float:
        """The gradients of a step's first pass, of the part that ascends; gives the level of all of it, in nats."""
        self.optimizer.zero_grad()
        levels, level = [], self.loss.level
        for inputs, targets in window:
            part = self.of_ascent(inputs, targets)
            out = self._drawn(seed, *part)
            torch.autograd.backward(out.loss * self.method.weight_of(part[1]).to(out.loss.dtype))
            least = level(0.0, targets, out.logits) if self.kind == "rise" else 0.0
            levels.append(level(self.level, targets, out.logits) - least)
        distributed.add_up(p.grad for p in self.method.trainable_parameters() if p.grad is not None)
        return self._mean(window, levels)

    def _counts(self, window: Window) -> bool:
        return any(float(self.method.weight_of(targets)) > 0 for _, targets in window)

    def _loss(self, window: Window, seed: int) -> float:
        return self._mean(window, [self._drawn(seed, *batch).loss for batch in window])

    @torch.no_grad()
    def _draws_masks(self, window: Window) -> bool:
        """Whether the network is another one in each pass, as with dropout."""
        one, other = (self._drawn(seed, *self.of_ascent(*window[0])).logits for seed in (0, 1))
        return any(distributed.gather_objects(not torch.equal(one, other)))

    def _drawn(self, seed: int, inputs: Inputs, targets: Tensor) -> StepOutput:
        """A pass with the dropout masks of a seed."""
        with isolated(seed, device_of(self.method.model)):
            return plain_step(self.method.network, self.loss, inputs, targets)

    def _mean(self, window: Window, values: Sequence[Tensor | float]) -> float:
        """The mean of a step, over all processes, of one value for each mini-batch."""
        weights = [float(self.method.weight_of(targets)) for _, targets in window]
        own = sum(weight * float(value) for weight, value in zip(weights, values, strict=True) if weight)
        device = device_of(self.method.model)
        mean = torch.tensor([[own / (sum(weights) or 1.0)]], device=device)
        means, _ = distributed.weighted_mean(mean, torch.tensor([sum(weights)], device=device))
        return float(means[0][0])
