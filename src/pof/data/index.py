"""An index of images: a CSV or Parquet table with a row for each image: path, label, and, if it likes, its part.

Paths are relative to the index's folder.  Columns are known by their usual names (``COLUMNS``), in any case.  Classes
are the labels' texts, sorted (numbers by their value).
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pof._support.text import first_of, reason
from pof.data.checks import DataError
from pof.data.description import DataSplit, LazyData
from pof.data.parts import SPLITS, Preparation, Sample, image_data, named_classes, role_of

INDEX_ENDS = (".csv", ".tsv", ".parquet")
COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img"),
    "label": ("label", "labels", "class", "class_name", "target", "category"),
    "split": ("split", "part", "subset", "set"),
}
Row = tuple[int, str, str, str]
"""Its number in the file, path, label and part."""


def index_data(file: Path, preparation: Preparation) -> LazyData:
    """Describe the images that an index names."""
    if not file.is_file():
        raise DataError(f"{file}: no regular file, but a FIFO or a device; replace it")
    header, lines = _table(file)
    places, notes = _columns(file, header)
    rows, dropped = _rows(file, lines, places)
    if not rows:
        raise DataError(f"{file}: no rows; give one for each image, below the columns' names")
    _check_files(file, [path for _, path, _, _ in rows])
    roles = {part: _role(file, number, part) for number, _, _, part in reversed(rows)}
    classes = named_classes([label for _, _, label, part in rows if roles[part] == "train"])
    labels = {label: i for i, label in enumerate(classes)}
    parts: dict[DataSplit, list[Sample]] = {}
    for number, path, label, part in rows:
        if label not in labels:
            raise DataError(
                f"{file}: the class {label!r} of row {number} has no training images; there are {', '.join(classes)}"
            )
        parts.setdefault(roles[part], []).append((path, labels[label]))
    if "train" not in parts:
        raise DataError(f"{file}: no row is for training; call the part {' or '.join(SPLITS['train'])}")
    names = {role: part for part, role in roles.items()}
    return image_data(file.stem, str(file), classes, parts, preparation, notes=[*notes, dropped], names=names)


def paths_in(file: Path) -> list[str]:
    """The images that a table names, in the order of its rows; it needs no labels."""
    header, lines = _table(file)
    places, _ = _columns(file, header, ("path",))
    return [os.path.join(file.parent, values["path"]) for _, values in _values(file, lines, places)]


def _table(file: Path) -> tuple[list[str], Iterator[list[str]]]:
    """The names of a table's columns, and its rows."""
    return _parquet(file) if file.suffix.lower() == ".parquet" else _csv(file)


def _csv(file: Path) -> tuple[list[str], Iterator[list[str]]]:
    lines = _csv_lines(file)
    header = next(lines, None)
    if header is None:
        raise DataError(f"{file}: empty; its first line names the columns: path,label")
    return header, lines


def _csv_lines(file: Path) -> Iterator[list[str]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            first = text.readline()
            text.seek(0)
            separator = max(",;\t", key=first.count)
            yield from csv.reader(text, delimiter=separator, strict=True)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: not a CSV file in UTF-8 ({error}); save it as one") from error


def _parquet(file: Path) -> tuple[list[str], Iterator[list[str]]]:
    try:
        import pyarrow.parquet as parquet
        from pyarrow import ArrowException
    except ImportError as error:
        raise DataError(f"{file}: Parquet needs another package: pip install 'pof[data]'") from error
    try:
        table = parquet.read_table(file)
    except (ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable Parquet file ({reason(error)})") from error
    if nested := [field.name for field in table.schema if field.type.num_fields and _role_of(field.name) == "path"]:
        raise DataError(f"{file}: {nested[0]} holds no paths, but images: give the folder of the shards, hf:FOLDER")
    columns = [column.to_pylist() for column in table.columns]
    rows = (["" if value is None else str(value) for value in row] for row in zip(*columns, strict=True))
    return list(table.column_names), rows


def _role_of(name: str) -> str | None:
    """Which of path, label and part the column of a name is; None for another."""
    plain = name.strip().lower().replace(" ", "_").replace("-", "_")
    return next((role for role, names in COLUMNS.items() if plain in names), None)


def _columns(file: Path, header: list[str], roles: Iterable[str] = tuple(COLUMNS)) -> tuple[dict[str, int], list[str]]:
    """Where path, label and part stand in a row, and what is said of the other columns."""
    found: dict[str, list[int]] = {role: [] for role in roles}
    unknown = []
    for place, name in enumerate(header):
        role = _role_of(name)
        if role in found:
            found[role].append(place)
        else:
            unknown.append(repr(name))
    for role in found:
        known = COLUMNS[role]
        if len(found[role]) > 1:
            same = " and ".join(repr(header[place]) for place in found[role])
            raise DataError(f"{file}: the columns {same} are both the {role}: keep one of them")
        if not found[role] and role != "split":
            raise DataError(
                f"{file}: no column for the {role}; the columns are {', '.join(header)}: call one {' or '.join(known)}"
            )
    notes = [f"columns not used: {', '.join(unknown)}"] if unknown else []
    return {role: places[0] for role, places in found.items() if places}, notes


def _rows(file: Path, lines: Iterable[list[str]], places: dict[str, int]) -> tuple[list[Row], str]:
    """The rows, each image once, with whole paths; and what is said of those that were there again."""
    seen: dict[str, Row] = {}
    dropped = 0
    for number, values in _values(file, lines, places):
        path = os.path.normpath(file.parent / values["path"])
        row = (number, path, values["label"], values.get("split", "train"))
        before = seen.setdefault(path, row)
        if before[2:] != row[2:]:
            raise DataError(
                f"{file}: rows {before[0]} and {number} are of the same image {values['path']!r}, with"
                f" {' '.join(before[2:])!r} and {' '.join(row[2:])!r}: keep one of them"
            )
        dropped += before is not row
    return list(seen.values()), f"{dropped} rows left out, which were there already" if dropped else ""


def _values(file: Path, lines: Iterable[list[str]], places: dict[str, int]) -> Iterator[tuple[int, dict[str, str]]]:
    """Numbers of the rows that are not blank, and what each says, by its role."""
    for number, line in enumerate(lines, 2):
        if not any(field.strip() for field in line):
            continue
        if len(line) <= max(places.values()):
            raise DataError(f"{file}: row {number} has {len(line)} values, too few for the columns: {line}")
        values = {role: line[place].strip() for role, place in places.items()}
        if empty := next((role for role, value in values.items() if not value), None):
            raise DataError(f"{file}: row {number} has no {empty}; add it, or take the row out")
        yield number, values


def _role(file: Path, number: int, part: str) -> DataSplit:
    role = role_of(part)
    if role is None:
        known = ", ".join(name for names in SPLITS.values() for name in names)
        raise DataError(f"{file}: row {number} is of the part {part!r}, which is none of {known}")
    return role


def _check_files(file: Path, paths: list[str]) -> None:
    absent = [path for path in paths if "\0" in path or not os.path.isfile(path)]
    if absent:
        raise DataError(
            f"{file}: {len(absent)} of {len(paths)} images are not there, or no regular files:"
            f" {first_of(map(repr, absent), 3)}; paths are relative to the index's folder"
        )
