"""The tables of docs/results.md and of the README, and the first figure, are those of the committed JSONs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def script() -> Any:
    spec = importlib.util.spec_from_file_location("results_page", ROOT / "scripts" / "results_page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["docs/results.md", "README.md"])
def test_the_page_shows_what_was_measured(name: str) -> None:
    page = (ROOT / name).read_text()
    assert script().rendered(page) == page, "run python scripts/results_page.py"
    assert "<!-- end -->" in page


def test_the_results_are_a_page_that_one_can_read() -> None:
    assert len((ROOT / "docs" / "results.md").read_text().splitlines()) <= 250


def test_a_method_that_was_not_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"digits\.json has no method 'sgdd'"):
        script().rendered("<!-- digits: finetune; sgdd -->\n<!-- end -->")
