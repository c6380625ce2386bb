"""Summary and pages of made-up rows: pairing, family of tests, what is said about compute, and the four formats."""

from __future__ import annotations

import html
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from pof.app.experiment.pages import cells, check_replaceable, header, headline, latex, markdown, reading, write_pages
from pof.app.experiment.plan import Plan, make_plan
from pof.app.experiment.recipe import parse_recipe
from pof.app.experiment.statistics import holm
from pof.app.experiment.summary import summarise
from pof.app.experiment.table import ResultRow

SEEDS = range(4)
RECIPE: dict[str, Any] = {
    "name": "made-up",
    "seeds": len(SEEDS),
    "data": {"data": "digits"},
    "model": {"model": "small-cnn"},
    "pretrain": {},
    "settings": {"10 %": {}, "all_<&>": {}},
    "methods": {"sgd": {"method": "finetune"}, "pof & co": {"method": "pof"}},
    "control": "sgd",
}
ERRORS = {"sgd": [0.050, 0.061, 0.055, 0.048], "pof & co": [0.047, 0.052, 0.053, 0.046]}
INCOMING = [0.052, 0.060, 0.057, 0.049]


def row(setting: str, method: str, seed: int, **parts: Any) -> ResultRow:
    error, before = ERRORS[method][seed], INCOMING[seed]
    values: dict[str, Any] = {name: None for name in ("stopped", "pretrain_stopped", "radius")}
    for name, scale in {"error": 1.0, "nll": 3.0, "ece": 0.5, "val_error": 2.0, "val_nll": 4.0}.items():
        values |= {name: scale * error, f"{name}_before": scale * before}
    values |= {
        f"{name}_last": before + 3 * (values[name] - before)
        for name, before in ((name, values[f"{name}_before"]) for name in ("val_error", "val_nll"))
    }
    units = 4.0 if method == "sgd" else 4 / 3 * 3
    made = {"epochs": 4 if method == "sgd" else 3, "units": units, "best_epoch": 2, "seconds": 1.0}
    folder = f"runs/{method}-{seed}"
    return ResultRow(
        **{"setting": setting, "method": method, "seed": seed, **values, **made, "folder": folder, "commit": "abc"}
        | parts
    )


def rows() -> list[ResultRow]:
    return [row(setting, method, seed) for setting in RECIPE["settings"] for seed in SEEDS for method in ERRORS]


@pytest.fixture
def plan() -> Plan:
    return make_plan(parse_recipe(RECIPE))


def test_comparisons_are_paired_by_seed_and_corrected_as_one_family(plan: Plan) -> None:
    summary = summarise(plan, rows())
    assert [(e.setting, e.method) for e in summary.entries] == [(s, m) for s in RECIPE["settings"] for m in ERRORS]
    assert (summary.runs, summary.planned, summary.comparisons) == (16, 16, 6)
    sgd, ours = summary.entries[:2]
    assert sgd.to_control is None
    assert ours.figures.mean == pytest.approx(0.0495)
    p = [
        stats.ttest_rel(ERRORS["sgd"], INCOMING).pvalue,
        stats.ttest_rel(ERRORS["pof & co"], INCOMING).pvalue,
        stats.ttest_rel(ERRORS["pof & co"], ERRORS["sgd"]).pvalue,
    ]
    tests = [sgd.to_incoming, ours.to_incoming, ours.to_control]
    assert [test and test.p for test in tests] == pytest.approx(p, rel=1e-9)
    assert [test and test.p_holm for test in tests] == pytest.approx(holm([*p, *p])[:3], rel=1e-9)
    assert ours.to_control is not None and ours.to_control.mean == pytest.approx(-0.004)


def test_only_seeds_that_both_have_are_paired(plan: Plan) -> None:
    part = [r for r in rows() if not (r.method == "sgd" and r.seed == 1)]
    summary = summarise(plan, part)
    ours = summary.entries[1]
    assert ours.figures.n == 4
    assert ours.to_control is not None and ours.to_control.n == 3
    assert "14 of 16 runs are finished." in reading(summary)


