from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from pof.app.report import Bounds, RunFigures, read_run, write_report
from pof.app.report.figures import Figure, figures_of
from pof.app.report.page import render, settings
from pof.app.report.svg import drawing, inline, panel

BOUNDS = Bounds(2, 32, torch.device("cpu"))


class Page(HTMLParser):
    """Start tags with their attributes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def written(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[RunFigures], str]:
    out = tmp_path_factory.mktemp("report") / "new" / "report.html"
    networks = write_report([read_run(runs / "pof"), read_run(runs / "sam")], out, BOUNDS)
    return networks, out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def figures(written: tuple[list[RunFigures], str]) -> list[Figure]:
    return figures_of(written[0])


def test_the_page_needs_nothing_else(written: tuple[list[RunFigures], str]) -> None:
    page = Page(written[1])
    assert not [tag for tag in ("script", "img", "iframe", "object", "embed") if page.all(tag)]
    links = [a.get("href") or a.get("xlink:href") or "" for _, a in page.tags if "href" in a or "xlink:href" in a]
    assert links
    assert not [link for link in links if not link.startswith(("#", "data:"))]
    assert not re.findall(r"@import|url\((?!#)", written[1])


def test_identifiers_are_unique_and_references_are_there(written: tuple[list[RunFigures], str]) -> None:
    page = Page(written[1])
    known = [a["id"] for _, a in page.tags if "id" in a]
    assert len(known) == len(set(known))
    named = [a[key] for _, a in page.tags for key in ("aria-labelledby", "aria-describedby") if key in a]
    anchors = re.findall(r'(?:href="|url\()#([^")]+)', written[1])
    assert set(named) | set(anchors) <= set(known)


def test_the_order_is_summary_figures_configuration_environment(written: tuple[list[RunFigures], str]) -> None:
    found = [a["id"] for a in Page(written[1]).all("h2")]
    figures = ["training", "ray", "radius", "curvature", "plane", "calibration", "features"]
    assert found == ["summary", *figures, "configuration", "environment"]


def test_every_figure_has_a_caption_and_every_picture_a_text(
    written: tuple[list[RunFigures], str], figures: list[Figure]
) -> None:
    assert all(figure.caption.endswith(".") for figure in figures)
    panels = [p for figure in figures for p in figure.panels]
    assert len(Page(written[1]).all("svg")) == len(panels)
    for p in panels:
        assert len(p.description) > 30
        assert not re.search(r"\b(nan|inf|None)\b", p.description)


def test_figures_have_no_fixed_black(figures: list[Figure]) -> None:
    panels = [p for figure in figures for p in figure.panels]
    # viridis' own colours stay in the picture of the features.
    assert not [p for p in panels if re.search("#000000|#333333|#ffffff", p.svg)]
    assert all("var(--" in p.svg for p in panels)


def test_names_are_escaped(written: tuple[list[RunFigures], str]) -> None:
    network = written[0][0]
    named = replace(network, subject=replace(network.subject, name="<script>&"))
    page = render([named], [], ["<b>"])
    assert "<script>" not in page
    assert "&lt;script&gt;&amp;" in page
    assert '<p class="note">&lt;b&gt;</p>' in page


def test_a_dollar_in_a_name_is_no_formula(written: tuple[list[RunFigures], str]) -> None:
    """It was found by matplotlib after all measuring, where what follows is no formula."""
    named = [replace(n, subject=replace(n.subject, name=f"$\\frac{i}$")) for i, n in enumerate(written[0])]
    drawn = "".join(panel.svg for figure in figures_of(named) for panel in figure.panels)
    assert "$\\frac0$" in drawn


def test_settings_mark_what_differs() -> None:
    found = settings({"a": {"x": {"lr": 0.1, "none": None}, "list": [1, 2]}, "b": {"x": {"lr": 0.2, "none": None}}})
    assert found.names == ["a", "b"]
    assert found.rows == [("x.lr", ["0.1", "0.2"], True), ("x.none", ["–", "–"], False), ("list", ["1 2", "–"], True)]


def test_inline_svg_is_named_and_made_unique() -> None:
    document = (
        '<?xml version="1.0"?><svg height="9pt" viewBox="0 0 3 2"><style>*{}</style><defs><path id="m1"/></defs>'
        '<use xlink:href="#m1" style="stroke: #000000; fill: #123456"/><g clip-path="url(#m1)"/></svg>'
    )
    found = inline(document, "one", "a < b")
    assert found.startswith('<svg viewBox="0 0 3 2" role="img" aria-labelledby="one-alt"><desc id="one-alt">a &lt; b<')
    assert 'id="one-m1"' in found and 'href="#one-m1"' in found and "url(#one-m1)" in found
    assert "stroke: var(--ink); fill: #123456" in found
    assert "<style>" not in found


def test_drawing_leaves_the_settings_of_matplotlib_alone() -> None:
    from matplotlib import rcParams

    before = {key: rcParams[key] for key in ("font.size", "svg.fonttype", "axes.edgecolor")}
    with drawing() as ax:
        assert rcParams["svg.fonttype"] == "none"
        assert "<text" in panel(ax, "p", "", "axes").svg
    assert {key: rcParams[key] for key in before} == before
