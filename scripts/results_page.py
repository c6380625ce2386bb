"""Write the tables of docs/results.md, docs/improve.md and the README, and the first figure, anew from the JSONs.

python scripts/results_page.py

A place for a table is ``<!-- NAME -->`` ... ``<!-- end -->``, NAME being that of a file in benchmarks/results; with
``<!-- NAME: method; method -->`` only these methods are in it.  A file of ``benchmarks/improve.py`` has its own table,
with each method at the whole budget; ``<!-- searches: NAME; NAME -->`` has a row for each of several such files.
``NAME+NAME`` of files of ``benchmarks/width.py`` has a column for each width; ``<!-- settings: NAME, NAME; NAME -->``
has the figures of one setting of an experiment, in one file or more, beside those of another.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pof.methods.sharpness_aware import DEFAULT_RHO

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "docs" / "results.md", ROOT / "docs" / "improve.md", ROOT / "README.md")
FIGURE = ROOT / "docs" / "figures" / "gains.svg"
PLACE = re.compile(r"<!-- (?P<name>[\w+-]+)(?:: (?P<methods>[^>]*?))? -->\n.*?<!-- end -->", re.DOTALL)
NONE = "–"
WORDED = {"kind constant": "constant", "sampling fixed": "fixed factor", "rho auto": "rho from the data"}
# Of benchmarks/improve.py: what stands for the names in its files.
SEARCH = {
    "improve": "`pof improve`, as handed back",
    "improve, single training": "its best single training, confirmed or not",
}
SEARCHED = {
    "improve-digits": "small CNN that fits 150 digits",
    "improve-fashion-mnist": "ResNet-20 that fits 6,000 images of Fashion-MNIST",
    "improve-cifar10": "ResNet-20 that fits 5,000 images of CIFAR-10",
    "improve-not-fitted-digits": "small CNN after 2 epochs on 400 digits, not fitted",
    "improve-not-fitted": "small CNN after 6 epochs on 54,000 images of Fashion-MNIST, not fitted",
}
# Of benchmarks/width.py.
SWEPT = {"width-digits": "digits", "width-fashion-mnist": "Fashion-MNIST"}
# Of the figure: file and setting, and the row that stands for each kind of method, by the first name that is there.
REGIMES = {
    "digits, 150 images, fitted": ("digits", "digits"),
    "Fashion-MNIST, 6,000, fitted": ("fashion-mnist-few", "fashion-mnist-few"),
    "CIFAR-10, 5,000, fitted": ("cifar10-few", "cifar10-few"),
    "Fashion-MNIST, 54,000, not fitted": ("fashion-mnist", "fashion-mnist"),
    "435 birds, fine-tuned": ("birds-post", "15 %"),
    "public CIFAR-10 ResNet-20": ("cifar10-public-resnet20-full", "cifar10-public-resnet20-full"),
}
KINDS = {
    "SGD": ("finetune",),
    "PoF, drawn": ("pof",),
    "head ascent": ("head-ascent",),
    "SAM, radius from the data": ("sam auto",),
    "EMA, constant rate 0.1": ("ema 0.1",),
}


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    return found


def difference(test: dict[str, Any] | None) -> list[str]:
    """Mean, interval and corrected p of paired differences, in percentage points."""
    if test is None:
        return [NONE, NONE]
    mean = f"{100 * test['mean']:+.2f}"
    if test["low"] is None or test["low"] == test["high"]:
        return [mean, NONE]
    p = (
        NONE
        if test["p_holm"] is None
        else f"{test['p_holm']:.1e}"
        if test["p_holm"] < 0.001
        else f"{test['p_holm']:.3f}"
    )
    return [f"{mean} [{100 * test['low']:+.2f}, {100 * test['high']:+.2f}]", p]


def spread(figures: dict[str, Any]) -> str:
    sd = "" if figures["sd"] is None else f" ± {100 * figures['sd']:.2f}"
    return f"{100 * figures['mean']:.2f}{sd}"


def table(found: dict[str, Any], methods: list[str]) -> str:
    """The rows of an experiment, paired by seed."""
    entries = [entry for entry in found["entries"] if not methods or entry["method"] in methods]
    settings = len({entry["setting"] for entry in entries}) > 1
    head = ["method", "units", "test error", "minus incoming", "p", f"minus {found['control']}", "p"]
    rows = [
        [
            *([entry["setting"]] if settings else []),
            entry["method"],
            f"{entry['units']:.0f}",
            spread(entry["figures"]),
            *difference(entry["to_incoming"]),
            *difference(entry["to_control"]),
        ]
        for entry in entries
    ]
    return lines_of([*(["setting"] if settings else []), *head], rows)


def methods_of(name: str) -> set[str]:
    """The rows of a file, whatever wrote it."""
    found = read(name)
    if "found" in found:
        return set(search_of(name)[1]["mean"])
    return {entry["method"] for part in found.get("widths", {"": found}).values() for entry in part["entries"]}


def search_of(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Seeds, and what was compared in them, of a file of benchmarks/improve.py."""
    (found,) = read(name)["found"].values()
    return found["seeds"], found["compared"]["error"]