def test_one_seed_and_no_control_give_no_p(plan: Plan) -> None:
    summary = summarise(plan, [r for r in rows() if r.seed == 0])
    assert summary.comparisons == 0
    assert "Without p: one seed: no test." in reading(summary)
    alone = make_plan(parse_recipe({**RECIPE, "control": None}))
    assert all(e.to_control is None for e in summarise(alone, rows()).entries)
    assert not any("sgd" in name for name in header(summarise(alone, rows())))


def test_a_new_head_has_no_incoming_figure(plan: Plan) -> None:
    new = [replace(r, error_before=None) for r in rows()]
    summary = summarise(plan, new)
    assert all(e.to_incoming is None and e.before is None for e in summary.entries)
    assert header(summary)[-5] == "minus sgd"
    assert len(header(summary)) == len(cells(summary.entries[0], summary)) == 11


@pytest.mark.parametrize(("measure", "scale"), [("nll", 3.0), ("ece", 0.5), ("val_error", 2.0), ("val_nll", 4.0)])
def test_other_measures(plan: Plan, measure: Any, scale: float) -> None:
    entry = summarise(plan, rows(), measure).entries[1]
    assert entry.figures.mean == pytest.approx(0.0495 * scale)
    assert entry.to_incoming is not None and entry.to_incoming.mean == pytest.approx(-0.005 * scale)
    with pytest.raises(ValueError, match="got 'accuracy'"):
        summarise(plan, rows(), "accuracy")  # type: ignore[arg-type]


@pytest.mark.parametrize(("measure", "scale"), [("val_error_last", 2.0), ("val_nll_last", 4.0)])
def test_measures_of_the_last_epoch_against_the_incoming_network(plan: Plan, measure: Any, scale: float) -> None:
    entry = summarise(plan, rows(), measure).entries[1]
    assert entry.before is not None and entry.before.mean == pytest.approx(0.0545 * scale)
    assert entry.to_incoming is not None and entry.to_incoming.mean == pytest.approx(3 * -0.005 * scale)


def test_unequal_compute_is_said(plan: Plan) -> None:
    assert not any("Not equal" in note for note in reading(summarise(plan, rows())))
    costly = [replace(r, units=8.0) if r.method != "sgd" else r for r in rows()]
    assert "Not equal compute: more than one epoch's units from the control's: pof & co (8)." in reading(
        summarise(plan, costly)
    )


