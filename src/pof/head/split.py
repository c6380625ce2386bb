"""Features and logits of anybody's classifier from one forward.

:class:`SplitModel` calls the network as it is and listens at its head, so that whatever a network does before, inside
or after its head stays true.
"""

from __future__ import annotations

import sys
import warnings
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pof._support import distributed
from pof._support.batches import Inputs, call, first_inputs, outputs_in
from pof._support.modules import evaluating
from pof.head.calls import Untouched, refuse_other_answers
from pof.head.listen import listening, trial, uncompiled
from pof.head.output import REMEDY, End, agree, beside, disagreement, is_sigmoid, tell_apart, tell_of_others
from pof.head.search import computes_linearly, find_head, is_layer, resolve
from pof.head.vectors import on_vectors

# Samples that the head is compared with the network on, and how often where its logits are all equal.
_CHECKED, _TRIES = 8, 3


def split(model: nn.Module, head: str | None = None, *, end: End | None = "softmax") -> SplitModel:
    """Split a classifier into extractor and head, without changing it.

    On the first mini-batch the head's logits are compared with the network's output.

    Args:
        model: any module.
        head: qualified name of the head, any module of ``model`` that has parameters and runs once in a forward;
            None asks :func:`find_head`.  The prefixes of DDP and ``torch.compile`` may be left out.
        end: what may follow the head: ``"softmax"``, for the cross-entropy, which sees no more than softmax does;
            ``"sigmoid"``, for a loss of independent labels; None: the head must return the very values that the
            network does, as for any other loss.

    Returns:
        The network with access to its features.

    Raises:
        HeadNotFoundError: if there is no module of that name with parameters, or none was found.
        ValueError: if the head shares parameters with the rest of the network.
    """
    return SplitModel(model, find_head(model) if head is None else resolve(model, head), end=end)


