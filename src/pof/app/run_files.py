"""The files of a run folder, read: each is checked once, here, and what is damaged is named in one line.

NaN and infinity are figures like others (a run that diverged has them), but for shares and counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pof._support.text import first_of
from pof.app.documents import read_yaml
from pof.app.errors import shortened
from pof.app.options import DataOptions, ModelOptions, TrainOptions, read_section
from pof.app.places import located_options
from pof.weights import NETWORK_FILE

Check = Callable[[Any], bool]
Shape = Mapping[str, Any]
"""What a mapping must hold: a check by name, or a shape of its own; in a tuple where None is allowed too."""
SECTIONS: dict[str, type[Any]] = {"model": ModelOptions, "data": DataOptions, "training": TrainOptions}
WITH_PATHS = ("model", "data", "improve")
"""Sections that hold paths."""
REMEDY = "put back a copy of it, or run again into another folder"


class RunError(ValueError):
    """A run folder that cannot be used."""


def _number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def _share(value: Any) -> bool:
    return _number(value) and 0 <= value <= 1


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _figures(value: Any) -> bool:
    return isinstance(value, dict) and all(each is None or _number(each) for each in value.values())


METRICS: Shape = {"error": _share, "nll": _number, "ece": _number, "n": _count, "num_classes": _count}
RESULT: Shape = {
    **{"best_epoch": _count, "epochs": _count, "steps": _count, "stopped": (_text,), "message": _text},
    **{"seconds": _number, "test_before": (METRICS,), "test_after": METRICS, "validation_before": (_figures,)},
    **{"validation_after": (_figures,), "validation_last": (_figures,), "train_last": (_figures,)},
}
SEARCH: Shape = {"chosen": _text}
TESTS: Shape = {"before": METRICS, "after": METRICS}
BATCH_SIZE = "training.batch_size"
ENVIRONMENT: Shape = {"commit": (_text,)}
ROW: Shape = {"event": _text, "step": _count, "epoch": _count}
OF_ROWS = ("event", "best", "stopped", "message")
"""What is no figure in a row."""


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.yaml of a run, whose sections are mappings."""
    import yaml

    path = Path(folder) / "config.yaml"
    if not path.exists():
        raise no_run(folder, "config.yaml")
    try:
        config: Any = read_yaml(_content(path), path)
    except (yaml.YAMLError, RecursionError) as error:
        raise _damaged(path, shortened(str(error))) from error
    if not isinstance(config, dict):
        raise _damaged(path, "no settings in it")
    wrong = [name for name in SECTIONS if not isinstance(config.get(name, {}), dict)]
    if wrong:
        raise _damaged(path, f"{wrong[0]} holds no settings")
    return config


def config_here(folder: Path) -> dict[str, Any]:
    """The config.yaml of a run with its paths as they are from the current folder."""
    config = read_config(folder)
    return {name: located_options(v, config, Path(folder)) if name in WITH_PATHS else v for name, v in config.items()}


def no_run(folder: Path, lacking: str) -> RunError:
    """The refusal of what is no run's folder, with the runs and the pages of experiments that are in it."""
    folder = Path(folder)
    if not folder.is_dir():
        return RunError(f"{folder} is a file: give a run's folder" if folder.exists() else f"no such folder: {folder}")
    pages = [path.with_name("report.html") for path in _within(folder, "summary.json")]
    runs = [path.parent for path in _within(folder, "config.yaml")]
    texts = [f"{folder} is not a run: it has no {lacking}"]
    if (folder / NETWORK_FILE).is_file():
        texts.append("the network in it, as pof.improve writes it in Python, is read by pof.load_model(model, folder)")
    texts += [f"the page of an experiment in it is {page}" for page in pages[:1]]
    if runs:
        are = "are the runs" if len(runs) > 1 else "is the run"
        texts.append(f"in it {are} {first_of(runs, 3)}")
    return RunError("; ".join(texts))


def _within(folder: Path, name: str) -> list[Path]:
    return sorted(path for pattern in ("", "*/", "runs/*/") for path in folder.glob(f"{pattern}{name}"))


