"""ASAM: adaptive sharpness-aware minimisation (Kwon et al., ICML 2021, arXiv 2102.11600).

SAM with a radius that is measured relative to each weight: eps = rho * T^2 g / ||T g||_2, T = |w| + eta for
weights and 1 for biases.  With eta = 0 a rescaling of the weights that leaves the function alone leaves the
perturbation's effect alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.optim import Optimizer

from pof.optim._entries import Entry, gradient_entries
from pof.optim._perturbing import PerturbingOptimizer
from pof.optim.sam import ETA


class ASAM(PerturbingOptimizer):
    """Adaptive SAM around a base optimizer; used like :class:`~pof.optim.SAM`.

    As in the authors' code a parameter whose name has "weight" in it is rescaled (those of norms too), and T is 1 for
    all others.  Names come from ``model``, or from ``params`` as ``model.named_parameters()``; without them, vectors
    are taken for biases.

    Args:
        params: parameters, or parameter groups.
        base_optimizer_class: makes the update, such as ``torch.optim.SGD``.
        rho: radius, relative to the weights and so larger than SAM's.
        eta: added to |w|; keeps weights that are zero movable.
        model: as for SAM.
        **base_options: the base optimizer's, such as ``lr``.

    Raises:
        ValueError: if an option is out of range, or the base optimizer cannot be used.
    """

    def __init__(
        self,
        params: Any,
        base_optimizer_class: Callable[..., Optimizer],
        rho: float = 0.5,
        eta: float = ETA,
        *,
        model: nn.Module | None = None,
        **base_options: Any,
    ) -> None:
        own = {"rho": rho, "adaptive": True, "eta": eta}
        super().__init__(params, base_optimizer_class, own, base_options, model)

    def _entries(self) -> Iterator[Entry]:
        return gradient_entries(self.param_groups, self.model)