def search(name: str, methods: list[str]) -> str:
    """What a search handed back beside methods that got the whole budget, paired by seed."""
    _, errors = search_of(name)
    gains, over = errors["against incoming"], errors["improve against"]
    rows = [["incoming", spread(errors["mean"]["incoming"]), NONE, NONE, NONE, NONE]]
    for method in methods or gains:
        against = difference(over.get(method))
        rows.append([SEARCH.get(method, method), spread(errors["mean"][method]), *difference(gains[method]), *against])
    return lines_of(["method", "test error", "minus incoming", "p", "`pof improve` minus it", "p"], rows)


def searches(names: list[str]) -> str:
    """One row per file of benchmarks/improve.py."""
    rows = []
    for name in names:
        seeds, errors = search_of(name)
        handed = difference(errors["against incoming"]["improve"])
        rows.append([SEARCHED[name], str(len(seeds)), spread(errors["mean"]["incoming"]), *handed])
    return lines_of(["networks", "seeds", "incoming", "`pof improve` minus incoming", "p"], rows)


def settings(columns: list[list[str]]) -> str:
    """The same methods in several settings, each in one file or more; a method is compared with its file's control."""
    heads, entries = ["method"], []
    for names in columns:
        files = [read(name) for name in names]
        # The control is in all files; the first one counts.
        entries.append({entry["method"]: entry for file in reversed(files) for entry in file["entries"]})
        setting = only("setting", [entry["setting"] for file in files for entry in file["entries"]])
        control = only("control", [file["control"] for file in files])
        heads += [f"{setting}: test error", f"minus {control}", "p"]

    def cells(entry: dict[str, Any] | None) -> list[str]:
        return [NONE] * 3 if entry is None else [spread(entry["figures"]), *difference(entry["to_control"])]

    methods = dict.fromkeys(entry["method"] for names in columns for name in names for entry in read(name)["entries"])
    rows = [[method, *(cell for column in entries for cell in cells(column.get(method)))] for method in methods]
    return lines_of(heads, rows)


def only(what: str, values: list[str]) -> str:
    """The one value of a column."""
    if len(found := sorted(set(values))) > 1:
        raise ValueError(f"a column has one {what}; these files have {', '.join(found)}")
    return found[0]


def origin_of_settings(columns: list[list[str]]) -> str:
    """The files, and the learning rates: those of a method are the same in all."""
    names = [name for column in columns for name in column]
    files = [read(name) for name in names]
    rows: dict[str, dict[str, Any]] = {}
    for name, file in zip(names, files, strict=True):
        for method, own in file["recipe"]["methods"].items():
            options = {"lr": file["recipe"]["train"]["lr"], **own}
            if rows.setdefault(method, options) != options:
                raise ValueError(f"{name}.json has {method!r} with other options")
    entries = [entry for file in files for entry in file["entries"]]
    rates = settings_of({"recipe": {**files[0]["recipe"], "methods": rows}, "entries": entries}, [])
    return f"Learning rates: {rates}. {' '.join(source_of(*file) for file in zip(names, files, strict=True))}"


def widths(names: list[str], methods: list[str]) -> str:
    """Test errors of the incoming networks, what each method gained on them, and the head's share, by width."""
    columns = {f"{SWEPT[name]} x{width}": found for name in names for width, found in read(name)["widths"].items()}
    gains = [{entry["method"]: entry["to_incoming"] for entry in found["entries"]} for found in columns.values()]

    def cell(test: dict[str, Any] | None) -> str:
        text, _ = difference(test)
        return f"**{text}**" if test and test["p_holm"] is not None and test["p_holm"] < 0.05 else text

    heads = [[layer for layer in found["shares"] if layer != "rho"][-1] for found in columns.values()]
    shares = [found["shares"][head] for found, head in zip(columns.values(), heads, strict=True)]
    rows = [
        ["seeds", *(str(found["entries"][0]["figures"]["n"]) for found in columns.values())],
        ["incoming test error", *(spread(found["entries"][0]["before"]) for found in columns.values())],
        *([method, *(cell(gain.get(method)) for gain in gains)] for method in methods),
        ["head's share of SAM's perturbation", *(f"{spread(share)} %" for share in shares)],
    ]
    return lines_of(["minus incoming", *columns], rows)


def origin_of_widths(names: list[str]) -> str:
    """Where each width was computed, at which commit."""
    places = [
        f"{SWEPT[name]} x{width} {', '.join(found['commits'])} ({' and '.join(found['hardware'])})"
        for name in names
        for width, found in read(name)["widths"].items()
    ]
    files = ", ".join(f"`{name}.json`" for name in names)
    return f"Bold: p < 0.05, corrected over the tests of a column. {files}; commits: {'; '.join(places)}."


