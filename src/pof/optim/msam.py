"""MSAM: momentum-SAM (Becker et al., arXiv 2401.12033): one pass per step.

The gradient is taken at w - rho * v / ||v||_2, v being the base optimizer's momentum buffer as the last step left it,
so no extra pass is needed.  The paper's algorithm perturbs at the end of an iteration and removes the perturbation in
the next one; here both lie around the passes of one iteration, which is the same sequence of iterates, and between
steps the weights are always the true ones: what is evaluated or saved needs no care.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from pof.optim._entries import Entry
from pof.optim._perturbing import PerturbingOptimizer

T = TypeVar("T")
BUFFERS = ("momentum_buffer", "exp_avg")


class MSAM(PerturbingOptimizer):
    """SAM along the momentum, around a base optimizer that has one: SGD with momentum, Adam, AdamW, ....

    The whole step with a closure, which runs once::

        optimizer = MSAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
        loss = optimizer.step(closure)

    Or, to accumulate, clip, or use a GradScaler::

        with optimizer.perturbed():
            loss_of(batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    The first step has no momentum and therefore no perturbation.  Running statistics are those of the perturbed
    point, as there is no other pass.

    Args:
        params: parameters, or parameter groups.
        base_optimizer_class: makes the update; its state must hold ``momentum_buffer`` or ``exp_avg``.
        rho: radius of the perturbation, in the units of the weights; larger than SAM's.
        **base_options: the base optimizer's, such as ``lr`` and ``momentum``.

    Raises:
        ValueError: if the base optimizer has no momentum or cannot be used, or if an option is out of range.
    """

    follows_a_pass = False

    def __init__(
        self, params: Any, base_optimizer_class: Callable[..., Optimizer], rho: float = 0.3, **base_options: Any
    ) -> None:
        super().__init__(params, base_optimizer_class, {"rho": rho}, base_options)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        if not group.get("momentum") and "betas" not in group:
            raise ValueError(
                f"{type(self.base_optimizer).__name__} keeps no momentum to perturb along: "
                f"got momentum={group.get('momentum')!r}; set momentum=0.9, or use an Adam"
            )

    def run_passes(self, closure: Callable[[], T], model: nn.Module | None = None) -> T:
        """Run a closure once, at the perturbed weights, where running statistics are taken too."""
        with self.perturbed():
            return closure()

    def _entries(self) -> Iterator[Entry]:
        for group in self.param_groups:
            for parameter in group["params"]:
                momentum = self._momentum(parameter)
                if momentum is not None and parameter.requires_grad:
                    yield Entry(parameter, momentum, -group["rho"], None)

    def _momentum(self, parameter: Tensor) -> Tensor | None:
        state = self.state.get(parameter, {})
        if state and state.keys().isdisjoint(BUFFERS):
            raise ValueError(
                f"{type(self.base_optimizer).__name__} keeps no momentum under {' or '.join(BUFFERS)}, and MSAM would"
                f" perturb nothing: its state holds {', '.join(map(str, state))}; use SGD with momentum, or an Adam"
            )
        return next((state[name] for name in BUFFERS if state.get(name) is not None), None)