class SplitModel(nn.Module):
    """A network whose features and logits can be read; made by :func:`split`.

    The network is called as it is; its head is listened to during that one call, also inside of what
    ``torch.compile`` compiled.  On the first mini-batch the head's logits must be the network's own output, up to what
    softmax cannot see.

    Attributes:
        model: the original network; the state dict holds it under ``model.``.
        head_name: qualified name of the head in it.
        linear: whether the head is F W^T + b on features (N, D): an ``nn.Linear``, or a 1x1 convolution, which then
            must get a 1x1 map.
        end: as :func:`split`.
        moved: whether the head will be called with other parameters than its own, which the check then tries.
    """

    def __init__(self, model: nn.Module, head_name: str, *, end: End | None = "softmax") -> None:
        super().__init__()
        self.model = model
        self.head_name = head_name
        self.end = end
        self.linear = is_layer(self._module) and computes_linearly(self._module)
        self._unchecked, self._deaf = _TRIES, False
        self._place: int | str = "logits"
        # Where a training step returned the head's own output in float32 or wider: the others then need not listen.
        self._heard_on: str | None = None
        self._made_by = ""  # by name: the class of a node cannot be pickled
        self._sigmoid = self._told = False
        self._call, self.moved = Untouched(), False
        inside = set(self._module.modules())
        owned = set(self._module.parameters())
        for name, module in model.named_modules():
            for parameter_name, parameter in module.named_parameters(name, recurse=False):
                if module not in inside and parameter in owned:
                    raise ValueError(
                        f"the head {head_name!r} shares a parameter with the extractor ({parameter_name!r}): untie "
                        'them, or choose another head with head="name"'
                    )

    @property
    def head(self) -> nn.Module:
        """The head, a module inside ``model``; a 1x1 convolution as a layer that takes (N, D) too."""
        head = self._module
        if not self.linear or not isinstance(head, nn.Conv2d):
            return head
        return on_vectors(head)

    @property
    def _module(self) -> nn.Module:
        found: Any = self._modules["model"]
        for name in filter(None, self.head_name.split(".")):
            found = found._modules[name]
        return found  # type: ignore[no-any-return]

    @property
    def weight(self) -> Tensor:
        """Weight of a linear head, (C, D): a view of its parameter, or a copy without graph of a sharded one."""
        weight: Tensor = self._own("weight")  # type: ignore[assignment]
        return weight.flatten(1) if weight.ndim > 2 else weight

    @property
    def bias(self) -> Tensor | None:
        """Bias of a linear head, (C,), as ``weight``; or None."""
        return self._own("bias")

    def _own(self, name: str) -> Tensor | None:
        head = self._module
        if not self.linear or not is_layer(head):
            raise ValueError(
                f"the head {self.head_name!r} ({type(head).__name__}) is not a linear layer and has no weight (C, D) "
                'and bias (C,): name a linear layer with head="name", or read .head.named_parameters()'
            )
        # In training mode to read is to change it: spectral norm iterates once more.
        with evaluating(head) if "parametrizations" in head._modules else nullcontext():
            value = getattr(head, name)
        return None if value is None else distributed.whole(value)

    def extractor_parameters(self) -> list[nn.Parameter]:
        """List the parameters of the network that are not the head's.

        Returns:
            All of them, frozen ones included, in the network's order.
        """
        owned = set(self._module.parameters())
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
        # A frame that is traced from outside hands over; what is compiled inside of it stays compiled.
        listen, check = self._listen, self._check
        if torch.compiler.is_compiling():
            listen = torch.compiler.disable(listen, recursive=False)  # type: ignore[no-untyped-call]
            check = torch.compiler.disable(check)  # type: ignore[no-untyped-call]
        if self._unchecked:
            check(inputs)
        features, logits, output = listen(inputs)
        if not self._told and self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._told = True
            tell_of_others(output, logits)
        return self._cut(inputs, features, logits)

    @property
    def returns_logits(self) -> bool:
        """Whether the network was heard, since its mode was set, to return the head's own output in a training step."""
        if self._heard_on is None or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        return not torch.is_autocast_enabled(self._heard_on)

    def logits(self, inputs: Inputs) -> Tensor:
        """Compute the logits alone, (N, C): those of :meth:`features_and_logits`, for less if ``returns_logits``.

        Args:
            inputs: tensor (N, ...), or a mapping passed as keywords.

        Returns:
            With graph, in the network's dtype.

        Raises:
            ValueError: as :meth:`features_and_logits`; where the network returns something else than a step before.
        """
        return self.returned(inputs) if self.returns_logits else self.features_and_logits(inputs)[1]

    def returned(self, inputs: Inputs) -> Tensor:
        """As :meth:`logits`, where ``returns_logits``."""
        output = self._call(self.model, inputs)
        if not isinstance(output, Tensor) or output.ndim != 2 or self._has_changed(output):
            kind = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"the network returned {kind}, and in the step before the logits of its head alone, unchanged: call"
                f" .train() of the method where it changes within an epoch, or {REMEDY.removeprefix('with ')}"
            )
        return output

    def _has_changed(self, output: Tensor) -> bool:
        """Whether something follows a linear head now, such as a dropout that was 0: it did not make this output."""
        return self.linear and type(output.grad_fn).__name__ != self._made_by

    def train(self, mode: bool = True) -> SplitModel:
        """Set the mode, as of any module; the next step listens to the head again."""
        self._heard_on = None
        return super().train(mode)

    def _cut(self, inputs: Inputs, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Refuse what is no vector per sample, and give both as matrices."""
        samples = inputs.size(0) if isinstance(inputs, Tensor) else features.shape[0]
        if self.linear and features.ndim == logits.ndim == 2 and features.shape[0] == samples:
            return features, logits
        maps = (1, 1) if isinstance(self._module, nn.Conv2d) else ()
        if self.linear and (features.shape[2:] != maps or features.ndim < 2 or features.shape[0] != samples):
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

    def _listen(self, inputs: Inputs) -> tuple[Tensor, Tensor, Any]:
        """What entered the head, what it returned, and the network's output."""
        with uncompiled() if self._deaf else nullcontext(), listening(self._module) as heard:
            output = self._call(self.model, inputs)
        if not heard and not self._deaf and "torch._dynamo" in sys.modules:
            self._deaf = True
            result = self._listen(inputs)
            warnings.warn(
                f"the compiled network does not run its head {self.head_name!r} as a module, and runs uncompiled while"
                " features are read; compile the original network by pof.split(model).compile() instead",
                stacklevel=2,
            )
            return result
        if len(heard) != 1:
            raise ValueError(
                f"the head {self.head_name!r} ran {len(heard)} times in one forward, not once: with "
                'head="name" name the module that runs once and returns the logits'
            )
        features, logits = heard[0].entered, heard[0].returned
        if not isinstance(features, Tensor) or not isinstance(logits, Tensor):
            raise ValueError(
                f"the head {self.head_name!r} must take and return one tensor, not {type(features).__name__} and "
                f'{type(logits).__name__}: name another module with head="name"'
            )
        if torch.is_grad_enabled() and not logits.requires_grad:
            self._refuse_lost_graph(output)
        if self._heard_on is None and self.model.training and torch.is_grad_enabled():
            wide = logits.ndim == 2 and logits.dtype in {torch.float32, torch.float64}
            if wide and heard[0].is_still(output) and not distributed.has_fsdp(self.model):
                self._heard_on, self._made_by = logits.device.type, type(output.grad_fn).__name__
        return *self._reach(output, features, logits), output

    def _refuse_lost_graph(self, output: Any) -> None:
        if any(tensor.requires_grad for tensor in outputs_in(output).values()):
            raise ValueError(
                f"the head {self.head_name!r} runs without a graph inside of a re-entrant checkpoint, so its logits"
                " cannot be trained on: use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
            )

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the network in place, for calls and for features alike; arguments as of ``torch.compile``."""
        self.model.compile(*args, **kwargs)

    def place(self, inputs: Inputs) -> int | str:
        """Find the head's logits in the network's output.

        Args:
            inputs: tensor (N, ...), or a mapping passed as keywords; the first samples are run in eval mode.

        Returns:
            Position or key in a tuple or mapping, ``"logits"`` where there is only one tensor.

        Raises:
            ValueError: if no tensor in the output equals the head's logits, up to what softmax cannot see.
        """
        self._check(inputs)
        return self._place

    def ends_in_sigmoid(self, inputs: Inputs) -> bool:
        """Whether the network returns the sigmoid of its head's logits; as :meth:`place`, with ``end="sigmoid"``."""
        self._check(inputs)
        return self._sigmoid

    def _check(self, inputs: Inputs) -> None:
        """Compare the head's logits with the network's output: once, or until they tell anything."""
        # In DDP and FSDP2 a forward with graph would announce a backward pass to the other processes.
        spread = any(isinstance(m, DistributedDataParallel) or distributed.is_fsdp(m) for m in self.model.modules())
        few = first_inputs(inputs, _CHECKED)
        with trial(self.model, graph=not spread):
            features, returned, output = self._listen(few)
            features, logits = self._cut(few, features, returned)
            if self.moved and not distributed.has_fsdp(self.model):
                refuse_other_answers(self.head_name, self.head, features, logits)
        found = outputs_in(output)
        compared = {place: agree(tensor, logits, end=self.end) for place, tensor in found.items()}
        places = [place for place, (same, _) in compared.items() if same]
        if not places:
            raise ValueError(disagreement(self.head_name, found, compared, logits))
        self._place = places[0]
        self._sigmoid = is_sigmoid(found[self._place], logits)
        others = beside(found[self._place], returned)
        if others:
            name = next((name for name, p in self.model.named_parameters() if p in others), "a parameter")
            raise ValueError(
                f"the network's output depends on {name!r} beside the head {self.head_name!r}, so the head's logits"
                f" do not stay its own; {REMEDY}"
            )
        self._unchecked = 0 if tell_apart(logits) else max(0, self._unchecked - 1)

    def _reach(self, output: Any, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Tie features and logits to the output where FSDP2 listens to it."""
        if not distributed.has_fsdp(self.model):
            return features, logits
        end = next(iter(outputs_in(output).values()), features)
        if not end.requires_grad:
            return features, logits
        features, logits = distributed.tied(end, features, logits)
        return features, logits
