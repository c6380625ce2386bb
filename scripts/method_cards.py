"""For the documentation site: every method card is in the navigation, without a list to keep.

An MkDocs hook, named in mkdocs.yml.  PoF comes first, the control of every comparison last.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

FIRST, LAST = "pof.md", "finetune.md"


def on_config(config: Any) -> Any:
    """Fill the section Methods of the navigation.

    Args:
        config: of the site.

    Returns:
        The configuration.
    """
    names = [path.name for path in sorted(Path(config["docs_dir"], "methods").glob("*.md"))]
    names.sort(key=lambda name: (name != FIRST, name == LAST))
    section = next(entry for entry in config["nav"] if isinstance(entry, dict) and "Methods" in entry)
    section["Methods"] = [f"methods/{name}" for name in names]
    return config