def origin_of_search(*names: str) -> str:
    """The files, and the commit of their seeds; one whose own file of results was the only change is not told apart."""
    found = []
    for name in names:
        seeds, _ = search_of(name)
        commits = sorted({seed["environment"]["commit"].removesuffix("-dirty") for seed in seeds.values()})
        found.append(f"`{name}.json`, commit {' and '.join(commits)}")
    count = f"{len(seeds)} seeds; " if len(names) == 1 else ""
    return f"{count}{'; '.join(found)}."


def lines_of(head: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def settings_of(found: dict[str, Any], methods: list[str]) -> str:
    """The learning rate of each row, and the options beside it that are not as they are by default; SAM's radius."""
    recipe, rates = found["recipe"], {}
    for name in methods or dict.fromkeys(entry["method"] for entry in found["entries"]):
        options = dict(recipe["methods"][name])
        rate = options.pop("lr", recipe["train"]["lr"])
        nested = {key: value for part in options.values() if isinstance(part, dict) for key, value in part.items()}
        if options["method"] in DEFAULT_RHO:
            nested.setdefault("rho", DEFAULT_RHO[options["method"]])
        text = ", ".join(WORDED.get(f"{key} {value}", f"{key} {value}") for key, value in nested.items())
        rates.setdefault(rate, []).append(f"{name} ({text})" if text else name)
    return "; ".join(f"{rate:g} for {', '.join(rows)}" for rate, rows in rates.items())


def origin(name: str, found: dict[str, Any], methods: list[str]) -> str:
    before = next((entry["before"] for entry in found["entries"] if entry["before"]), None)
    incoming = "" if before is None else f"Incoming {spread(before)}. "
    return f"{incoming}Learning rates: {settings_of(found, methods)}. {source_of(name, found)}"


def source_of(name: str, found: dict[str, Any]) -> str:
    """Seeds, file, commit and hardware."""
    seeds = sorted({entry["figures"]["n"] for entry in found["entries"]})
    count = " or ".join(map(str, seeds))
    hardware = f", {found['hardware']}" if "hardware" in found else ""
    return f"{count} seed{'s' if count != '1' else ''}; `{name}.json`, commit {', '.join(found['commits'])}{hardware}."


def rendered(page: str) -> str:
    """The page with every table as its JSON has it."""

    def fill(place: re.Match[str]) -> str:
        name, methods = place["name"], [method for method in (place["methods"] or "").split("; ") if method]
        opening = place[0].partition("\n")[0]
        parts = [] if name in {"searches", "settings"} else name.split("+")
        missing = set(methods) - {method for part in parts for method in methods_of(part)}
        if parts and missing:
            raise ValueError(f"{name}.json has no method {sorted(missing)[0]!r}")
        if name == "searches":
            made, source = searches(methods), origin_of_search(*methods)
        elif name == "settings":
            columns = [names.split(", ") for names in methods]
            made, source = settings(columns), origin_of_settings(columns)
        elif parts[0] in SWEPT:
            made, source = widths(parts, methods), origin_of_widths(parts)
        elif "found" in (found := read(name)):
            made, source = search(name, methods), origin_of_search(name)
        else:
            made, source = table(found, methods), origin(name, found, methods)
        return f"{opening}\n{made}\n\n{source}\n<!-- end -->"

    return PLACE.sub(fill, page)


def draw() -> str:
    """The figure: what each kind of method gained in each regime, with its interval, as SVG."""
    import io

    import matplotlib as mpl
    from matplotlib.figure import Figure

    from pof.flatness.plots import style_of

    mpl.rcParams["svg.hashsalt"] = "pof"
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    ax = figure.subplots()
    ax.axvline(0.0, color="0.7", lw=0.8)
    for number, (kind, names) in enumerate(KINDS.items()):
        style = style_of(number)
        for place, (file, setting) in enumerate(REGIMES.values()):
            rows = {e["method"]: e["to_incoming"] for e in read(file)["entries"] if e["setting"] == setting}
            test = next((rows[name] for name in names if name in rows), None)
            if test is None:
                continue
            y, mean = place + 0.14 * (number - (len(KINDS) - 1) / 2), 100 * test["mean"]
            if test["low"] is not None:
                ax.plot([100 * test["low"], 100 * test["high"]], [y, y], color=style.color, lw=1.6)
            label = kind if place == 0 else None
            ax.plot([mean], [y], color=style.color, marker=style.marker, ms=5, ls="", label=label)
    ax.set_yticks(range(len(REGIMES)), list(REGIMES))
    ax.set_ylim(len(REGIMES) - 0.5, -0.5)
    ax.set_xlabel("test error minus that of the incoming network (percentage points, 95 % interval)")
    ax.legend(loc="lower left", fontsize=8)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(rendered(page.read_text()))
    FIGURE.write_text(draw())
