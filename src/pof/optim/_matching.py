"""Whether an optimizer that somebody made does what a method's options say."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import Optimizer

from pof.optim._perturbing import PerturbingOptimizer
from pof.optim.sam import SAM


def other_than(
    optimizer: Optimizer, kind: str, wrapper: type, head: nn.Module | None, budget: float | None, rho: float | None
) -> str | None:
    """Say in which way an optimizer is another than one of a kind; None where it is none.

    Args:
        optimizer: any.
        kind: its name.
        wrapper: its class; for ``"asam"`` a whole SAM that is adaptive will do.
        head: what alone it is to perturb; None: anything.
        budget: of the loss, which it is to know; None: any.
        rho: radius that its groups are to have, or 0; None: any.

    Returns:
        What it does instead, after its name.
    """
    if not isinstance(optimizer, PerturbingOptimizer):
        return "perturbs nothing"
    groups = optimizer.param_groups
    whole = isinstance(optimizer, SAM) and optimizer.only is None
    is_asam = kind == "asam" and whole and all(group["adaptive"] for group in groups)
    if not isinstance(optimizer, wrapper) and not is_asam:
        return f"is not of the kind {kind}"
    if head is not None and not _perturbs_only(optimizer, head):
        return "perturbs other layers than the head"
    if budget is not None and all(group.get("budget") is None for group in groups):
        return f"does not know the budget {budget:g}"
    radii = [group["rho"] for group in groups if group["rho"] != 0] or [0.0]  # groups may be left out
    if rho is not None and not all(math.isclose(radius, rho, rel_tol=1e-6) for radius in radii):
        return f"does not have the method's radius {rho:g} (without rho= and calibrate the optimizer's own counts)"
    return None


def _perturbs_only(optimizer: PerturbingOptimizer, module: nn.Module) -> bool:
    own = {id(parameter) for parameter in module.parameters()}
    only = getattr(optimizer, "only", None) or [p for group in optimizer.param_groups for p in group["params"]]
    return all(id(parameter) in own for parameter in only if parameter.requires_grad)
