"""Folders that Hugging Face's ``datasets`` writes: of ``save_to_disk``, or of Parquet shards.

One column of images, one of labels (``ClassLabel``, whose names are the classes in their order, or a column with a
usual name).  Image files are decoded here, by the same rules as all others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pof._support.text import reason
from pof.data.checks import DataError
from pof.data.description import DataSplit, LazyData
from pof.data.images import content_of
from pof.data.index import COLUMNS
from pof.data.parts import SPLITS, Preparation, Sample, image_data, named_classes, role_of

PREFIX = "hf:"
SHARD = re.compile(r"(?P<part>.+?)(-\d{5}-of-(?P<count>\d{5}))?(-[0-9a-f]{16})?\.parquet")
HIDDEN = -1
"""The label of samples whose class is not published."""


@dataclass(frozen=True, slots=True)
class HubImage:
    """An image file in a row of a table."""

    table: Any
    row: int
    where: str

    def content(self) -> bytes:
        """The image file; it may lie beside the table."""
        (item,) = self.table[self.row].values()
        if item is None or (item["bytes"] is None and item["path"] is None):
            raise DataError("no image in this row")
        stored: bytes = content_of(item["path"]) if item["bytes"] is None else item["bytes"]
        return stored

    def __str__(self) -> str:
        return f"{self.where}, row {self.row}"


def is_hub(place: Path) -> bool:
    """Whether a folder was written by ``datasets``, by the files in it."""
    if not os.path.isdir(place):
        return False
    saved = any((place / name).is_file() for name in ("dataset_dict.json", "state.json"))
    return saved or any(role_of(SHARD.sub(r"\g<part>", path.name)) == "train" for path in _shards(place))


def hub_data(place: Path, preparation: Preparation) -> LazyData:
    """Describe the images of a folder."""
    tables = _tables(place)
    notes: list[str] = []
    image, label = _columns(place, next(iter(tables.values())).features)
    classes: list[str] = []
    parts: dict[DataSplit, list[Sample]] = {}
    # Training first: its classes are those of the others.
    for part in sorted(tables, key=lambda name: role_of(name) != "train"):
        role, table = role_of(part), tables[part]
        if role is None:
            notes.append(f"not used: {part} (no usual name of a part)")
            continue
        if role in parts:
            raise DataError(f"{place}: two parts are both for {role}, one of them {part}: keep one")
        if (image, label) != _columns(place, table.features):
            raise DataError(f"{place}: the columns of {part} are others than those of the part before it")
        labels = list(table[label])
        if labels and all(value == HIDDEN for value in labels):
            notes.append(f"{part} has no labels ({HIDDEN}): not used")
            continue
        texts = _texts(f"{place} ({part})", table.features[label], labels)
        classes = classes or list(getattr(table.features[label], "names", None) or named_classes(texts))
        of_class = {name: number for number, name in enumerate(classes)}
        if unknown := next((text for text in texts if text not in of_class), None):
            raise DataError(f"{place}: {part}: the class {unknown!r} is none of training: {', '.join(classes)}")
        files = _files(table, image)
        parts[role] = [(HubImage(files, row, f"{place} ({part})"), of_class[text]) for row, text in enumerate(texts)]
    if "train" not in parts:
        raise DataError(f"{place}: no part for training; there are {', '.join(tables)}: call one {SPLITS['train'][0]}")
    if empty := next((role for role, samples in parts.items() if not samples), None):
        raise DataError(f"{place}: no samples for {empty}; take that part out")
    return image_data(place.resolve().name, str(place), classes, parts, preparation, notes=notes)


def _shards(place: Path) -> list[Path]:
    return sorted([*place.glob("*.parquet"), *place.glob("data/*.parquet")])


def _tables(place: Path) -> dict[str, Any]:
    """The tables of the parts by their names."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{place}: folders of datasets need another package: pip install 'pof[data]'") from error
    found: dict[str, list[str]] = {}
    for path in _shards(place):
        found.setdefault(_part(path), []).append(str(path))
    try:
        if found:
            return {part: datasets.Dataset.from_parquet(paths) for part, paths in found.items()}
        loaded = datasets.load_from_disk(str(place))
    except Exception as error:  # JSON, Arrow and the library itself have their own kinds
        said = reason(error.__cause__ or error)
        raise DataError(f"{place}: not a readable folder of datasets ({said}); write it again") from error
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}


def _part(path: Path) -> str:
    found = SHARD.fullmatch(path.name)
    if found is None:
        raise DataError(f"{path}: not the name of a Parquet shard, such as train-00000-of-00001.parquet")
    if count := found["count"]:
        there = len(list(path.parent.glob(f"{found['part']}-*-of-{count}*.parquet")))
        if there != int(count):
            raise DataError(
                f"{path.parent}: {there} of {int(count)} shards of {found['part']} are there; copy the others"
            )
    return found["part"]


def _columns(place: Path, features: Mapping[str, Any]) -> tuple[str, str]:
    """Names of the columns of images and of labels."""
    import datasets

    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    listed = ", ".join(f"{name} ({getattr(f, 'dtype', type(f).__name__)})" for name, f in features.items())
    if not images:
        texts = any(getattr(feature, "dtype", "") in {"string", "large_string"} for feature in features.values())
        remedy = (
            "text is read by the tokenizer of its network: give package.module:factory of tokenised Datasets"
            if texts
            else "cast one with datasets' cast_column(name, Image())"
        )
        raise DataError(f"{place}: no column of images among {listed}; {remedy}")
    if len(images) > 1:
        raise DataError(f"{place}: {' and '.join(images)} are both images: keep one (remove_columns)")
    usual = [name for name in features if name.lower() in COLUMNS["label"] and name not in images]
    named = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    labels = named if len(named) == 1 else usual
    if len(labels) != 1:
        raise DataError(
            f"{place}: which column has the labels? There are {listed}: keep one ClassLabel, or call it label"
        )
    return images[0], labels[0]


def _texts(where: str, feature: Any, labels: list[Any]) -> list[str]:
    """Names of the classes of the samples."""
    names = getattr(feature, "names", None)
    for row, label in enumerate(labels):
        if label is None or (names is not None and not 0 <= label < len(names)):
            raise DataError(f"{where}: row {row} has the label {label}, which is no class; take the row out")
    return [str(label) if names is None else names[label] for label in labels]


def _files(table: Any, image: str) -> Any:
    import datasets

    return table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
