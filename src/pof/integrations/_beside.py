"""What a method trains beside the model (Co-Tuning's source head), for a trainer that knows the model's parameters."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from pof._support import distributed
from pof.methods import Method


class Beside:
    """The parameters of a method that are none of its model's; mostly there are none, and nothing happens."""

    def __init__(self, method: Method, optimizer: Optimizer, weight_decay: float) -> None:
        of_model = {id(p) for p in method.model.parameters()}
        self.optimizer = optimizer
        self.parameters = [p for p in method.trainable_parameters() if id(p) not in of_model]
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for decays in (True, False):  # as the Trainer: not of biases
            new = [p for p in self.parameters if id(p) not in known and (p.ndim > 1) == decays]
            if new:
                optimizer.add_param_group({"params": new, "weight_decay": weight_decay if decays else 0.0})

    def clear(self) -> None:
        """Clear their gradients, before a step."""
        for parameter in self.parameters:
            parameter.grad = None

    def finish(self, max_norm: float) -> None:
        """Average their gradients over the processes, as DDP did those of the model, and clip all together."""
        if not self.parameters:
            return
        distributed.average([p.grad for p in self.parameters if p.grad is not None])
        if max_norm > 0:
            nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], max_norm)
