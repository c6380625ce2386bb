"""What a data set holds, in words and counts, for people."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pof._support.batches import halves_of, tensors_of, unpack_item
from pof._support.text import first_of
from pof.data.checks import DataError
from pof.data.description import Data, ImageData
from pof.data.loader import CheckedCollate
from pof.data.streaming import StreamData


def summary(data: Data) -> dict[str, str]:
    """Describe a data set for people.

    Args:
        data: the data set.

    Returns:
        Texts by what they describe: counts, classes, shapes, normalisation, where the files are.
    """
    counts, targets, lines = class_counts(data), _targets(data), {"name": data.name}
    for part in ("training", "validation", "test"):
        none = "a stream, without a length" if part == "training" else "none of their own"
        lines[f"{part} samples"] = str(len(targets[part])) if part in targets else none
    if data.test_taken:
        lines["test samples"] += " (a fifth of the training samples: there are no test data)"
    numbers = any(labels.is_floating_point() for labels in targets.values())
    lines["outputs" if numbers else "classes"] = f"{data.num_classes} ({first_of(data.classes, 10)})"
    if numbers:
        lines["targets"] = "floating-point targets, for --loss bce, mse or one of your own"
    lines |= {f"{part} samples per class": _range(count) for part, count in counts.items()}
    lines |= {
        "shape of an input": " x ".join(str(n) for n in data.image_shape),
        "mean": _numbers(data.mean),
        "std": _numbers(data.std),
        "source": data.source,
    }
    if isinstance(data, ImageData):
        lines["augmentation"] = str(data.augmentation) if data.augmentation else "none"
    return lines


def class_counts(data: Data) -> dict[str, list[int]]:
    """Count the samples of each class.

    Args:
        data: the data set.

    Returns:
        Counts in the order of the classes, by the part; parts that are not there, a stream, and floating-point targets
        are left out.
    """
    return {
        part: torch.bincount(labels, minlength=data.num_classes).tolist()
        for part, labels in _targets(data).items()
        if not labels.is_floating_point()
    }


def unreadable(data: Data, *, workers: int = 0) -> list[str]:
    """Read every sample of image files and custom data sets once, as it is evaluated.

    Args:
        data: the data set; images in memory, and a training stream, are not read.
        workers: processes that read.

    Returns:
        What is wrong with each sample that cannot be used, by name: read, or put into a mini-batch with most others.
    """
    if isinstance(data, ImageData):
        return []
    train = None if isinstance(data, StreamData) else data.plain_train_set
    problems: list[str] = []
    for part, dataset in {"training": train, "validation": data.val_set, "test": data.test_set}.items():
        if dataset is not None:
            tried = _Tried(dataset, data.num_classes)
            found = DataLoader(tried, batch_size=None, num_workers=workers, collate_fn=_as_it_is)
            problems += [f"{part} sample {index}: {said}" for index, said in _faults(found)]
    return problems


def _faults(found: Iterable[tuple[str, str]]) -> Iterator[tuple[int, str]]:
    """What is wrong with items of which a fault, or none, and the shapes are known: a part has one shape."""
    faults: dict[int, str] = {}
    shapes: list[str] = []
    for index, (said, shape) in enumerate(found):
        shapes.append(sys.intern(shape))  # each text once, however many the samples
        if said:
            faults[index] = said
    usual = Counter(shape for shape in shapes if shape).most_common(1)
    for index, shape in enumerate(shapes):
        if index in faults or shape != usual[0][0]:
            yield index, faults.get(index, f"its input is {shape}, and most are {usual[0][0] if usual else ''}")


class _Tried(Dataset[tuple[str, str]]):
    """Says of each item why it cannot be used, or nothing, and the shapes of its input."""

    def __init__(self, dataset: Dataset[Any], classes: int) -> None:
        self.dataset, self.check = dataset, CheckedCollate(classes)

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[str, str]:
        try:
            item = self.dataset[index]
            if not isinstance(item, DataError):
                unpack_item(item)  # which says more of what is no item than stacking does
            found = self.check([item])
            if isinstance(found, DataError):
                return str(found), ""
            said = _shapes_of(halves_of(found)[0])
        except Exception as error:
            return f"{type(error).__name__}: {error}" if not isinstance(error, DataError) else str(error), ""
        return "", said or "no tensor"


def _shapes_of(inputs: Any) -> str:
    """The shapes of the tensors of one item, with the names that they have."""
    if isinstance(inputs, Mapping):
        return ", ".join(f"{name} {_shapes_of(inputs[name])}" for name in sorted(inputs, key=str))
    return ", ".join(str(tuple(tensor.shape[1:])) for tensor in tensors_of(inputs))


def _as_it_is(item: Any) -> Any:
    return item


def _targets(data: Data) -> dict[str, Tensor]:
    """The targets by the part, of those parts that are there."""
    train = None if isinstance(data, StreamData) else data.train_labels
    parts = {"training": train, "validation": data.val_labels, "test": data.test_labels}
    return {part: labels for part, labels in parts.items() if labels is not None}


def _range(counts: Sequence[int]) -> str:
    smallest, largest = min(counts), max(counts)
    return str(smallest) if smallest == largest else f"{smallest} to {largest}"


def _numbers(values: Sequence[float] | None) -> str:
    return ", ".join(f"{v:.4g}" for v in values) if values else "as the data set has it"
