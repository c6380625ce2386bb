"""YAML that people write: nothing said twice, nothing that expands without end."""

from __future__ import annotations

from typing import Any

MOST_VALUES = 100_000


class DocumentError(ValueError):
    """YAML that is not taken; the message says where."""


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
