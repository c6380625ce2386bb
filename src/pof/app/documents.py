"""YAML that people write: nothing said twice, nothing that expands without end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MOST_VALUES = 100_000
MOST_BYTES = 10_000_000


class DocumentError(ValueError):
    """YAML that is not taken; the message says where."""


def text_of(path: str | Path) -> str:
    """The text of a YAML file; a FIFO or a device, which would never end, and what is too large are refused."""
    file = Path(path)
    if file.exists() and not file.is_file():
        raise DocumentError(f"{path} is no file")
    if file.exists() and file.stat().st_size > MOST_BYTES:
        raise DocumentError(f"{path} has {file.stat().st_size} bytes; a file of options has at most {MOST_BYTES}")
    return file.read_text(encoding="utf-8")


def read_yaml(text: str, where: object) -> Any:
    """Read YAML as plain values; a yaml.YAMLError if it is none."""
    import yaml

    loader = yaml.SafeLoader(text)
    node = loader.get_single_node()
    if node is not None and _count(node, str(where), {}) > MOST_VALUES:
        raise DocumentError(f"{where} has more than {MOST_VALUES} values, its aliases (*name) written out")
    return None if node is None else loader.construct_document(node)


def _count(node: Any, where: str, known: dict[int, int]) -> int:
    """Count the values of a node with its aliases written out, and refuse keys that are there twice."""
    place = f"{where}, line {node.start_mark.line + 1}"
    if known.setdefault(id(node), 0):
        return known[id(node)]
    if isinstance(node.value, str):
        return 1
    known[id(node)] = MOST_VALUES + 1  # met again before it is counted: it contains itself
    pairs = node.value if node.id == "mapping" else [(None, item) for item in node.value]
    names = [key.value for key, _ in pairs if key is not None and isinstance(key.value, str)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DocumentError(f"{place}: the key {twice!r} is given twice")
    known[id(node)] = 1 + sum(_count(item, where, known) for _, item in pairs)
    return known[id(node)]
