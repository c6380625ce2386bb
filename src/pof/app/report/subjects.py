"""Which networks a report is about: those of run folders, the one each started from, and single checkpoints.

What a run folder says about itself is taken from its files; nothing is measured here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from pof._support.text import number_of
from pof.app.cards import load_network, weights_file
from pof.app.options import DataOptions, ModelOptions, TrainOptions
from pof.app.places import candidates, identified
from pof.app.run_files import (
    RunError,
    check_to_the_end,
    options_of,
    read_config,
    read_environment,
    read_result,
    read_rows,
    read_search,
    section_of,
)
from pof.app.run_folder import CONTENT, content_of
from pof.app.runs import check_trusted
from pof.data import Data
from pof.models import PRETRAINED
from pof.training.evaluation import Metrics
from pof.weights import NETWORK_FILE

BEFORE = "before"


@dataclass(frozen=True)
class Record:
    """The files of a run that has ended, or of a search."""

    folder: Path
    config: dict[str, Any]
    model: ModelOptions
    data: DataOptions
    training: TrainOptions
    environment: dict[str, Any]
    rows: list[dict[str, Any]]
    """Of metrics.jsonl."""
    result: dict[str, Any]

    def epochs(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl that are about an epoch; number 0 is the network that came in."""
        return [row for row in self.rows if row["event"] == "epoch"]

    def validation_error(self, epoch: int) -> float | None:
        """Return the validation error after an epoch, in [0, 1]; None without validation data."""
        found = [row["val_error"] for row in self.epochs() if row["epoch"] == epoch and "val_error" in row]
        return found[-1] if found else None


@dataclass(frozen=True)
class Subject:
    """A network, and what is known of it already."""

    name: str
    detail: str
    """A few words: the method, or where the weights are from."""
    model: ModelOptions
    """How to build it; ``weights`` are loaded by that."""
    data: DataOptions
    test: Metrics | None = None
    """As result.json has it."""
    validation_error: float | None = None
    """As metrics.jsonl has it."""
    record: Record | None = None
    before: str | None = None
    """Name of the network it started from."""

    def network(self, loaded: Data) -> nn.Module:
        """Build the network with its weights."""
        return load_network(self.model, loaded)


def read_run(folder: str | Path, *, trust_factories: bool = False) -> Record:
    """Read a run folder; one that names a factory needs consent, as measuring its network imports that."""
    path = Path(folder)
    config = read_config(path)
    if "improve" in config:
        return _read_search(path, config, trust_factories)
    model, data, training = options_of(config, path)
    if training.loss != "cross-entropy":
        raise RunError(f"{folder} was trained with the loss {training.loss!r}; reports and flatness are of classifiers")
    environment, result, rows = read_environment(path), read_result(path), read_rows(path)
    weights_file(path)  # or says that the run has not ended
    check_trusted(path, model, data, trust_factories)
    return Record(path, config, model, data, training, environment, rows, result)


def _read_search(path: Path, config: dict[str, Any], trusting: bool) -> Record:
    """A folder of ``pof improve`` as that of a run without epochs."""
    model, data = section_of(config, path, "model"), section_of(config, path, "data")
    check_trusted(path, model, data, trusting)
    rows: list[dict[str, Any]] = [{"event": "epoch", "epoch": 0}, {"event": "end"}]
    training = TrainOptions("improve", batch_size=(found := read_search(path))["batch_size"])
    return Record(path, config, model, data, training, {}, rows, found)


def subject_of_run(record: Record, name: str) -> Subject:
    """Describe the network that a run delivered."""
    what = record.result.get("chosen", number_of(record.result["epochs"], "epoch"))
    return Subject(
        name=name,
        detail=f"{record.training.method}, {what}",
        model=replace(record.model, weights=str(record.folder), source_classes=None),
        data=record.data,
        test=Metrics(**record.result["test_after"]),
        validation_error=record.validation_error(record.result["best_epoch"]),
        record=record,
    )


def subject_of_file(file: str | Path, name: str, model: ModelOptions, data: DataOptions) -> Subject:
    """Describe a checkpoint."""
    return Subject(name=name, detail="checkpoint", model=replace(model, weights=str(file)), data=data)


