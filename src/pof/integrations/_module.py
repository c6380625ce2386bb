"""Whether a LightningModule with a method trains with it."""

from __future__ import annotations

from typing import Any

from pof.methods import Method


def check_module(module: Any, base: type) -> None:
    """Refuse one of ``base`` without a method, or with optimization by hand."""
    name = type(module).__name__
    if not isinstance(getattr(module, "method", None), Method):
        raise ValueError(f"{name} needs self.method, such as self.method = pof.PoF(model)")
    if not module.automatic_optimization:
        raise ValueError(
            f"{base.__name__} needs automatic_optimization=True: in a loop by hand, call self.method(...) and"
            " pof.with_reference(loader) yourself"
        )


class Use:
    """Whether a method runs before the first step: a training step of another class may know nothing of it.

    A compiled method is not asked, whose hooks would be compiled too.
    """

    def __init__(self, method: Method) -> None:
        self._ran = False
        compiled = method._compiled_call_impl is not None
        self._handle = None if compiled else method.register_forward_pre_hook(self._note)

    def _note(self, *args: Any) -> None:
        self._ran = True

    def check(self, module: Any, base: type) -> None:
        """Refuse a module whose gradients came about without its method."""
        if self._handle is None or all(parameter.grad is None for parameter in module.parameters()):
            return
        self.leave()
        if not self._ran:
            first = next(kind for kind in type(module).__mro__ if "training_step" in vars(kind))
            raise ValueError(
                f"the training_step of {first.__name__} does not use the method: let it return self.method_loss(batch),"
                f" or inherit from {base.__name__} first, class {type(module).__name__}({base.__name__}, ...)"
            )

    def leave(self) -> None:
        """Take the hook off."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
