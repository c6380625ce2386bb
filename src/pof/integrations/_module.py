"""Whether a LightningModule with a method trains with it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pof.flatness._measure import cross_entropy_options
from pof.integrations._losses import inner
from pof.methods import Finetune, Method, SharpnessAware
from pof.perturbation.loss import unwrapped


def check_module(module: Any, base: type) -> None:
    """Refuse one of ``base`` without a method, or with optimization by hand."""
    name = type(module).__name__
    if not isinstance(getattr(module, "method", None), Method):
        raise ValueError(f"{name} needs self.method, such as self.method = pof.PoF(model)")
    if not module.automatic_optimization:
        raise ValueError(
            f"{base.__name__} needs automatic_optimization=True and one optimizer, which may have several groups: in a"
            " loop by hand, call self.method(...) and pof.with_reference(loader) yourself"
        )


def _is_plain(method: Method) -> bool:
    """Whether one pass of a method is that of plain training, with its loss."""
    plain = type(method).forward in {Finetune.forward, SharpnessAware.forward}
    return plain and getattr(method, "ascent_share", 1.0) == 1.0


def _is_plain_loss(loss: Any) -> bool:
    """Whether a loss is the cross-entropy without options."""
    smoothing, weights, _ = cross_entropy_options(loss) or (1.0, None, 0)
    return not smoothing and weights is None


class Use:
    """Whether a training step that is not ``base``'s own uses the method.

    One of another class, which may know nothing of the method, is refused at once; one that is written beside the
    method may take it up later, and is asked at the end of the first epoch, except about methods whose own step is the
    plain one: SAM is in the optimizer.  A compiled method is not asked, whose hooks would be compiled too.
    """

    def __init__(self, module: Any, base: type) -> None:
        first = next(kind for kind in type(module).__mro__ if "training_step" in vars(kind))
        own = first is base and "training_step" not in vars(module)
        self._foreign = not issubclass(first, base)
        method, uses = inner(module.method), [module.method]
        plain = _is_plain(method) and not self._foreign
        # A step of its own may do all that the method does by calling its loss: modules are watched, if not scripted.
        losses = (method.loss, unwrapped(method.loss)[0]) if plain else ()
        uses += [o for o in losses if isinstance(o, nn.Module) and not isinstance(o, torch.jit.ScriptModule)]
        matters = not own and not (plain and _is_plain_loss(method.loss))
        asked = matters and module.method._compiled_call_impl is None
        self._handles = [used.register_forward_pre_hook(self._note) for used in uses] if asked else []
        self._ran = self._trained = False
        step = f"the training_step of {first.__name__}"
        self._fault = f"{step} does not use the method, by calling self.method or self.method_loss"
        self._remedy = "let it return self.method_loss(batch)"
        self._unless = "it is to begin later" + " or computes the method's loss itself" * plain
        if self._foreign:
            classes = f"class {type(module).__name__}({base.__name__}, ...)"
            self._remedy += f", or inherit from {base.__name__} first, {classes}"

    def _note(self, *args: Any) -> None:
        self._ran = True

    def asked(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A training step that is asked until the method ran in it."""

        def run(*args: Any, **options: Any) -> Any:
            self._ran = False
            output = step(*args, **options)
            if self._handles and output is not None:
                self._trained = True
                if self._ran or self._foreign:
                    self.leave()
                if not self._ran and self._foreign:
                    raise ValueError(f"{self._fault}: {self._remedy}")
            return output

        return run

    def end_epoch(self) -> None:
        """Warn where an epoch went by without the method."""
        if self._handles and self._trained:
            self.leave()
            warnings.warn(
                f"in this epoch {self._fault}: {self._remedy}, unless {self._unless}",
                stacklevel=2,
            )

    def leave(self) -> None:
        """Take the hook off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
