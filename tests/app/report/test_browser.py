"""The report in a real browser: no errors, everything has a size and a text, numbers are those of the files."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from pof.app.experiment.pages import write_pages
from pof.app.experiment.plan import make_plan
from pof.app.experiment.recipe import parse_recipe
from pof.app.report import Bounds, read_run, write_report
from tests.app.experiment.test_summary import RECIPE, rows

selenium = pytest.importorskip("selenium", reason="a browser is driven by selenium: pip install selenium")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None, reason="needs Chromium and its driver: apt-get install chromium chromium-driver"
)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SHADES = ("light", "dark")


@pytest.fixture(scope="module")
def page(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    write_report([read_run(runs / "pof"), read_run(runs / "sam")], out, Bounds(2, 32, torch.device("cpu")))
    return out


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=str(DRIVER)))
    yield driver
    driver.quit()


def opened(browser: Any, page: Path, width: int, shade: str = "light") -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": shade}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page.as_uri())
    WebDriverWait(browser, 120).until(lambda _: browser.execute_script("return document.readyState") == "complete")
    keep_picture(browser, width, shade)
    return browser


def keep_picture(browser: Any, width: int, shade: str) -> None:
    # For people: set POF_SCREENSHOTS to a folder and look at them.
    folder = os.environ.get("POF_SCREENSHOTS")
    if folder:
        height = browser.execute_script("return document.documentElement.scrollHeight")
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.save_screenshot(str(Path(folder) / f"report-{width}-{shade}.png"))


@pytest.mark.parametrize("shade", SHADES)
@pytest.mark.parametrize("width", [1280, 400])
def test_it_opens_without_errors_and_without_the_network(browser: Any, page: Path, width: int, shade: str) -> None:
    opened(browser, page, width, shade)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_does_not_scroll_sideways_but_tables_may(browser: Any, page: Path, width: int) -> None:
    opened(browser, page, width)
    root = "const r = document.documentElement; return [r.scrollWidth, r.clientWidth, innerWidth]"
    needed, given, window = browser.execute_script(root)
    assert needed == given
    assert window == width
    outside = browser.execute_script(
        "return [...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, svg') &&"
        " e.getBoundingClientRect().right > document.documentElement.clientWidth).map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []
    boxes = "return [...document.querySelectorAll('.scroll')].map(e => [e.tabIndex, getComputedStyle(e).overflowX])"
    assert browser.execute_script(boxes) == [[0, "auto"]] * 3


@pytest.mark.parametrize("width", [1280, 400])
def test_every_figure_has_size_caption_and_text(browser: Any, page: Path, width: int) -> None:
    opened(browser, page, width)
    found = browser.execute_script(
        "return [...document.querySelectorAll('svg')].map(e => { const box = e.getBoundingClientRect();"
        " return [box.width, box.height, e.getAttribute('role'), e.closest('figure') !== null] })"
    )
    # Of three networks: four training curves, two spectra, and four figures with a panel for each.
    assert len(found) == 18
    for wide, high, role, in_figure in found:
        assert wide > 200
        assert high > 150
        assert role == "img"
        assert in_figure
    captions = (
        "return [...document.querySelectorAll('figure')].map(e => e.querySelector('figcaption').innerText.length)"
    )
    assert min(browser.execute_script(captions)) > 80
    by_id = {n["backendDOMNodeId"]: n for n in accessible(browser) if n["role"]["value"] in {"image", "img"}}
    names = [n["name"]["value"] for n in by_id.values()]
    assert len(names) == 18
    assert min(map(len, names)) > 30


def accessible(browser: Any) -> list[dict[str, Any]]:
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    return [n for n in nodes if not n.get("ignored")]


def test_landmarks_headings_and_the_way_to_them(browser: Any, page: Path) -> None:
    opened(browser, page, 1280)
    roles = [n["role"]["value"] for n in accessible(browser)]
    for role in ("main", "navigation", "banner", "contentinfo", "rowheader", "columnheader"):
        assert role in roles, role
    levels = browser.execute_script("return [...document.querySelectorAll('h1,h2,h3')].map(e => +e.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    from selenium.webdriver.common.keys import Keys

    browser.switch_to.active_element.send_keys(Keys.TAB)
    first = browser.switch_to.active_element
    assert first.text == "Skip to the summary"
    assert first.rect["x"] >= 0
    first.send_keys(Keys.ENTER)
    assert browser.execute_script("return document.activeElement.id") == "summary"


def test_numbers_are_those_of_the_files(browser: Any, page: Path, runs: Path) -> None:
    opened(browser, page, 1280)
    table = browser.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('#summary-table tr[data-key]')].map(r =>"
        " [r.dataset.key, [...r.querySelectorAll('data')].map(d => [d.value, d.innerText])]))"
    )
    assert {"brier", "scaled_ece", "top_eigenvalue", "trace", "sharpness", "radius_ratio"} <= set(table)
    results = {name: json.loads((runs / name / "result.json").read_text()) for name in ("pof", "sam")}
    tests = [results["pof"]["test_before"], results["pof"]["test_after"], results["sam"]["test_after"]]
    for key, form in (("error", "{:.2f} %"), ("ece", "{:.2f} %"), ("nll", "{:.4f}")):
        scale = 100 if "%" in form else 1
        assert [float(value) for value, _ in table[key]] == [test[key] for test in tests]
        assert [text for _, text in table[key]] == [form.format(scale * test[key]) for test in tests]
    kept = [validation_error(runs / "pof", 0)]
    kept += [validation_error(runs / name, results[name]["best_epoch"]) for name in ("pof", "sam")]
    assert [float(value) for value, _ in table["validation_error"]] == kept


def validation_error(folder: Path, epoch: int) -> float:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return next(float(r["val_error"]) for r in rows if r["event"] == "epoch" and r["epoch"] == epoch)


@pytest.mark.parametrize("width", [1280, 400])
def test_the_methods_of_an_experiment_stay_while_its_table_scrolls(browser: Any, tmp_path: Path, width: int) -> None:
    write_pages(make_plan(parse_recipe(RECIPE)), rows(), tmp_path)
    opened(browser, tmp_path / "report.html", width)
    places = (
        "document.querySelector('.scroll').scrollLeft = arguments[0]; const left = e => e.getBoundingClientRect().left;"
        " return [[...document.querySelectorAll('#results thead th:first-child, #results th[scope=row], .group span')]"
        ".map(left), left(document.querySelector('#results td')), document.documentElement.scrollWidth]"
    )
    first, cell, _ = browser.execute_script(places, 0)
    scrolled, moved, needed = browser.execute_script(places, 200)
    assert len(first) == 7 and scrolled == first  # the head, four methods, two settings
    assert moved == cell - 200
    assert needed <= width


@pytest.mark.parametrize("shade", SHADES)
def test_text_stands_out_from_its_ground(browser: Any, page: Path, shade: str) -> None:
    opened(browser, page, 1280, shade)
    style = "const s = getComputedStyle(document.documentElement); return {n}.map(n => s.getPropertyValue('--' + n))"
    names = ["ground", "paper", "ink", "muted", "accent", "vermilion", "sky", "blue", "orange"]
    colors = dict(zip(names, browser.execute_script(style.replace("{n}", str(names))), strict=True))
    for ground in ("ground", "paper"):
        # WCAG 2.2: 4.5 for text, 3 for what is drawn.
        assert min(contrast(colors[ground], colors[n]) for n in ("ink", "muted", "accent")) >= 4.5
        assert min(contrast(colors[ground], colors[n]) for n in ("vermilion", "sky", "blue", "orange")) >= 3.0
    fills = browser.execute_script(
        "return [...new Set([...document.querySelectorAll('svg text')].map(e => getComputedStyle(e).fill))]"
    )
    paper = rgb(colors["paper"])
    for fill in fills:
        assert ratio(luminance(paper), luminance([int(v) for v in re.findall(r"\d+", fill)[:3]])) >= 4.5, fill


def contrast(one: str, other: str) -> float:
    return ratio(luminance(rgb(one)), luminance(rgb(other)))


def ratio(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def rgb(color: str) -> list[int]:
    digits = color.strip().lstrip("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    return [int(digits[i : i + 2], 16) for i in (0, 2, 4)]


def luminance(color: list[int]) -> float:
    linear = [v / 255 / 12.92 if v / 255 <= 0.04045 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
