"""SAM-ON: SAM that perturbs normalisation layers only (Mueller et al., NeurIPS 2023, arXiv 2306.04226).

The base optimizer still updates every parameter.  The norm is taken over the perturbed parameters, so that the
perturbation has the length rho; what is kept to restore them is no larger than they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.optim import Optimizer

from pof.optim._entries import Entry, gradient_entries
from pof.optim._perturbing import PerturbingOptimizer
from pof.optim.normalization import normalization_parameters
from pof.optim.sam import ETA


class SAMON(PerturbingOptimizer):
    """SAM on the normalisation parameters of ``model`` alone; used like :class:`~pof.optim.SAM`.

    Args:
        params: parameters, or parameter groups: all that the base optimizer updates.
        base_optimizer_class: makes the update, such as ``torch.optim.SGD``.
        rho: radius; larger than SAM's, as far fewer parameters share it.
        adaptive: perturb as ASAM does, with T = |w| + 0.01.
        model: where the normalisation layers are looked for, by :func:`normalization_parameters`; its running
            statistics are frozen while the weights are perturbed.
        **base_options: the base optimizer's, such as ``lr``.

    Raises:
        ValueError: if no parameter to update belongs to a normalisation layer, if an option is out of range, or if
            the base optimizer cannot be used.
    """

    model: nn.Module

    def __init__(
        self,
        params: Any,
        base_optimizer_class: Callable[..., Optimizer],
        rho: float = 0.5,
        adaptive: bool = False,
        *,
        model: nn.Module,
        **base_options: Any,
    ) -> None:
        own = {"rho": rho, "adaptive": adaptive, "eta": ETA}
        super().__init__(params, base_optimizer_class, own, base_options, model)
        updated = {id(p) for group in self.param_groups for p in group["params"]}
        if not any(id(p) in updated for p in normalization_parameters(model)):
            raise ValueError(
                f"none of the {len(updated)} parameters belongs to a normalisation layer of {type(model).__name__}: "
                "pass them to the optimizer too, or use SAM"
            )

    def _entries(self) -> Iterator[Entry]:
        chosen = {id(p) for p in normalization_parameters(self.model)}
        return (entry for entry in gradient_entries(self.param_groups, self.model) if id(entry.parameter) in chosen)
