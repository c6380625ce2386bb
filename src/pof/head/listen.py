"""What enters a module and what it returns, heard during a forward of the network around it.

``torch.compile`` does not notice hooks that come and go, but it does notice a ``forward`` that an instance has of its
own.  So the module gets one for the time of the call: compiled parts are compiled once more with it, the features
become an output of their graph, and nothing stays on the user's network.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pof._support.modules import device_of, evaluating, frozen_statistics, version_of
from pof._support.precision import without_cast_cache
from pof._support.random import preserved


class Heard(NamedTuple):
    """One call of a module."""

    entered: Any
    returned: Any
    """A copy, as the network may go on in place: nn.Dropout(inplace=True) after the head."""
    original: Any = None
    version: int = -1
    """Of the original, when it was returned."""

    def is_still(self, output: Any) -> bool:
        """Whether an output is what the module returned, untouched since."""
        return isinstance(output, Tensor) and output is self.original and version_of(output) == self.version


@contextmanager
def listening(module: nn.Module) -> Iterator[list[Heard]]:
    """Collect every call of a module in the body."""
    heard: list[Heard] = []
    inner = module.forward

    def forward(_: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        entered = args[0] if args else next(iter(kwargs.values()), None)
        copy = output.clone() if isinstance(output, Tensor) else output
        # The original is no output of a compiled graph.
        traced = torch.compiler.is_compiling()
        heard.append(Heard(entered, copy) if traced else Heard(entered, copy, output, version_of(output)))
        return output

    own = vars(module)
    before = own.get("forward")
    own["forward"] = MethodType(forward, module)
    try:
        yield heard
    finally:
        if before is None:
            del own["forward"]
        else:
            own["forward"] = before


def uncompiled() -> AbstractContextManager[Any]:
    """Run compiled modules in the body as they were written; free where nothing was compiled."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def trial(model: nn.Module, *, graph: bool) -> Iterator[None]:
    """Try a network in the body in eval mode, uncompiled; modes, statistics and generators are as before afterwards."""
    device = device_of(model)
    surroundings = uncompiled(), preserved(), without_cast_cache(device), torch.set_grad_enabled(graph)
    with ExitStack() as stack:
        for context in (*surroundings, frozen_statistics(model), evaluating(model)):
            stack.enter_context(context)
        yield
