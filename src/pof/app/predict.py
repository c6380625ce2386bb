"""Classes and probabilities of image files, and the tables that they are written to."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pof._support.checks import whole_number
from pof._support.files import replacing
from pof._support.precision import widest
from pof._support.preprocessing import Preprocessing
from pof.app.errors import cell
from pof.app.run_files import RunError
from pof.app.run_folder import check_replaceable
from pof.data.checks import DataError
from pof.data.images import Prepare, is_image, opened
from pof.data.index import INDEX_ENDS, paths_in
from pof.data.walk import Walk
from pof.flatness import fit_temperature
from pof.models.card import NetworkCard
from pof.training.evaluation import counted, outputs

MARK = "path,class,probability"
"""How a table of predictions begins, by which a file is known to be replaceable."""
WRITTEN_BY = {b"written_by": b"pof predict"}
"""The same in a Parquet file."""
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's


@dataclass(frozen=True)
class Predictions:
    """The k most probable classes of each of N images that could be read."""

    paths: tuple[str, ...]
    """N, as they were given."""
    labels: Tensor
    """(N, k) int64, the most probable class first."""
    probabilities: Tensor
    """(N, k) float64."""
    classes: tuple[str, ...]
    """Names of the C classes."""
    unreadable: tuple[str, ...]
    """A sentence for each image that could not be read."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the table's columns."""
        more = (f"{name}_{place}" for place in range(2, self.labels.shape[1] + 1) for name in ("class", "probability"))
        return (*MARK.split(","), *more)

    def rows(self) -> Iterator[tuple[str | float, ...]]:
        """The rows of the table."""
        for path, labels, shares in zip(self.paths, self.labels.tolist(), self.probabilities.tolist(), strict=True):
            pairs = zip(labels, shares, strict=True)
            yield (path, *(value for label, share in pairs for value in (self.classes[label], share)))


def image_files(given: Sequence[str]) -> tuple[list[str], str]:
    """Find the images that are meant: files, all below folders, and those that a table names.

    Returns:
        Their paths, and what is to be said of other files in the folders.

    Raises:
        DataError: if there is no such file or folder, or no image.
    """
    found: list[str] = []
    notes = []
    for place in given:
        if os.path.isdir(place):
            walk = Walk(place, is_image)
            found += walk.images_below(place)
            notes.append(walk.left_out())
        elif place.lower().endswith(INDEX_ENDS):
            found += paths_in(Path(place))
        elif os.path.lexists(place):
            found.append(place)
        else:
            raise DataError(f"no such file or folder: {place}")
    if not found:
        raise DataError(f"no image in {', '.join(given) or 'nothing: give --images'}")
    return found, "; ".join(note for note in notes if note)


def predict(
    network: nn.Module,
    card: NetworkCard,
    paths: Sequence[str | os.PathLike[str]],
    *,
    top: int = 1,
    temperature: float = 1.0,
    batch_size: int = 128,
    workers: int = 0,
) -> Predictions:
    """Classify image files, prepared as the network's card says.

    Args:
        network: the trained network, on the device to compute on.
        card: its classes and preprocessing.
        paths: of the images.
        top: number of classes to name for each, k.
        temperature: T of softmax(z / T).
        batch_size: images per forward.
        workers: processes that read images.

    Returns:
        The predictions; images that cannot be read are named there, and left out of the table.

    Raises:
        ValueError: if the card has no preprocessing, a number is out of range, the network has other classes than the
            card, or gives logits that are not finite.
    """
    check_outputs(card)
    whole_number("top", top, 1, len(card.classes))
    whole_number("batch_size", batch_size, 1)
    if not 0 < temperature < math.inf:
        raise ValueError(f"a temperature is a positive finite number; got {temperature}")
    files = _Files(tuple(os.fspath(path) for path in paths), _preparation(card))
    reading = DataLoader(files, batch_size=batch_size, num_workers=workers, collate_fn=list)
    unreadable: list[str] = []
    kept, labels, shares = [], [], []
    for logits, rows in outputs(network, _batches(reading, unreadable), head=card.head):
        _check_logits(logits, card, [files.paths[row] for row in rows.tolist()])
        found = torch.softmax(widest(logits) / temperature, dim=1).topk(top, dim=1)
        kept += rows.tolist()
        labels.append(found.indices.cpu())
        shares.append(found.values.cpu())
    return Predictions(
        tuple(files.paths[row] for row in kept),
        torch.cat(labels) if labels else torch.empty(0, top, dtype=torch.int64),
        torch.cat(shares) if shares else torch.empty(0, top, dtype=torch.float64),
        card.classes,
        tuple(unreadable),
    )


def check_outputs(card: NetworkCard) -> None:
    """Refuse a network that was trained with another loss: its outputs are no logits of one class per sample."""
    if card.outputs is not None:
        raise ValueError(
            f"{card.model} was trained for {len(card.classes)} classes with {card.outputs} outputs, as by --loss bce,"
            " mse or ordinal, and predictions are of one output per class: call pof.load_run(RUN).model in Python"
        )


