"""Post-training of feature extractors (PoF, ICML 2022) and its relatives, for any PyTorch classifier.

The public names and where they live are in ``__init__.pyi``.  Each is imported when it is first used (PEP 562): a help
text of the command line needs no torch.
"""

import ast
from importlib import import_module, metadata
from pathlib import Path
from typing import Any


def _public_names(file: Path) -> dict[str, str]:
    """Map each name that a file imports from the package to its module; a star stands for a package's own imports."""
    found: dict[str, str] = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            if node.names[0].name == "*":
                found |= _public_names(file.parent.joinpath(*node.module.split(".")[1:], "__init__.py"))
            else:
                found |= {alias.name: node.module for alias in node.names}
    return found


_PUBLIC = _public_names(Path(__file__).with_suffix(".pyi"))
__all__ = sorted(name for name, module in _PUBLIC.items() if module != "pof")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("pof")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'pof' has no attribute {name!r}")
    module = _PUBLIC[name]
    value = import_module(f"pof.{name}") if module == "pof" else getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, "__version__"})
