"""What is perturbed, and along what: one entry per parameter; and the base optimizer that makes the update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pof.optim._equations import adaptive_scale


class Entry(NamedTuple):
    """One parameter, and along what it is to be perturbed."""

    parameter: Tensor
    direction: Tensor
    """Of the parameter's shape; not normalised."""
    radius: float
    """rho; negative to go against the direction."""
    eta: float | None
    """ASAM's eta; None for T = 1."""
    budget: float | None = None
    """LE-SAM's: the most that the linearised loss may rise; the radius is then the largest one."""


def rescaled(entry: Entry, power: Literal[1, 2]) -> Tensor:
    """Compute T^power * direction, T being ASAM's operator, or 1."""
    if entry.eta is None:
        return entry.direction
    scale = adaptive_scale(entry.parameter, entry.eta)
    return (scale.square_() if power == 2 else scale).mul_(entry.direction)


def is_weight(parameter: Tensor, name: str | None) -> bool:
    """Tell what ASAM rescales, as its authors do: what is called a weight; without a name, what is no vector."""
    return parameter.ndim > 1 if name is None else "weight" in name


def gradient_entries(groups: Iterable[dict[str, Any]], model: nn.Module | None = None) -> Iterator[Entry]:
    """Take the gradients of all parameter groups, as SAM needs them: uphill also for an optimizer that maximises.

    Names, which ASAM reads, are those that the groups were given, or else those in the model.
    """
    groups = list(groups)
    adaptive = model is not None and any(group["adaptive"] for group in groups)
    names = {id(p): name for name, p in model.named_parameters()} if model is not None and adaptive else {}
    for group in groups:
        radius = -group["rho"] if group.get("maximize", False) else group["rho"]
        budget = group.get("budget")
        radius = 0.0 if budget == 0 else radius
        given = group.get("param_names") or [None] * len(group["params"])
        for parameter, own in zip(group["params"], given, strict=True):
            name = names.get(id(parameter)) if own is None else own
            eta = group["eta"] if group["adaptive"] and is_weight(parameter, name) else None
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.layout != torch.strided:
                raise ValueError(
                    f"the perturbation needs dense gradients; got {gradient.layout} for a parameter of shape "
                    f"{tuple(parameter.shape)}: build the layer with sparse=False"
                )
            yield Entry(parameter, gradient, radius, eta, budget)


def build_base(
    params: Any, base_optimizer_class: Callable[..., Optimizer], options: dict[str, Any], own: Iterable[str]
) -> Optimizer:
    """Construct the base optimizer; ``own`` are the names that its groups will hold for the perturbation."""
    if isinstance(base_optimizer_class, Optimizer) or not callable(base_optimizer_class):
        raise ValueError(f"give the class of the base optimizer, such as torch.optim.SGD; got {base_optimizer_class!r}")
    base = base_optimizer_class(params, **options)
    if not isinstance(base, Optimizer):
        raise ValueError(f"the base optimizer must be a torch.optim.Optimizer; got {type(base).__name__}")
    clash = sorted(set(own) & set(base.defaults))
    if clash:
        raise ValueError(
            f"{type(base).__name__} has an option called {clash[0]!r} of its own, which the perturbation would "
            "overwrite: choose another base optimizer"
        )
    return base


def defines(optimizer: Optimizer, method: str) -> bool:
    """Tell whether an optimizer's class has its own version of a method of ``torch.optim.Optimizer``."""
    return getattr(type(optimizer), method) is not getattr(Optimizer, method)


@torch.no_grad()
def unscale(groups: Iterable[dict[str, Any]], scale: Tensor | None) -> None:
    """Divide the gradients by the scale of a GradScaler; None has been done already."""
    if scale is None:
        return
    inverse = scale.reciprocal()
    for group in groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.mul_(inverse.to(parameter.grad.device))
