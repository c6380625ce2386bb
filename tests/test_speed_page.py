"""The tables of docs/speed.md are those of the committed JSONs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def script() -> Any:
    spec = importlib.util.spec_from_file_location("speed_page", ROOT / "scripts" / "speed_page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_what_was_measured() -> None:
    page = (ROOT / "docs" / "speed.md").read_text()
    assert script().rendered(page) == page, "run python scripts/speed_page.py"
    assert page.count("\n| ---") == 5


def test_a_page_without_a_place_for_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="one place for the table 'steps'; it has 0"):
        script().rendered("")
