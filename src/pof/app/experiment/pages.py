"""The summary of an experiment as Markdown, LaTeX, JSON, and one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pof._support.files import write_text
from pof.app.comparison import SIGNIFICANT
from pof.app.experiment.figure import differences_panel
from pof.app.experiment.plan import Plan
from pof.app.experiment.statistics import Paired, Spread
from pof.app.experiment.summary import LABELS, SHARES, Entry, Measure, Summary, summarise
from pof.app.experiment.table import ResultRow, lost_rows, write_csv
from pof.app.report.template import load_template
from pof.app.run_folder import write_json

NOTHING = "–"
TABLES = ("summary.json", "results.csv", "summary.md", "summary.tex", "report.html")


def write_pages(plan: Plan, rows: Sequence[ResultRow], folder: Path, measure: Measure = "error") -> Summary:
    """Write results.csv, summary.json, summary.md, summary.tex and report.html."""
    summary = summarise(plan, rows, measure)
    folder.mkdir(parents=True, exist_ok=True)
    commits = sorted({row.commit or "unknown" for row in rows})
    # First: where it stands, the other tables are an experiment's.
    write_json(folder / "summary.json", {**asdict(summary), "commits": commits, "recipe": dict(plan.recipe.source)})
    write_csv(rows, folder / "results.csv")
    for name, text in (
        ("summary.md", markdown(summary)),
        ("summary.tex", latex(summary)),
        ("report.html", html(plan, summary, commits)),
    ):
        write_text(folder / name, text)
    return summary


def check_replaceable(plan: Plan, folder: Path) -> None:
    """Refuse a folder with files that no experiment has written, or with results that this one does not have."""
    own = folder / "summary.json"
    there = [name for name in TABLES if (folder / name).exists() or (folder / name).is_symlink()]
    if there and (own.is_symlink() or not own.is_file() or '"comparisons"' not in own.read_text(encoding="utf-8")):
        raise ValueError(f"{folder / there[0]} is there, and no experiment wrote it: give another --out")
    lost = lost_rows(plan, folder / "results.csv") if (folder / "results.csv").is_file() else []
    if lost:
        raise ValueError(
            f"{folder} holds tables of other runs (another --set or recipe, other --threads): {len(lost)} of their rows"
            f" would be lost, such as {lost[0]}; give these a name of their own: --set name={plan.recipe.name}-2"
        )


def markdown(summary: Summary) -> str:
    """Write the table in Markdown."""
    head, body = header(summary), [cells(entry, summary) for entry in summary.entries]
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2), *body]
    table = "\n".join(f"| {' | '.join(map(_md, line))} |" for line in lines)
    notes = "\n".join(f"- {_md(note)}" for note in reading(summary))
    return f"# {summary.name}\n\n{_md(headline(summary))}\n\n{table}\n\n{notes}\n"


def latex(summary: Summary) -> str:
    """Write the table in LaTeX, for the package booktabs."""
    columns = header(summary)
    lines = [" & ".join(map(_tex, line)) + r" \\" for line in [columns, *(cells(e, summary) for e in summary.entries)]]
    notes = [f"% {note}" for note in (headline(summary), *reading(summary))]
    begin = rf"\begin{{tabular}}{{ll{'r' * (len(columns) - 2)}}}"
    return "\n".join(
        [*notes, begin, r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}", ""]
    )


def html(plan: Plan, summary: Summary, commits: Sequence[str]) -> str:
    """Write the page."""
    import yaml

    return load_template("experiment.html", Path(__file__).parent).render(
        title=summary.name,
        label=LABELS[summary.measure],
        headline=headline(summary),
        reading=reading(summary),
        head=header(summary)[1:],
        groups={
            setting: [cells(entry, summary)[1:] for entry in summary.entries if entry.setting == setting]
            for setting in summary.settings
        },
        panels=[differences_panel(summary, setting, number) for number, setting in enumerate(summary.settings)],
        recipe=yaml.safe_dump(dict(plan.recipe.source), sort_keys=False, allow_unicode=True),
        commits=commits,
        threads=plan.threads,
    )


def header(summary: Summary) -> list[str]:
    """Name the columns of the table."""
    percent = " (%)" if summary.measure in SHARES else ""
    columns = ["setting", "method", "epochs", "units", "n", f"{LABELS[summary.measure]}{percent}"]
    groups = [("incoming", any(e.to_incoming for e in summary.entries)), (summary.control, bool(summary.control))]
    for name, there in groups:
        columns += [f"minus {name}", "95 % interval", "p", "p (Holm)", "p (Wilcoxon)"] if there else []
    return columns


def cells(entry: Entry, summary: Summary) -> list[str]:
    """Write a line of the table."""
    scale = 100.0 if summary.measure in SHARES else 1.0
    digits = 2 if summary.measure in SHARES else 4
    texts = [entry.setting, entry.method, str(entry.epochs), f"{entry.units:.4g}", str(entry.figures.n)]
    texts.append(_spread(entry.figures, scale, digits))
    if any(e.to_incoming for e in summary.entries):
        texts += _comparison(entry.to_incoming, scale, digits + 1)
    if summary.control is not None:
        texts += _comparison(entry.to_control, scale, digits + 1)
    return texts


def headline(summary: Summary) -> str:
    """Say in one sentence what the experiment shows: against the control, or without one the incoming networks."""
    name, label = summary.control, LABELS[summary.measure]
    against = "the incoming networks" if name is None else f"the control {name}"
    pairs = [(e, e.to_incoming if name is None else e.to_control) for e in summary.entries]
    tested = [(e, test) for e, test in pairs if test is not None and test.p_holm is not None]
    if not tested:
        return f"Nothing is shown yet of the {label} against {against}: no comparison has a test."
    parts, shown = [], 0
    for word, sign in (("lower", -1), ("higher", 1)):
        found = [(e, t) for e, t in tested if (t.p_holm or 0.0) < SIGNIFICANT and sign * t.mean > 0]
        shown += len(found)
        if found:
            parts.append(f"{word} with {_named(found, summary)}")
    left = len(pairs) - shown - (0 if name is None else sum(e.method == name for e in summary.entries))
    if left:
        parts.append(f"not shown to differ in {left if shown else f'any of {left}'} comparison{'s' * (left > 1)}")
    return f"Against {against}, the {label} is {'; '.join(parts)} (level {SIGNIFICANT}, after Holm)."


def _named(found: Sequence[tuple[Entry, Paired]], summary: Summary) -> str:
    """Methods with their differences, the largest first; three of them."""
    scale, unit = (100.0, " points") if summary.measure in SHARES else (1.0, "")
    ordered = sorted(found, key=lambda pair: -abs(pair[1].mean))
    several = len(summary.settings) > 1
    texts = [f"{e.method}{f' on {e.setting}' if several else ''} ({scale * t.mean:+.3g}{unit})" for e, t in ordered[:3]]
    return ", ".join(texts) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def reading(summary: Summary) -> list[str]:
    """Say what the table holds."""
    label = LABELS[summary.measure]
    points = "; differences in percentage points" if summary.measure in SHARES else ""
    last = summary.measure.endswith("_last")
    why = "figures of theirs are not finite" + (", or their last epoch diverged" if last else "")
    left_out = f" Left out, as {why}: {'; '.join(summary.destroyed)}."
    diverged = [
        f"Diverged, and put back to the best epoch before: {'; '.join(summary.diverged)}. What was trained after such a"
        " pre-training started from that epoch."
    ]
    sentences = [
        f"{summary.runs} of {summary.planned} runs are finished.{left_out if summary.destroyed else ''}",
        *(diverged if summary.diverged else []),
        f"{_sentence(label)}{'' if last else ' of the delivered network'}, mean ± sample standard deviation over n"
        f" seeds{points}. A negative difference is better.",
        "Units: forward-backward passes over the training set (a forward without gradient counts 1/3), without"
        " pre-training and validation.",
        "Differences are paired by seed, with Student's 95 % interval of the mean and a paired t-test.",
    ]
    if summary.comparisons:
        sentences.append(
            f"p (Holm) is corrected over all {summary.comparisons} t-tests of this table; the Wilcoxon"
            " signed-rank test is not corrected."
        )
    unequal = [f"{e.method} ({e.units:.4g})" for e in summary.entries if _unequal(e, summary)]
    if unequal:
        names = ", ".join(dict.fromkeys(unequal))
        sentences.append(f"Not equal compute: more than one epoch's units from the control's: {names}.")
    notes = {c.note for e in summary.entries for c in (e.to_incoming, e.to_control) if c is not None and c.note}
    return sentences + [f"Without p: {note}." for note in sorted(notes)]


def _unequal(entry: Entry, summary: Summary) -> bool:
    control = next((e for e in summary.entries if (e.setting, e.method) == (entry.setting, summary.control)), None)
    return control is not None and abs(entry.units - control.units) > max(1.0, entry.units / entry.epochs)


def _spread(figures: Spread, scale: float, digits: int) -> str:
    mean = f"{scale * figures.mean:.{digits}f}"
    return mean if figures.sd is None else f"{mean} ± {scale * figures.sd:.{digits}f}"


def _comparison(test: Paired | None, scale: float, digits: int) -> list[str]:
    if test is None:
        return [NOTHING] * 5
    interval = NOTHING
    if test.low is not None and test.high is not None:
        interval = f"[{scale * test.low:+.{digits}f}, {scale * test.high:+.{digits}f}]"
    return [f"{scale * test.mean:+.{digits}f}", interval, *map(_p, (test.p, test.p_holm, test.wilcoxon))]


def _p(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _md(text: str) -> str:
    """Text as it is: names are no HTML and no links."""
    return text.replace("<", "&lt;").replace("](", "]\\(")


def _tex(text: str) -> str:
    replaced = {"±": r"$\pm$", "–": "--", **{mark: f"\\{mark}" for mark in "%_&#"}}
    return "".join(replaced.get(character, character) for character in text)
