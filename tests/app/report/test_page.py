from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from pof.app.report import Bounds, RunFigures, read_run, verdicts, write_report
from pof.app.report.figures import Figure, _heights, figures_of
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


class Texts(HTMLParser):
    """The text of each element, in the order of their start tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[list[str]] = []
        self._open: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        entry = [tag, ""]
        self.found.append(entry)
        if tag not in {"meta", "link"}:
            self._open.append(entry)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        for entry in self._open:
            entry[1] += data


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
    figures = ["training", "ray", "radius", "curvature", "calibration", "features"]
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


def test_the_verdict_comes_first(written: tuple[list[RunFigures], str]) -> None:
    """In the summary, before every other sentence and every table."""
    found = verdicts(written[0])
    assert [(v.name, v.before) for v in found] == [("pof", "before"), ("sam", "before")]
    texts = [" ".join(text.split()) for tag, text in Texts(written[1]).found if tag in {"h2", "p", "table"}]
    at = texts.index("Summary")
    assert texts[at + 1 : at + 3] == [v.sentences for v in found]


def test_nothing_is_said_of_networks_without_the_one_before(written: tuple[list[RunFigures], str]) -> None:
    alone = replace(written[0][0], subject=replace(written[0][0].subject, before=None))
    assert "verdict" not in {a.get("class") for a in Page(render([alone], [], [])).all("p")}


def test_legends_have_the_names_of_the_classes(written: tuple[list[RunFigures], str]) -> None:
    network = written[0][0]
    assert network.pictures is not None and network.pictures.classes == tuple(map(str, range(10)))
    classes = ("_hidden", "cost in $", "a name of twenty-four ab", *(f"class {i}" for i in range(7)))
    drawn = figures_of([replace(network, pictures=replace(network.pictures, classes=classes))])
    (picture,) = next(figure for figure in drawn if figure.key == "features").panels
    shown = [text.strip() for tag, text in Texts(picture.svg).found if tag == "text"]
    for name in ("_hidden", "cost in $", "a name of twenty-fo…", *classes[3:]):
        assert name in shown


def test_epochs_are_whole_numbers(figures: list[Figure]) -> None:
    training = next(figure for figure in figures if figure.key == "training").panels
    ticks = [text.strip() for tag, text in Texts(training[1].svg).found if tag == "text"]
    assert {"0", "1", "2"} <= set(ticks) and not {"0.5", "1.5", "0.0"} & set(ticks)


def test_axes_fit_the_dip_of_a_curve() -> None:
    shallow = torch.tensor([0.0, -0.1, 50.0])
    low, high = _heights([shallow, torch.tensor([0.0, 0.2, 9.0])])
    assert (low, high) == pytest.approx((-0.13, 0.53))  # five times the depth, and a margin of 5 %
    assert _heights([torch.tensor([0.0, 1.0, 2.0])]) == pytest.approx((-0.1, 2.1))  # no dip: all of it
    assert _heights([torch.tensor([0.0, -2.0, -1.0])]) == pytest.approx((-2.1, 0.1))


def test_far_radii_are_counted_in_the_place_of_stretching_the_axis(written: tuple[list[RunFigures], str]) -> None:
    network = written[0][0]
    assert network.radii is not None
    far = replace(network.radii.train, radius=torch.cat([network.radii.train.radius, torch.tensor([1e3]).double()]))
    far = replace(far, bounded=torch.ones(len(far.radius), dtype=torch.bool))
    plain, other = (
        next(f for f in figures_of([replace(network, radii=radii)]) if f.key == "radius")
        for radii in (network.radii, replace(network.radii, train=far))
    )
    assert "not drawn" not in plain.caption
    assert other.caption.endswith("1 radii beyond four times the largest median are not drawn.")
    assert not [text for tag, text in Texts(other.panels[0].svg).found if tag == "text" and text.strip() == "1000"]


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


def test_a_name_that_looks_like_a_colour_is_drawn_as_it_is() -> None:
    with drawing() as ax:
        ax.plot([0, 1], label="#d55e00", color="#d55e00")
        ax.legend()
        svg = panel(ax, "one", "", "a line").svg
    assert ">#d55e00</text>" in svg and "stroke: var(--vermilion)" in svg
