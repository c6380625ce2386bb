"""L2-SP: the weights are drawn towards where fine-tuning started (Li, Grandvalet and Davoine, ICML 2018).

alpha/2 ||w - w0||^2 over the extractor, beta/2 ||w_head||^2 over the new head.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pof._support.batches import Inputs
from pof._support.distributed import is_sharded
from pof._support.modules import refuse_lazy
from pof._support.precision import at_least_float32
from pof.head.search import find_head, resolve
from pof.regularizers._base import Regularizer, nonnegative


def half_squared_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Half the squared norm, 1/2 sum ||t||^2, of tensors of any shape, in float32 at least."""
    return 0.5 * torch.stack([at_least_float32(t).square().sum() for t in tensors]).sum()


class L2SP(Regularizer):
    """strength/2 ||w - w0||^2 over the extractor + head_strength/2 ||w_head||^2 over the head.

    w0 is copied at construction into buffers, so it is in ``state_dict`` and a resumed run keeps its start.
    The parameters themselves stay the model's: they are read where the model is, and appear neither in
    ``parameters()`` nor in the state.  A deepcopy that is to follow a copied model must copy both together.

    Use it with the optimizer's weight decay at 0, which would draw the same weights to the origin.

    Args:
        model: the model that is fine-tuned, with its start weights.
        head: qualified name of its head; found by :func:`pof.find_head` if not given.
        strength: alpha, >= 0.  At 0 no start weights are copied.
        head_strength: beta, >= 0.

    Raises:
        HeadNotFoundError: if there is no module of that name with parameters, or none was found.
        ValueError: if a strength is negative, there is nothing beside the head, or FSDP2 has sharded the parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        head: str | None = None,
        *,
        strength: float = 0.01,
        head_strength: float = 0.01,
    ) -> None:
        super().__init__(strength)
        refuse_lazy(model)
        self.head_strength = nonnegative("head_strength", head_strength)
        self.head = find_head(model) if head is None else resolve(model, head)
        prefix = f"{self.head}."
        names = [name for name, _ in model.named_parameters()]
        self._head_names = [name for name in names if name.startswith(prefix)]
        self._extractor_names = [name for name in names if not name.startswith(prefix)]
        if not self._head_names or not self._extractor_names:
            raise ValueError(f"the head {self.head!r} must have parameters of its own, and the rest some too")
        # In a tuple, because as a submodule the model's weights would be in this module's state and parameters.
        self._model = (model,)
        if self.strength > 0:
            for i, parameter in enumerate(self._named(self._extractor_names)):
                self.register_buffer(f"start_{i}", parameter.detach().clone())

    def forward(
        self, features: Tensor | None = None, targets: Tensor | None = None, inputs: Inputs | None = None
    ) -> Tensor:
        """Compute the penalty, in float32 at least, from the model's present weights; no argument is read."""
        head = self._named(self._head_names)
        penalty = torch.zeros((), device=head[0].device)
        if self.strength > 0:
            weights = self._named(self._extractor_names)
            moved = (w - self.get_buffer(f"start_{i}") for i, w in enumerate(weights))
            penalty = penalty + self.strength * half_squared_norm(moved)
        if self.head_strength > 0:
            penalty = penalty + self.head_strength * half_squared_norm(head)
        return penalty

    def held_parameters(self) -> set[nn.Parameter]:
        """All of its model."""
        return set(self._model[0].parameters())

    def _named(self, names: list[str]) -> list[Tensor]:
        # By name in every step: load_state_dict(assign=True), pruning and sharding replace parameter objects.
        parameters = dict(self._model[0].named_parameters())
        found: list[Tensor] = [parameters[name] for name in names]
        if any(map(is_sharded, found)):
            raise ValueError(
                "L2-SP reads parameters beside the forward pass, where fully_shard has sharded them and their gradient"
                " would pass FSDP2 by: use DDP"
            )
        return found
