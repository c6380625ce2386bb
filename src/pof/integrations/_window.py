"""An optimizer step that is not taken yet, for a checkpoint that comes between its mini-batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pof._support import distributed
from pof._support.batches import to_device
from pof._support.modules import contents


def unfinished(module: nn.Module, method: nn.Module, own: dict[str, Any]) -> dict[str, Any]:
    """The gradients so far, and what each process holds of its ``own``; a collective call.

    Gradients are the mean over the processes: the one that DDP will take is the same then.
    """
    gradients: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            gradients[name] = parameter.grad.detach().clone()
        elif parameter.requires_grad and distributed.active():  # another process may have one
            gradients[name] = torch.zeros_like(parameter)
    distributed.average(gradients.values())
    states = {"extra": contents(method, copies=False)["extra"], **own}
    return {"gradients": gradients, "processes": distributed.gather_objects(to_device(states, "cpu"))}


def go_on(module: nn.Module, method: nn.Module, saved: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Put back what :func:`unfinished` gave, and give this process's ``own``."""
    for name, parameter in module.named_parameters():
        if name in saved["gradients"]:
            parameter.grad = saved["gradients"][name].to(parameter, copy=True)
    own: dict[str, Any] = saved["processes"][distributed.rank()]
    for name, part in method.named_modules():
        if name in own["extra"]:
            part.set_extra_state(own["extra"][name])
    return to_device(own, device)
