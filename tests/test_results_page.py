"""The tables of results.md, improve.md and the README, and the first figure, are those of the committed JSONs."""

from __future__ import annotations

import json
import runpy
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = runpy.run_path(str(ROOT / "scripts" / "results_page.py"))
rendered = PAGE["rendered"]


@pytest.mark.parametrize("name", ["docs/results.md", "docs/improve.md", "README.md"])
def test_the_page_shows_what_was_measured(name: str) -> None:
    page = (ROOT / name).read_text()
    assert rendered(page) == page, "run python scripts/results_page.py"
    assert "<!-- end -->" in page


def test_the_figure_is_drawn_from_the_same() -> None:
    found = PAGE["draw"]()
    assert found == PAGE["FIGURE"].read_text(), "run python scripts/results_page.py"


def test_the_results_are_a_page_that_one_can_read() -> None:
    assert len((ROOT / "docs" / "results.md").read_text().splitlines()) <= 250


@pytest.mark.parametrize("name", ["digits", "improve-digits"])
def test_a_method_that_was_not_run_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}\.json has no method 'sgdd'"):
        rendered(f"<!-- {name}: sam auto; sgdd -->\n<!-- end -->")


def test_the_table_of_a_search_is_of_its_seeds() -> None:
    """Computed here from the test errors of each seed."""
    file = json.loads((ROOT / "benchmarks" / "results" / "improve-cifar10.json").read_text())
    (found,) = file["found"].values()
    gains = [seed["test"]["improve"]["error"] - seed["test"]["incoming"]["error"] for seed in found["seeds"].values()]
    over = [seed["test"]["improve"]["error"] - seed["test"]["sam auto"]["error"] for seed in found["seeds"].values()]
    page = rendered("<!-- improve-cifar10: improve; sam auto -->\n<!-- end -->").splitlines()
    assert len(page) == 9 and page[1].startswith("| method |")
    assert f"| {100 * statistics.mean(gains):+.2f} [" in page[4]
    assert f"| {100 * statistics.mean(over):+.2f} [" in page[5]
    summary = rendered("<!-- searches: improve-cifar10; improve-digits -->\n<!-- end -->").splitlines()
    assert f"| 5 | 41.50 ± 2.24 | {100 * statistics.mean(gains):+.2f} [" in summary[3]
