"""For the documentation site: references such as :func:`pof.split` in docstrings become links, ``::`` blocks code.

A Griffe extension, named in mkdocs.yml.  Docstrings keep the notation that editors and ``help()`` readers know.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|mod|attr|data):`(?P<short>~?)(?P<target>[\w.]+)`")
LITERAL_BLOCK = re.compile(r"::[ ]*\n(?=\n[ ]{4})")


class DocstringRoles(griffe.Extension):
    """Rewrite docstrings once the whole package is loaded, so that targets can be looked up."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrite all docstrings of a package.

        Args:
            pkg: the package.
            **kwargs: what else Griffe offers.
        """
        _rewrite(pkg, pkg)


def _rewrite(thing: griffe.Object, package: griffe.Module) -> None:
    if thing.docstring is not None:
        text = LITERAL_BLOCK.sub(":\n", thing.docstring.value)
        thing.docstring.value = ROLE.sub(lambda match: _link(match, thing, package), text)
    for member in thing.members.values():
        if not member.is_alias:
            _rewrite(member, package)  # type: ignore[arg-type]


def _link(match: re.Match[str], scope: griffe.Object, package: griffe.Module) -> str:
    """Link to public objects; what is private or not ours stays code."""
    target = match["target"]
    shown = target.rsplit(".", 1)[-1] if match["short"] else target
    for path in (target, *(f"{parent.path}.{target}" for parent in _with_parents(scope))):
        public = not any(part.startswith("_") for part in path.split(".")[1:])
        if public and path.startswith(f"{package.path}.") and (found := _canonical(path, package)):
            return f"[`{shown}`][{found}]"
    return f"`{shown}`"


def _with_parents(thing: griffe.Object) -> list[griffe.Object]:
    return [thing, *_with_parents(thing.parent)] if thing.parent is not None else [thing]


def _canonical(path: str, package: griffe.Module) -> str | None:
    """The path of an object; a function that hides the module of its own name is meant where the module is named."""
    try:
        found = package[path.removeprefix(f"{package.path}.")]
        twin = found.members.get(found.name) if found.is_module else None
        return str((twin or found).canonical_path)
    except (KeyError, griffe.AliasResolutionError):
        return None