def test_destroyed_runs_are_left_out_and_named(plan: Plan, tmp_path: Path) -> None:
    """Their error is that of guessing, a figure like any other; seeds stay paired."""
    broken = {("10 %", "pof & co", 1): {"nll": math.nan, "error": 0.9}, ("10 %", "sgd", 2): {"ece": math.inf}}
    mixed = [replace(r, **broken.get((r.setting, r.method, r.seed), {})) for r in rows()]
    mixed[-1] = replace(mixed[-1], nll_before=math.nan, val_nll_last=math.nan)  # rolled back, and so delivered
    summary = write_pages(plan, mixed, tmp_path)
    sgd, ours = summary.entries[:2]
    assert (sgd.figures.n, ours.figures.n, summary.entries[3].figures.n) == (3, 3, 4)
    assert ours.to_control is not None and ours.to_control.n == 2
    assert summary.destroyed == ("10 %, pof & co, seed 1", "10 %, sgd, seed 2")
    said = "Left out, as figures of theirs are not finite: 10 %, pof & co, seed 1; 10 %, sgd, seed 2."
    assert said in (tmp_path / "summary.md").read_text() and said in reading(summary)[0]
    assert (tmp_path / "results.csv").read_text().count("\n") == 1 + len(mixed)
    json.loads((tmp_path / "summary.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    for measure in ("nll", "val_nll_last"):
        assert all(math.isfinite(e.figures.mean) for e in summarise(plan, mixed, measure).entries)  # type: ignore[arg-type]
    nothing = write_pages(plan, [replace(r, nll=math.nan) for r in rows()], tmp_path)
    assert nothing.entries == () and len(nothing.destroyed) == 16


def test_p_that_is_no_number_changes_no_other() -> None:
    assert holm([0.01, math.nan, 0.02]) == [0.02, None, 0.02]


def test_names_are_no_formulas_and_no_html(tmp_path: Path) -> None:
    names = {"=HYPERLINK(1)": {"method": "finetune"}, "<img src=x> [a](b)": {"method": "pof"}}
    plan = make_plan(parse_recipe(RECIPE | {"methods": names, "control": "=HYPERLINK(1)"}))
    mixed = [replace(r, method=name) for r, name in zip(rows(), [*names] * 8, strict=True)]
    write_pages(plan, mixed, tmp_path)
    table = (tmp_path / "results.csv").read_text()
    assert "10 %,'=HYPERLINK(1),0" in table and "10 %,<img src=x> [a](b),0" in table
    text = (tmp_path / "summary.md").read_text()
    assert "&lt;img src=x> [a]\\(b)" in text and "<" not in text


def test_tables_replace_those_of_an_experiment_only(plan: Plan, tmp_path: Path) -> None:
    check_replaceable(plan, tmp_path / "new")
    write_pages(plan, of_plan(plan), tmp_path / "ours")
    check_replaceable(plan, tmp_path / "ours")
    (tmp_path / "results.csv").write_text("mine")
    with pytest.raises(ValueError, match=r"results\.csv is there, and no experiment wrote it"):
        check_replaceable(plan, tmp_path)


def of_plan(plan: Plan) -> list[ResultRow]:
    """Rows of the runs that the plan names."""
    return [
        row(trial.setting, method, trial.seed, folder=f"runs/{name}")
        for trial in plan.trials
        for method, name in trial.methods.items()
    ]


def test_no_row_of_a_table_is_lost(tmp_path: Path) -> None:
    """A second --set into the same folder replaced the tables of the first."""

    def named(**parts: Any) -> Plan:
        return make_plan(parse_recipe(RECIPE | parts))

    write_pages(named(), of_plan(named()), tmp_path)
    check_replaceable(named(seeds=6), tmp_path)  # more of the same
    check_replaceable(named(methods=RECIPE["methods"] | {"sam": {"method": "sam"}}), tmp_path)
    for parts, lost in (({"train": {"lr": 0.003}}, 16), ({"seeds": 3}, 4)):
        with pytest.raises(ValueError, match=rf"{lost} of their rows would be lost.*--set name=made-up-2"):
            check_replaceable(named(**parts), tmp_path)


class Shown(HTMLParser):
    """The text of each element with its tag and attributes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))
        if tag not in {"meta", "link"}:
            self._open.append(self.found[-1])

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        for _, _, texts in self._open:
            texts.append(data)

    def texts(self, *tags: str) -> list[str]:
        return [" ".join("".join(texts).split()) for tag, _, texts in self.found if tag in tags]


def test_the_page_begins_with_a_sentence_and_the_plot(plan: Plan, tmp_path: Path) -> None:
    summary = write_pages(plan, rows(), tmp_path)
    page = Shown((tmp_path / "report.html").read_text())
    assert page.texts("h2") == ["Summary", "Table", "Recipe"]
    main = page.found[[tag for tag, _, _ in page.found].index("main") :]
    order = [tag for tag, _, _ in main if tag in {"p", "svg", "table"}]
    assert order[:3] == ["p", "svg", "svg"] and "table" in order[3:]
    assert page.texts("p")[0] == headline(summary)
    # The first column is the method, a row header; settings are groups.
    columns = ["".join(t) for tag, a, t in page.found if tag == "th" and a.get("scope") == "col"]
    assert columns == header(summary)[1:] and columns[:2] == ["method", "epochs"]
    heads = [" ".join("".join(t).split()) for tag, a, t in page.found if tag == "th" and a.get("scope") == "row"]
    assert heads == [*ERRORS] * 2
    groups = [" ".join("".join(t).split()) for tag, a, t in page.found if a.get("scope") == "rowgroup"]
    assert groups == [*RECIPE["settings"]]
    assert (tmp_path / "summary.md").read_text().splitlines()[2] == headline(summary).replace("<", "&lt;")


def test_the_headline_says_what_is_shown(plan: Plan) -> None:
    nothing = summarise(plan, rows())
    assert headline(nothing) == (
        "Against the control sgd, the test error is not shown to differ in any of 2 comparisons (level 0.05, after"
        " Holm)."
    )

    def moved(row: ResultRow) -> ResultRow:
        change = {"10 %": -0.02, "all_<&>": 0.01}[row.setting] + 1e-4 * row.seed
        return replace(row, error=ERRORS["sgd"][row.seed] + change) if row.method != "sgd" else row

    assert headline(summarise(plan, [moved(r) for r in rows()])) == (
        "Against the control sgd, the test error is lower with pof & co on 10 % (-1.98 points); higher with pof & co on"
        " all_<&> (+1.02 points) (level 0.05, after Holm)."
    )
    one = summarise(plan, [r for r in rows() if r.seed == 0])
    assert "no comparison has a test" in headline(one)
    alone = make_plan(parse_recipe({**RECIPE, "control": None}))
    assert headline(summarise(alone, rows())).startswith("Against the incoming networks, the test error is")


def test_trainings_that_diverged_are_said(plan: Plan, tmp_path: Path) -> None:
    mixed = [replace(r, pretrain_stopped="diverged") if r.setting == "10 %" and r.seed == 2 else r for r in rows()]
    mixed[-1] = replace(mixed[-1], stopped="diverged")
    summary = write_pages(plan, mixed, tmp_path)
    assert summary.diverged == ("10 %, pre-training, seed 2", "all_<&>, pof & co, seed 3")
    said = [text for text in Shown((tmp_path / "report.html").read_text()).texts("p") if text.startswith("Diverged")]
    assert len(said) == 1 and "10 %, pre-training, seed 2; all_<&>, pof & co, seed 3." in said[0]
    assert not summarise(plan, rows()).diverged and not any("iverged" in s for s in reading(summarise(plan, rows())))


def test_the_four_formats(plan: Plan, tmp_path: Path) -> None:
    summary = write_pages(plan, rows(), tmp_path)
    figures = json.loads((tmp_path / "summary.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert figures["entries"][1]["to_control"]["mean"] == pytest.approx(-0.004)
    assert (figures["commits"], figures["recipe"]["seeds"]) == (["abc"], 4)

    text = (tmp_path / "summary.md").read_text()
    assert text == markdown(summary)
    line = next(line for line in text.splitlines() if "| pof & co |" in line)
    assert "| 3 | 4 | 4 | 4.95 ± 0.35 | -0.500 | [" in line
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1

    tex = (tmp_path / "summary.tex").read_text()
    assert tex == latex(summary)
    assert r"10 \% & pof \& co & 3 & 4 & 4 & 4.95 $\pm$ 0.35" in tex
    body = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in body} == {len(header(summary)) - 1}

    page = (tmp_path / "report.html").read_text()
    for text in (cell for entry in summary.entries for cell in cells(entry, summary)):
        assert f">{html.escape(text)}<" in page
    assert not re.search(r"<script|<link[^>]*stylesheet|(src|href)=.https?:|url\(http", page)
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers)) > 5
    assert page.count("<svg") == page.count('role="img"') == 2
    assert "<&>" not in page
    assert "pof &amp; co: -0.5 to the incoming network, -0.4 to the control" in page


def test_a_run_that_diverged_has_no_last_epoch_to_be_judged_by() -> None:
    def given(stopped: str | None) -> list[ResultRow]:
        made = [row("10 %", method, seed) for seed in SEEDS for method in ERRORS]
        # The row of the epoch before: at a rate that destroys the first step, the incoming network's.
        return [
            replace(r, stopped=stopped, val_nll_last=r.val_nll_before) if r.method == "pof & co" else r for r in made
        ]

    plan = make_plan(parse_recipe(RECIPE))
    assert [e.method for e in summarise(plan, given(None), "val_nll_last").entries] == ["sgd", "pof & co"]
    summary = summarise(plan, given("diverged"), "val_nll_last")
    assert [entry.method for entry in summary.entries] == ["sgd"]
    assert len(summary.destroyed) == len(SEEDS)
    text = " ".join(reading(summary))
    assert "their last epoch diverged" in text and "of the delivered network" not in text
    # What was put back to the best epoch is judged as it was delivered.
    delivered = summarise(plan, given("diverged"), "val_nll")
    assert len(delivered.entries) == 2
    assert "of the delivered network" in " ".join(reading(delivered))
