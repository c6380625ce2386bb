"""Whether a LightningModule with a method trains with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pof.methods import Method


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


class Use:
    """Whether the training step of another class, which may know nothing of the method, uses it.

    One that is written beside the method may take it up later.  A compiled method is not asked, whose hooks would be
    compiled too.
    """

    def __init__(self, module: Any, base: type) -> None:
        first = next(kind for kind in type(module).__mro__ if "training_step" in vars(kind))
        asked = not issubclass(first, base) and module.method._compiled_call_impl is None
        self._handle = module.method.register_forward_pre_hook(self._note) if asked else None
        self._ran = False
        self._refusal = (
            f"the training_step of {first.__name__} does not use the method: let it return self.method_loss(batch),"
            f" or inherit from {base.__name__} first, class {type(module).__name__}({base.__name__}, ...)"
        )

    def _note(self, *args: Any) -> None:
        self._ran = True

    def asked(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A training step that is refused where it is the first to give a loss, and the method did not run in it."""

        def run(*args: Any, **options: Any) -> Any:
            self._ran = False
            output = step(*args, **options)
            if self._handle is not None and output is not None:
                self.leave()
                if not self._ran:
                    raise ValueError(self._refusal)
            return output

        return run

    def leave(self) -> None:
        """Take the hook off."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