def with_incoming(records: Sequence[Record]) -> tuple[list[Subject], list[str]]:
    """Describe the networks of runs, and before them the ones that they started from."""
    names = short_names([record.folder for record in records])
    runs = {_key(r.folder / NETWORK_FILE): subject_of_run(r, n) for r, n in zip(records, names, strict=True)}
    found: dict[str, Subject] = {}
    notes, starts = [], {}
    for record, name in zip(records, names, strict=True):
        check_to_the_end(record.folder, record.rows)
        if lacking := len(set(range(record.result["epochs"] + 1)) - {row["epoch"] for row in record.epochs()}):
            of = f"{lacking} of {record.result['epochs'] + 1}"
            notes.append(f"{name}: metrics.jsonl lacks {of} epochs, so its curves have a gap")
        if record.result["test_before"] is None:
            continue
        weights = _incoming(record)
        if weights is None:
            notes.append(
                f"{name}: the weights that it started from ({record.model.weights}) are not there any"
                " more as they were, so there is nothing to compare it with"
            )
            continue
        starts[name] = _key(weights, record.model)
        if starts[name] not in runs:
            found.setdefault(starts[name], _incoming_subject(record, name, weights))
    if len(found) == 1 and BEFORE not in names:
        found = {key: replace(subject, name=BEFORE) for key, subject in found.items()}
    known = found | runs
    started = [replace(s, before=known[starts[s.name]].name) if s.name in starts else s for s in runs.values()]
    subjects = [*found.values(), *started]
    return subjects, notes + notes_on_parts(subjects)


def check_same_data(subjects: Sequence[Subject]) -> None:
    """Refuse networks whose figures cannot be compared."""
    first = subjects[0]
    for other in subjects[1:]:
        for key, value in _data_key(other.data).items():
            if value != (known := _data_key(first.data)[key]):
                raise ValueError(
                    f"{first.name} and {other.name} are of different data, so their figures cannot be compared: {key}"
                    f" is {known} and {value}"
                )


def notes_on_parts(subjects: Sequence[Subject]) -> list[str]:
    """Say where networks were trained on parts of a training set, and on which they are measured."""
    sizes = {(s.data.train_size, s.data.fraction) for s in subjects}
    if len(sizes) == 1:
        return []
    return [
        "the networks were trained on parts of different size: what is measured on training samples is measured on the"
        " smallest of these parts, for all of them"
    ]


def short_names(folders: Sequence[Path]) -> list[str]:
    """Name folders by as few of their last parts as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise ValueError(f"a run is given twice: {', '.join(map(str, folders))}")
    depths = range(1, max(map(len, parts)) + 1)
    candidates = (["/".join(p[-depth:]) for p in parts] for depth in depths)
    return next(names for names in candidates if len(set(names)) == len(names))


def _incoming(record: Record) -> Path | str | None:
    # Others may be in their place by now.
    weights, known = str(record.model.weights), record.config.get(CONTENT)
    if weights == PRETRAINED:
        return weights
    for path in candidates(weights, record.config, record.folder):
        path = path / NETWORK_FILE if os.path.isdir(path) else path
        if os.path.exists(path) and (known is None or known == content_of(str(path))):
            return path
    return None


def _incoming_subject(record: Record, name: str, weights: Path | str) -> Subject:
    return Subject(
        name=f"{BEFORE} {name}",
        detail="incoming weights",
        model=replace(record.model, weights=str(weights)),
        data=record.data,
        test=Metrics(**record.result["test_before"]),
        validation_error=record.validation_error(0),
    )


def _key(weights: Path | str, model: ModelOptions | None = None) -> str:
    """What tells weights apart: their file, or of published ones the network."""
    if isinstance(weights, Path):
        return str(weights.resolve())
    return repr((weights, model and (model.model, dict(model.model_args), model.head)))


def _data_key(options: DataOptions) -> dict[str, Any]:
    data = identified(options.data, options.data_root)
    return {"data": data, "validation": options.validation, "split_seed": options.split_seed}
