"""Guards for calling a network twice on one mini-batch, and for calling its head alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from pof._support.batches import Inputs, call, cloned, tensors_of
from pof._support.distributed import call_with, whole
from pof._support.modules import version_of
from pof.head.output import agree

CHECKPOINTED = (
    "the head recomputes activations in the backward pass (torch.utils.checkpoint), where its parameters are its own"
    " and not the moved ones: switch checkpointing off inside of the head"
)


class Untouched:
    """Calls a network on inputs that stay as they are: on copies, where it writes into them (``x.sub_(mean)``).

    A mini-batch passes a network twice, as PoF's reference and as what is trained on, or in both passes of SAM.  The
    first call in each mode tells whether it writes.
    """

    def __init__(self) -> None:
        self._writes, self._modes = False, set[bool]()

    def __call__(self, model: nn.Module, inputs: Inputs) -> Any:
        """What the network returns; the inputs are a tensor (N, ...), or a mapping, as :func:`call` takes them."""
        if model.training in self._modes and not self._writes:
            return call(model, inputs)
        own = cloned(inputs)
        before = [(tensor, version_of(tensor)) for tensor in tensors_of(own)]
        output = call(model, own)
        self._writes = self._writes or any(version_of(tensor) != version for tensor, version in before)
        self._modes.add(model.training)
        return output


@torch.no_grad()
def refuse_other_answers(name: str, head: nn.Module, features: Tensor, logits: Tensor) -> None:
    """Refuse a head that does not give its logits (N, C) again where it is called anew with the features alone."""
    parameters = {name: whole(parameter) for name, parameter in head.named_parameters()}

    def again() -> Tensor:
        found: Tensor = call_with(head, parameters, features).flatten(1)
        return found

    try:
        first = again()
        # One that draws random numbers may be right.
        alike = agree(first, logits, end=None)[0] or not torch.equal(first, again())
    except Exception:  # it cannot be called so
        alike = False
    if not alike:
        raise ValueError(
            f"the head {name!r}, called anew with its features alone, gives other logits (the network calls it with"
            " more than that, or a hook changes its input), so it cannot be moved: as head, name a module around it"
            " that is called with one tensor"
        )


@contextmanager
def refusing_checkpoints() -> Iterator[None]:
    """Refuse, in the body, checkpoints that are not re-entrant: they recompute with a module's own parameters."""
    if torch.compiler.is_compiling():  # a graph recomputes from what went into it
        yield
        return
    with ExitStack() as stack:
        with suppress(RuntimeError):  # where somebody around has hooks of his own
            stack.enter_context(torch.autograd.graph.disable_saved_tensors_hooks(CHECKPOINTED))
        try:
            yield
        except RuntimeError as error:
            if CHECKPOINTED not in str(error):
                raise
            raise ValueError(CHECKPOINTED) from error


def refuse_checkpoint(output: Tensor, entered: Tensor) -> None:
    """Refuse re-entrant checkpoints between what entered a head and its output."""
    if torch.compiler.is_compiling():
        return
    seen, waiting = {None, entered.grad_fn}, [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if type(node).__name__ == "CheckpointFunctionBackward":
            raise ValueError(CHECKPOINTED)
        seen.add(node)
        waiting += [before for before, _ in node.next_functions]