def section_of(config: Mapping[str, Any], folder: Path, name: str) -> Any:
    """The options of a section of a run's config.yaml, by their types; paths are found from where the run is."""
    kind, values = SECTIONS[name], config.get(name)
    if values is None:
        raise RunError(f"{folder}/config.yaml is no run's: it has no settings under {name!r}")
    unknown = [key for key in values if key not in kind.__dataclass_fields__]
    if unknown:
        raise RunError(f"{folder}/config.yaml is of another version of pof: it has {name}.{unknown[0]}")
    try:
        options = read_section(kind, values, name)
    except ValueError as error:
        raise _damaged(Path(folder) / "config.yaml", shortened(str(error))) from error
    found = {} if name == "training" else located_options(vars(options), config, Path(folder))
    return replace(options, **found)


def options_of(config: Mapping[str, Any], folder: Path) -> tuple[ModelOptions, DataOptions, TrainOptions]:
    """The options of a run as its config.yaml has them, by their types."""
    model, data, training = (section_of(config, folder, name) for name in SECTIONS)
    return model, data, training


def read_result(folder: Path) -> dict[str, Any]:
    """Read result.json of a run."""
    path = Path(folder) / "result.json"
    result = _json(path, RESULT)
    if result["best_epoch"] > result["epochs"]:
        raise _damaged(path, f"best_epoch is {result['best_epoch']}, of {result['epochs']} epochs")
    return result


def read_search(folder: Path) -> dict[str, Any]:
    """What a search of ``pof improve`` found, as result.json of a run has it; and ``chosen`` and ``batch_size``."""
    files = {"result.json": SEARCH, "test.json": TESTS, "improve.json": {BATCH_SIZE: _count}}
    found, tests, asked = (_json(Path(folder) / name, shape) for name, shape in files.items())
    figures = {"epochs": 0, "best_epoch": 0, "test_before": tests["before"], "test_after": tests["after"]}
    return {**figures, "chosen": found["chosen"], "batch_size": asked[BATCH_SIZE]}


def read_environment(folder: Path) -> dict[str, Any]:
    """Read environment.json of a run."""
    return _json(Path(folder) / "environment.json", ENVIRONMENT)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of metrics.jsonl of a run; a line that a kill cut short is left out."""
    path = Path(folder) / "metrics.jsonl"
    lines = _content(path).split("\n")[:-1] if path.exists() else []
    return [_row(line, path, number) for number, line in enumerate(lines, 1) if line.endswith("}")]


def check_to_the_end(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Refuse the rows of a finished run that stop before its end: curves of a part would pass for the whole."""
    if not rows or rows[-1]["event"] != "end":
        raise _damaged(Path(folder) / "metrics.jsonl", "it does not go on to the end of the run")


def _row(line: str, path: Path, number: int) -> dict[str, Any]:
    where = f"line {number} is no row of a run's log"
    row = _parsed(line, path, where)
    if (wrong := _wrong(row, ROW)) is not None:
        raise _damaged(path, f"{where}: {wrong}")
    odd = [name for name in row if name not in OF_ROWS and not _number(row[name])]
    if odd:
        raise _damaged(path, f"{where}: {odd[0]} is {_short(row[odd[0]])}")
    found: dict[str, Any] = row
    return found


def _json(path: Path, shape: Shape) -> dict[str, Any]:
    if not path.exists():
        raise RunError(f"{path.parent} has no {path.name}: has that run ended? Go on with it by --resume")
    values = _parsed(_content(path), path, "it is no JSON")
    if (wrong := _wrong(values, shape)) is not None:
        raise _damaged(path, wrong)
    found: dict[str, Any] = values
    return found


def _content(path: Path) -> str:
    if not path.is_file():
        raise _damaged(path, "it is no file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _damaged(path, "it is no text") from error


def _parsed(text: str, path: Path, otherwise: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, otherwise) from error


def _wrong(values: Any, shape: Shape, name: str = "") -> str | None:
    """What a value lacks of a shape, or None."""
    if not isinstance(values, dict):
        return f"{name or 'it'} is {_short(values)}, and holds no values by their names"
    for key, check in shape.items():
        where = f"{name}.{key}".lstrip(".")
        if key not in values:
            return f"it lacks {where}"
        value, optional = values[key], isinstance(check, tuple)
        if optional and value is None:
            continue
        wanted = check[0] if optional else check
        found = _wrong(value, wanted, where) if isinstance(wanted, Mapping) else None
        if found is None and callable(wanted) and not wanted(value):
            found = f"{where} is {_short(value)}"
        if found is not None:
            return found
    if shape is METRICS and len(values) > len(shape):
        return f"{name} has more than {', '.join(shape)}"
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]} [...]"


def _damaged(path: Path, what: str) -> RunError:
    return RunError(f"{path} is damaged ({what}): {REMEDY}")
