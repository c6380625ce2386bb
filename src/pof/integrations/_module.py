"""Whether a LightningModule with a method trains with it."""

from __future__ import annotations

from typing import Any

from pof.methods import Method


def check_module(module: Any, base: type) -> None:
    """Refuse one of ``base`` without a method, with optimization by hand, or with another class's training step."""
    name = type(module).__name__
    if not isinstance(getattr(module, "method", None), Method):
        raise ValueError(f"{name} needs self.method, such as self.method = pof.PoF(model)")
    if not module.automatic_optimization:
        raise ValueError(
            f"{base.__name__} needs automatic_optimization=True: in a loop by hand, call self.method(...) and"
            " pof.with_reference(loader) yourself"
        )
    first = next(kind for kind in type(module).__mro__ if "training_step" in vars(kind))
    code = getattr(vars(first)["training_step"], "__code__", None)
    if not issubclass(first, base) and code is not None and not {"method_loss", "method"} & set(code.co_names):
        raise ValueError(
            f"the training_step of {first.__name__} comes before that of {base.__name__} and does not use the method:"
            f" inherit from {base.__name__} first, class {name}({base.__name__}, {first.__name__})"
        )
