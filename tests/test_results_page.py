"""The tables of docs/results.md and of the README, and the first figure, are those of the committed JSONs."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = runpy.run_path(str(ROOT / "scripts" / "results_page.py"))
rendered = PAGE["rendered"]


@pytest.mark.parametrize("name", ["docs/results.md", "README.md"])
def test_the_page_shows_what_was_measured(name: str) -> None:
    page = (ROOT / name).read_text()
    assert rendered(page) == page, "run python scripts/results_page.py"
    assert "<!-- end -->" in page


def test_the_figure_is_drawn_from_the_same() -> None:
    found = PAGE["draw"]()
    assert found == PAGE["FIGURE"].read_text(), "run python scripts/results_page.py"


def test_the_results_are_a_page_that_one_can_read() -> None:
    assert len((ROOT / "docs" / "results.md").read_text().splitlines()) <= 250


def test_a_method_that_was_not_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"digits\.json has no method 'sgdd'"):
        rendered("<!-- digits: finetune; sgdd -->\n<!-- end -->")