def temperature_on(network: nn.Module, loader: Iterable[Any], *, head: str | None = None) -> float:
    """Fit the temperature on validation data (Guo et al., ICML 2017); a ValueError where none is best."""
    pairs = [counted(logits, targets) for logits, targets in outputs(network, loader, head=head)]
    logits, targets = (torch.cat(column) for column in zip(*pairs, strict=True))
    found = fit_temperature(logits, targets)
    if found is None:
        raise ValueError(
            f"no temperature is best on these {len(targets)} validation samples: all are classified correctly, or the"
            " network is no better than chance; predict without --calibrate, or with a --temperature"
        )
    return found


def check_table(path: Path) -> None:
    """Refuse to write a table over anything else than predictions."""
    if path.suffix.lower() == ".parquet":
        if path.exists() and not path.is_symlink():
            parquet, arrow = _parquet()
            try:
                mark = parquet.read_schema(path).metadata or {}
            except (arrow.ArrowException, OSError):
                mark = {}
            if WRITTEN_BY.items() <= mark.items():
                return
        check_replaceable(path, "pof predict")
    elif path.suffix.lower() == ".csv":
        check_replaceable(path, MARK)
    else:
        raise RunError(f"predictions are written to a .csv or .parquet file; got {path}")


def write_table(found: Predictions, path: Path) -> None:
    """Write predictions as CSV or Parquet, by the end of the name, atomically."""
    rows = [[_unicode(value) for value in row] for row in found.rows()]
    if path.suffix.lower() == ".parquet":
        parquet, arrow = _parquet()
        columns = zip(*rows, strict=True) if rows else [[]] * len(found.columns)
        kinds = [arrow.float64() if name.startswith("probability") else arrow.string() for name in found.columns]
        arrays = [arrow.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
        table = arrow.Table.from_arrays(arrays, names=list(found.columns)).replace_schema_metadata(WRITTEN_BY)
        with replacing(path) as partial:
            parquet.write_table(table, partial)
        return
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(found.columns)
        writer.writerows([cell(value) for value in row] for row in rows)


class _Files(Dataset[Any]):
    """Images by their number; one that cannot be read is the sentence that says so."""

    def __init__(self, paths: tuple[str, ...], prepare: _Preparation) -> None:
        self.paths = paths
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            with opened(self.paths[index]) as image:
                return index, self.prepare(image)
        except DataError as error:
            return index, str(error)


@dataclass(frozen=True)
class _Preparation:
    """Makes the input (K, size, size) of an opened image, K = 3, or 1 for a network of grey images."""

    how: Preprocessing

    def __call__(self, image: Any) -> Tensor:
        how = self.how
        if len(how.mean) == 3:
            return Prepare(how, augment=False)(image)
        colours = Prepare(replace(how, mean=(0.0,) * 3, std=(1.0,) * 3), augment=False)(image)
        grey = torch.einsum("k,khw->hw", torch.tensor(LUMINANCE), colours)[None]
        return (grey - how.mean[0]) / how.std[0]


def _preparation(card: NetworkCard) -> _Preparation:
    if card.preprocessing is None:
        raise ValueError(
            f"{card.model} was trained on inputs that came as tensors {card.input_shape}, and nothing says how an image"
            " file becomes one: predict in Python, with the data set's own transform"
        )
    if len(card.preprocessing.mean) not in {1, 3}:
        raise ValueError(f"image files have 1 or 3 channels, and {card.model} takes {len(card.preprocessing.mean)}")
    return _Preparation(card.preprocessing)


def _batches(reading: Iterable[list[tuple[int, Tensor | str]]], unreadable: list[str]) -> Iterator[Any]:
    """Mini-batches (inputs, numbers of the images); what could not be read joins ``unreadable``."""
    for items in reading:
        good = [(index, item) for index, item in items if isinstance(item, Tensor)]
        unreadable += [item for _, item in items if isinstance(item, str)]
        if good:
            yield torch.stack([item for _, item in good]), torch.tensor([index for index, _ in good])


def _check_logits(logits: Tensor, card: NetworkCard, paths: list[str]) -> None:
    if logits.ndim != 2 or logits.shape[1] != len(card.classes):
        raise ValueError(f"{card.model} gives outputs {tuple(logits.shape)} for {len(card.classes)} classes")
    odd = (~logits.isfinite()).any(dim=1).nonzero()[:, 0].tolist()
    if odd:
        raise ValueError(f"the network's logits are not finite for {len(odd)} images, the first one {paths[odd[0]]}")


def _unicode(value: Any) -> Any:
    """Text that UTF-8 can hold: bytes of a file name that are none are written out."""
    return (
        value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        if isinstance(value, str)
        else value
    )


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("Parquet needs another package: pip install 'pof[data]'") from error
    return parquet, pyarrow
