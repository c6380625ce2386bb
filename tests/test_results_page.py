"""The tables of results.md, improve.md and the README, and the first figure, are those of the committed JSONs."""

from __future__ import annotations

import csv
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


def test_a_row_of_settings_is_of_the_seeds_of_its_files() -> None:
    """Computed here from the test errors of each seed; a row of a second file is against the control of that file."""

    def errors(name: str, method: str) -> list[float]:
        with (ROOT / "benchmarks" / "results" / f"{name}.csv").open(newline="") as file:
            return [100 * float(row["error"]) for row in csv.DictReader(file) if row["method"] == method]

    page = rendered("<!-- settings: birds, birds-delta; birds-30 -->\n<!-- end -->").splitlines()
    rows = {line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in page if line.startswith("| ")}
    for method, names in {"delta": ("birds-delta", "birds-30"), "lp-ft": ("birds", "birds-30")}.items():
        for place, name in zip((1, 4), names, strict=True):
            found, control = errors(name, method), errors(name, "finetune")
            assert rows[method][place].startswith(f"{statistics.mean(found):.2f} ± ")
            assert rows[method][place + 1].startswith(f"{statistics.mean(found) - statistics.mean(control):+.2f} [")
    assert rows["finetune"][1].startswith(f"{statistics.mean(errors('birds', 'finetune')):.2f} ± ")
    assert "`birds-delta.json`" in page[-2] and "delta (strength 1)" in page[-2]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ("fashion-mnist-sizes; birds-30", r"one setting; these files have 2,000 images, 20,000 images"),
        ("birds, birds-30", r"one setting; these files have 15 %, 30 %"),
        ("fashion-mnist-few; birds-30", r"birds-30\.json has 'finetune' with other options"),
    ],
)
def test_a_column_has_one_setting_and_a_method_the_same_options_in_all(columns: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        rendered(f"<!-- settings: {columns} -->\n<!-- end -->")


def test_a_column_of_widths_is_of_its_width() -> None:
    file = json.loads((ROOT / "benchmarks" / "results" / "width-digits.json").read_text())["widths"]
    page = rendered("<!-- width-digits+width-fashion-mnist: sam auto; head-ascent 0.5 -->\n<!-- end -->").splitlines()
    heads, rows = page[1].split(" | "), [line.split(" | ") for line in page[3:8]]
    assert heads[1:4] == ["digits x1", "digits x4", "digits x16"]
    assert rows[0][1:4] == ["20", "20", "5"]
    for place, found in enumerate(file.values(), start=1):
        gain = next(entry["to_incoming"] for entry in found["entries"] if entry["method"] == "sam auto")
        assert rows[2][place].strip("*").startswith(f"{100 * gain['mean']:+.2f} [")
        assert rows[2][place].startswith("**") == (gain["p_holm"] < 0.05)
        assert rows[4][place].startswith(f"{100 * found['shares']['fc']['mean']:.2f} ± ")
    assert rows[3][heads.index("Fashion-MNIST x1")].startswith("–")
