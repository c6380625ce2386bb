"""Features and logits of anybody's classifier from one forward.

:class:`SplitModel` calls the network as it is and listens at its head, so that whatever a network does before, inside
or after its head stays true.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import torch
from torch import Tensor, nn

from pof._support import distributed
from pof._support.batches import Inputs, call, logits_of
from pof.head.search import (
    HeadNotFoundError,
    all_layers,
    computes_linearly,
    describe_choice,
    find_head,
    is_layer,
    parameter_count,
)

_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod)\.)+")


def split(model: nn.Module, head: str | None = None) -> SplitModel:
    """Split a classifier into extractor and head, without changing it.

    Args:
        model: any module.
        head: qualified name of the head, any module of ``model`` that has parameters and runs once in a forward;
            None asks :func:`find_head`.  The prefixes of DDP and ``torch.compile`` may be left out.

    Returns:
        The network with access to its features.

    Raises:
        HeadNotFoundError: if there is no module of that name with parameters, or none was found.
        ValueError: if the head shares parameters with the rest of the network.
    """
    if head is None:
        return SplitModel(model, find_head(model))
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    matches = [name for name in names if head in {name, _WRAPPERS.sub("", name)}]
    if not matches or not parameter_count(model.get_submodule(matches[0])):
        reason = f"head={head!r} has no parameters" if matches else f"there is no module {head!r}"
        candidates = all_layers(model)
        raise HeadNotFoundError(f"{type(model).__name__}: {reason}; {describe_choice(candidates)}", candidates)
    return SplitModel(model, matches[0])


class SplitModel(nn.Module):
    """A network whose features and logits can be read; made by :func:`split`.

    The network is called as it is; a forward hook sits at its head during that one call.  ``torch.compile`` does not
    notice hooks that come and go, so compiled parts run uncompiled while features are read, and compiled otherwise.

    Attributes:
        model: the original network; the state dict holds it under ``model.``.
        head_name: qualified name of the head in it.
        linear: whether the head is F W^T + b on features (N, D): an ``nn.Linear``, or a 1x1 convolution, which then
            must get a 1x1 map.
    """

    def __init__(self, model: nn.Module, head_name: str) -> None:
        super().__init__()
        self.model = model
        self.head_name = head_name
        self.linear = is_layer(self.head) and computes_linearly(self.head)
        inside = set(self.head.modules())
        owned = set(self.head.parameters())
        for name, module in model.named_modules():
            for parameter_name, parameter in module.named_parameters(name, recurse=False):
                if module not in inside and parameter in owned:
                    raise ValueError(
                        f"the head {head_name!r} shares a parameter with the extractor ({parameter_name!r}): untie "
                        'them, or choose another head with head="name"'
                    )

    @property
    def head(self) -> nn.Module:
        """The head, a module inside ``model``."""
        return self.model.get_submodule(self.head_name)

    @property
    def weight(self) -> Tensor:
        """Weight of a linear head, (C, D): a view of its parameter, or a copy without graph of a sharded one."""
        weight = distributed.whole(self._linear_head().weight)
        return weight.flatten(1) if weight.ndim > 2 else weight

    @property
    def bias(self) -> Tensor | None:
        """Bias of a linear head, (C,), as ``weight``; or None."""
        bias = self._linear_head().bias
        return None if bias is None else distributed.whole(bias)

    def _linear_head(self) -> nn.Linear | nn.Conv2d:
        head = self.head
        if not self.linear or not is_layer(head):
            raise ValueError(
                f"the head {self.head_name!r} ({type(head).__name__}) is not a linear layer and has no weight (C, D) "
                'and bias (C,): name a linear layer with head="name", or read .head.named_parameters()'
            )
        return head

    def extractor_parameters(self) -> list[nn.Parameter]:
        """List the parameters of the network that are not the head's.

        Returns:
            All of them, frozen ones included, in the network's order.
        """
        owned = set(self.head.parameters())
        return [p for p in self.model.parameters() if p not in owned]

    def forward(self, inputs: Inputs) -> Any:
        """Call the network.

        Args:
            inputs: tensor (N, ...), or a mapping passed as keywords.

        Returns:
            What the network returns, unchanged.
        """
        return call(self.model, inputs)

    def features(self, inputs: Inputs) -> Tensor:
        """Compute what enters the head, in one whole forward of the network.

        Args:
            inputs: tensor (N, ...), or a mapping passed as keywords.

        Returns:
            (N, D) for a linear head, otherwise the tensor that enters the head; with graph, in the network's dtype.

        Raises:
            ValueError: as :meth:`features_and_logits`.
        """
        return self.features_and_logits(inputs)[0]

    def features_and_logits(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Compute features and logits in one forward of the network.

        Args:
            inputs: tensor (N, ...), or a mapping passed as keywords.

        Returns:
            features: (N, D) for a linear head, otherwise the tensor that enters the head; logits: (N, C), the head's
            own output, before any softmax or dropout of the network.  Both with graph, in the network's dtype.

        Raises:
            ValueError: if the head does not run exactly once, or its input is not one vector per sample (it is
                applied to tokens or map positions), or its output is not (N, C).
        """
        if "torch._dynamo" in sys.modules:
            features, logits = torch.compiler.disable(self._listen_uncompiled)(inputs)  # type: ignore[no-untyped-call]
        else:
            features, logits = self._listen(inputs)
        samples = inputs.shape[0] if isinstance(inputs, Tensor) else features.shape[0]
        maps = (1, 1) if isinstance(self.head, nn.Conv2d) else ()
        if self.linear and (features.ndim != 2 + len(maps) or features.shape[2:] != maps or len(features) != samples):
            raise ValueError(
                f"the head {self.head_name!r} got features of shape {tuple(features.shape)}, not "
                f"{'(N, D, 1, 1)' if maps else '(N, D)'} with N = {samples}: it is applied to tokens or map positions; "
                'with head="name" name a module that gets one vector per sample, or one that holds this layer and '
                "the pooling after it"
            )
        if logits.ndim < 2 or logits.shape[2:].numel() != 1:
            raise ValueError(
                f"the head {self.head_name!r} returned shape {tuple(logits.shape)}, not logits (N, C): with "
                'head="name" name the module that returns them'
            )
        return features.flatten(1) if self.linear else features, logits.flatten(1)

    def _listen_uncompiled(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        with torch.compiler.set_stance("force_eager"):
            return self._listen(inputs)

    def _listen(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        heard: list[tuple[Any, Any]] = []

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            # A copy of the logits, as the network may go on in place: nn.Dropout(inplace=True) after the head.
            entered = args[0] if args else next(iter(kwargs.values()), None)
            heard.append((entered, output.clone() if isinstance(output, Tensor) else output))

        with self.head.register_forward_hook(hook, with_kwargs=True):
            output = call(self.model, inputs)
        if len(heard) != 1:
            raise ValueError(
                f"the head {self.head_name!r} ran {len(heard)} times in one forward, not once: with "
                'head="name" name the module that runs once and returns the logits'
            )
        features, logits = heard[0]
        if not isinstance(features, Tensor) or not isinstance(logits, Tensor):
            raise ValueError(
                f"the head {self.head_name!r} must take and return one tensor, not {type(features).__name__} and "
                f'{type(logits).__name__}: name another module with head="name"'
            )
        return self._reach(output, features, logits)

    def _reach(self, output: Any, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Tie features and logits to the output where FSDP2 listens to it."""
        if not any(map(distributed.is_fsdp, self.model.modules())):
            return features, logits
        end = logits_of(output)
        if not end.requires_grad:
            return features, logits
        features, logits = distributed.tied(end, features, logits)
        return features, logits
