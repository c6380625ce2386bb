"""SAM: sharpness-aware minimisation (Foret et al., ICLR 2021, arXiv 2010.01412), and ASAM through ``adaptive``.

LE-SAM (Wang et al., ICML 2026, arXiv 2605.10183) through ``budget``.

Each step uses the gradient at w + eps, eps = rho * g / ||g||_2, g being the gradient at w and the norm that of all
parameters together.  Two forward and backward passes per step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from pof.optim._entries import Entry, gradient_entries
from pof.optim._perturbing import PerturbingOptimizer

ETA = 0.01
"""eta of ASAM unless chosen."""


class SAM(PerturbingOptimizer):
    """Sharpness-aware minimisation around a base optimizer.

    The whole step with a closure that clears the gradients, computes the loss and calls ``backward``; it runs twice::

        optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9, model=model)
        loss = optimizer.step(closure)

    Or pass by pass.  Several ``backward`` calls per pass accumulate; the gradient of the *second* pass is the one to
    clip, since the first one gives a direction only::

        loss_of(batch).backward()
        with optimizer.perturbed():
            optimizer.zero_grad()
            loss_of(batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    With a GradScaler, scale both passes, and let it unscale the second one only (eps does not depend on the scale;
    an overflow in the first pass leaves the weights unperturbed)::

        scaler.scale(loss_of(batch)).backward()
        with optimizer.perturbed():
            optimizer.zero_grad()
            scaler.scale(loss_of(batch)).backward()
        scaler.unscale_(optimizer)  # to clip; not before perturbed(), as it works once per step
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)  # with a closure: RuntimeError
        scaler.update()

    With rho = 0 in all groups, ``step(closure)`` runs the closure once and is the base optimizer's step, exactly.
    ``rho`` and ``adaptive`` may be set per parameter group; the norm is always that of all groups.

    Args:
        params: parameters, or parameter groups.
        base_optimizer_class: makes the update, such as ``torch.optim.SGD``.
        rho: radius of the perturbation, in the units of the weights.
        adaptive: ASAM's eps = rho * T^2 g / ||T g||_2 with T = |w| + 0.01 (see :class:`~pof.optim.ASAM`).
        budget: LE-SAM's sigma, in nats: each step's radius is ``budget / ||g||``, so that the linearised loss rises by
            the budget, and ``rho`` is the largest radius.  0 is the base optimizer; None: the radius is ``rho``.
            It may be set per step in ``param_groups``.  With a GradScaler, set ``loss_scale`` too.
        only: parameters that are perturbed; the norm is that of their gradients, and the base optimizer still updates
            all.  None: all.
        model: if given, its running statistics are frozen while the weights are perturbed, so that those of the
            first pass count alone.
        **base_options: the base optimizer's, such as ``lr``.

    Raises:
        ValueError: if an option is out of range, or the base optimizer cannot be used.
    """

    def __init__(
        self,
        params: Any,
        base_optimizer_class: Callable[..., Optimizer],
        rho: float = 0.05,
        adaptive: bool = False,
        *,
        budget: float | None = None,
        only: Iterable[Tensor] | None = None,
        model: nn.Module | None = None,
        **base_options: Any,
    ) -> None:
        own = {"rho": rho, "adaptive": adaptive, "eta": ETA, "budget": budget}
        super().__init__(params, base_optimizer_class, own, base_options, model)
        self.only = None if only is None else list(only)
        updated = {id(p) for group in self.param_groups for p in group["params"]}
        if self.only is not None and not updated & {id(p) for p in self.only}:
            raise ValueError(
                f"none of the {len(self.only)} parameters to perturb is among those to update: unfreeze"
                " them (requires_grad_(True)), or perturb all layers"
            )

    def _entries(self) -> Iterator[Entry]:
        entries = gradient_entries(self.param_groups, self.model)
        if self.only is None:
            return entries
        chosen = {id(p) for p in self.only}
        return (entry for entry in entries if id(entry.parameter) in chosen)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "only": self.only}
