"""``pof flatness`` and ``pof report``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pof.app.options import DataOptions, ModelOptions

if TYPE_CHECKING:
    from rich.table import Table

    from pof.app.report.collection import RunFigures
    from pof.app.report.samples import Bounds
    from pof.app.report.subjects import Record, Subject

CHECKPOINT_BATCH = 128
GENERATOR = '<meta name="generator" content="pof">'


@dataclass
class FlatnessOptions:
    """Which networks.

    Args:
        runs: Folders of runs and of searches (pof improve), or checkpoint files together with --data (and --model where
            they do not say it).
        out: JSON file for the figures, or a folder that gets flatness.json. They are only printed if not given.
    """

    runs: list[str]
    out: str | None = None


@dataclass
class ReportOptions:
    """What the report is about.

    Args:
        runs: Folders of runs and of searches (pof improve). The networks they started from come with them.
        out: HTML file, or a folder that gets report.html. By default it is the last run's folder, and networks.html in
            that of a search, where report.html is its own page.
        plane: Draw the loss on a plane around each network too, which takes longer than any other figure.
    """

    runs: list[str]
    out: str | None = None
    plane: bool = False


@dataclass
class MeasureOptions:
    """How much is measured.

    Args:
        batches: Number of mini-batches of each kind that are measured on, at most.
        batch_size: Samples per mini-batch. By default it is that of the first run's training.
        device: Device to compute on, such as cpu or cuda. It is found by itself if not given.
        trust_factories: Import the models and data that a run folder names as package.module:factory. Their code runs.
    """

    batches: int = 20
    batch_size: int | None = None
    device: str | None = None
    trust_factories: bool = False


@dataclass
class CheckpointOptions:
    """The network of a checkpoint file; of a run folder it is known.

    Args:
        model: Name of a checkpoint file's network, as in pof train. A run folder says it itself.
        head: Qualified name of its head. It is found by itself if not given.
    """

    model: str | None = None
    head: str | None = None


@dataclass
class CheckpointData(DataOptions):
    """The data for a checkpoint file; of a run folder they are known.

    Args:
        data: Data set for a checkpoint file, as in pof train. A run folder says it itself.
        validation: Share of the training set that its training held out. It is 0 if that is not known, and then there
            are no figures that need it.
    """

    data: str = ""
    validation: float = 0.0


def print_flatness(
    options: FlatnessOptions, measuring: MeasureOptions, model: CheckpointOptions, data: CheckpointData
) -> int:
    """Measure networks and print the figures side by side."""
    from pof.app.cli._display import console, showing_progress
    from pof.app.report.collection import collect
    from pof.app.report.quantities import as_json
    from pof.app.report.subjects import check_same_data, notes_on_parts, read_run, short_names, subject_of_run
    from pof.app.run_folder import check_replaceable, write_json

    paths = _paths(options.runs)
    trusting = measuring.trust_factories
    records = {path: read_run(path, trust_factories=trusting) for path in paths if path.is_dir() or not path.exists()}
    names = dict(zip(paths, short_names(paths), strict=True))
    subjects = [
        subject_of_run(records[path], names[path]) if path in records else _checkpoint(path, names[path], model, data)
        for path in paths
    ]
    check_same_data(subjects)
    out = None if options.out is None else _file(options.out, "flatness.json")
    if out is not None:
        check_replaceable(out, '{\n  "batches": ')  # how its own files begin
    bounds = _bounds(measuring, list(records.values()))
    with showing_progress() as start:
        networks = collect(subjects, bounds, start=start)
    console.print(_table(networks))
    for note in notes_on_parts(subjects):
        console.print(f"note: {note}", soft_wrap=True, highlight=False)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, as_json(networks, bounds))
        console.print(f"written to {out}", soft_wrap=True)
    return 0


def make_report(options: ReportOptions, measuring: MeasureOptions) -> int:
    """Write the report of runs and print its path."""
    from pof.app.cli._display import console, showing_progress
    from pof.app.report import verdicts, write_report
    from pof.app.report.subjects import read_run
    from pof.app.run_folder import check_replaceable

    records = [read_run(path, trust_factories=measuring.trust_factories) for path in _paths(options.runs)]
    own = records[-1].folder / ("networks.html" if "improve" in records[-1].config else "report.html")
    out = own if options.out is None else _file(options.out, "report.html")
    check_replaceable(out, GENERATOR)
    with showing_progress() as start:
        networks = write_report(records, out, _bounds(measuring, records), plane=options.plane, start=start)
    for verdict in verdicts(networks):
        console.print(verdict.sentences, soft_wrap=True, highlight=False)
    console.print(f"report: {out}", soft_wrap=True)
    return 0


def _paths(runs: list[str]) -> list[Path]:
    if not runs:
        raise ValueError("give at least one run: --runs FOLDER")
    return [Path(run) for run in runs]


def _file(out: str | Path, name: str) -> Path:
    path = Path(out)
    return path if path.suffix == Path(name).suffix else path / name


def _checkpoint(path: Path, name: str, model: CheckpointOptions, data: CheckpointData) -> "Subject":
    from pof.app.cards import card_in
    from pof.app.inherit import given_in, inherited
    from pof.app.report.subjects import subject_of_file

    given = given_in(model, data)
    said = given | (set() if card_in(path) is None else {"model"})
    missing = [f"--{key}" for key in ("model", "data") if key not in said]
    if missing:
        raise ValueError(f"{path} is a checkpoint file, which does not say what it is of: give {' and '.join(missing)}")
    options, _ = inherited(ModelOptions(model.model or "", str(path), model.head), data, given)
    return subject_of_file(path, name, options, data)


def _bounds(options: MeasureOptions, records: "Sequence[Record]") -> "Bounds":
    from pof.app.report.samples import Bounds
    from pof.training.fit import find_device

    size = options.batch_size
    if size is None:
        size = records[0].training.batch_size if records else CHECKPOINT_BATCH
    return Bounds(options.batches, size, find_device(options.device))


def _table(networks: "Sequence[RunFigures]") -> "Table":
    from rich.table import Table
    from rich.text import Text

    from pof.app.report.quantities import side_by_side

    table = Table(title=f"{networks[0].subject.data.data}", title_justify="left")
    table.add_column("")
    for network in networks:
        table.add_column(network.subject.name, justify="right", overflow="fold")
    for group in side_by_side(networks):
        table.add_section()
        table.add_row(Text(group.title, style="bold"))
        for row, cells in group.rows:
            table.add_row(row.label, *(cell.text for cell in cells))
    return table
