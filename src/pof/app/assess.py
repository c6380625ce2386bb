"""What an evaluation says beyond its means: figures of each class, the confusion matrix, the largest losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pof.training.evaluation import Judged, figures_of

MARK = "pof evaluate"
"""Value of ``written_by`` in the JSON, by which a file is known to be replaceable."""


def confusion(found: Judged) -> Tensor:
    """Count (C, C) samples, a row for each true class, a column for each predicted one; without those of NaN logits."""
    classes, usable = found.num_classes, ~found.confidence.isnan()
    cells = (found.target * classes + found.predicted)[usable]
    return torch.bincount(cells, minlength=classes**2).view(classes, classes).cpu()


def per_class(found: Judged, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Figures of each class.

    Error and recall are shares of the class's samples, precision is a share of the predictions of the class; None
    where there are none.
    """
    counts = confusion(found)
    of_class = torch.bincount(found.target, minlength=found.num_classes).tolist()
    predicted, right = counts.sum(0).tolist(), counts.diagonal().tolist()

    def share(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    return [
        {
            "class": name,
            "n": of_class[c],
            "error": share(of_class[c] - right[c], of_class[c]),
            "precision": share(right[c], predicted[c]),
            "recall": share(right[c], of_class[c]),
        }
        for c, name in enumerate(classes)
    ]


def worst(
    found: Judged, classes: Sequence[str], count: int, path_of: Callable[[int], str | None]
) -> list[dict[str, Any]]:
    """The samples with the largest losses, the largest first; NaN counts as the largest."""
    order = found.loss.nan_to_num(math.inf).argsort(descending=True, stable=True)[:count].tolist()
    rows = []
    for place in order:
        index = int(found.index[place])
        truth, guess = (classes[int(column[place])] for column in (found.target, found.predicted))
        row = {"index": index, "class": truth, "predicted": guess, "loss": float(found.loss[place])}
        path = path_of(index)
        rows.append(row if path is None else {"index": index, "path": path, **row})
    return rows


def assessment(
    found: Judged,
    classes: Sequence[str],
    *,
    largest: int,
    path_of: Callable[[int], str | None],
    asked: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything as plain values for JSON, with what was ``asked``; what is no finite number is None."""
    if len(classes) != found.num_classes:
        raise ValueError(
            f"the network gives {found.num_classes} logits, and the data have {len(classes)} classes:"
            " evaluate it on data with its own classes"
        )
    values = {
        "written_by": MARK,
        **asked,
        "metrics": vars(figures_of(found).metrics),
        "samples_without_finite_logits": found.unusable,
        "per_class": per_class(found, classes),
        "confusion": confusion(found).tolist(),
        "worst": worst(found, classes, largest, path_of),
    }
    result: dict[str, Any] = _finite(values)
    return result


def _finite(value: Any) -> Any:
    """The same values with None for NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
