"""The tables of docs/speed.md are those of the committed JSONs."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
rendered = runpy.run_path(str(ROOT / "scripts" / "speed_page.py"))["rendered"]


def test_the_page_shows_what_was_measured() -> None:
    page = (ROOT / "docs" / "speed.md").read_text()
    assert rendered(page) == page, "run python scripts/speed_page.py"
    assert page.count("\n| ---") == 6


def test_a_page_without_a_place_for_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="one place for the table 'steps'; it has 0"):
        rendered("")
