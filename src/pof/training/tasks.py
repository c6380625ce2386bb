"""Figures of other tasks than one class per sample: independent labels, numbers, ordered classes, any other loss.

Each loss has its usual figures; another one is any function of all outputs and targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pof._support.precision import widest
from pof.perturbation.loss import Loss, unwrapped
from pof.perturbation.targets import IGNORED
from pof.perturbation.tasks import BinaryCrossEntropy, Ordinal, SquaredError, as_outputs

Figure = Callable[[Tensor, Tensor], Tensor | float]
AskedMetric = str | Figure | None
"""One of the loss's figures, ``"loss"``, or a function of all outputs (N, C) and targets; None: the loss's first."""


@dataclass(frozen=True)
class TaskMetrics:
    """Figures over n samples of a network that is trained with another loss than the cross-entropy."""

    metric: str
    """The figure that an epoch is chosen by."""
    value: float
    """Of that figure."""
    loss: float
    """Mean over the samples."""
    n: int
    """Number of samples."""
    figures: dict[str, float]
    """All figures of the task, by name; the chosen one among them."""
    higher_is_better: bool = False

    @property
    def tie_breaker(self) -> str:
        """What decides among equals."""
        return "loss"

    def named(self) -> dict[str, Any]:
        """All figures by name, for logs and files."""
        return {**self.figures, "loss": self.loss, "n": self.n}

    def rank(self) -> tuple[float, float]:
        """What is compared: smaller is better, NaN is worst."""
        value = -self.value if self.higher_is_better else self.value
        return value if value == value else math.inf, self.loss if self.loss == self.loss else math.inf

    def worded(self, value: float) -> str:
        """A value of the chosen figure in words."""
        return f"{value:.4g}"


def wrong_labels(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of wrong labels among all of (N, C); a label is the sign of its logit."""
    return widest((outputs > 0) != (as_outputs(outputs, targets, "error") > 0.5)).mean()


def wrong_classes(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of samples whose largest output is not that of their class, of those with one: -100 is none."""
    return widest((outputs.argmax(dim=1) != targets)[targets != IGNORED]).mean()


def wrong_ranks(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of samples whose number of positive logits is not their class."""
    return widest((outputs > 0).sum(dim=1) != targets).mean()


def ranks_apart(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean distance, in classes, between the number of positive logits and the class."""
    return widest(((outputs > 0).sum(dim=1) - targets).abs()).mean()


def rmse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Root of the mean squared error over samples and outputs, in the targets' units."""
    return widest(outputs - as_outputs(outputs, targets, "rmse")).square().mean().sqrt()


def mae(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute error over samples and outputs, in the targets' units."""
    return widest(outputs - as_outputs(outputs, targets, "mae")).abs().mean()


def r2(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 - squared error / variance, the mean over outputs; NaN where targets are all the same."""
    wanted = widest(as_outputs(outputs, targets, "r2"))
    return (1 - (outputs - wanted).square().mean(dim=0) / wanted.var(dim=0, correction=0)).mean()


r2.higher_is_better = True  # type: ignore[attr-defined]

USUAL: tuple[tuple[type[Loss], dict[str, Figure]], ...] = (
    (BinaryCrossEntropy, {"error": wrong_labels}),
    (SquaredError, {"rmse": rmse, "mae": mae, "r2": r2}),
    (Ordinal, {"mae": ranks_apart, "error": wrong_ranks}),
)
"""By loss; the first chooses the epoch unless another is asked for."""


def task_metrics(
    loss: Loss, mean: float, outputs: Tensor, targets: Tensor, asked: AskedMetric = None, n: int | None = None
) -> TaskMetrics:
    """Compute the figures of a loss.

    Args:
        loss: that of the task.
        mean: its mean over the samples.
        outputs: (N, C).
        targets: of all samples.
        asked: the figure that chooses.
        n: number of samples; N if None.

    Returns:
        The figures.

    Raises:
        ValueError: if there is no figure of that name, or a function returns no number.
    """
    known = _usual(loss, outputs, targets)
    if callable(asked):
        _check_foreign(asked)
        name = getattr(asked, "__name__", type(asked).__name__)
        known = {name: asked, **known}
        chosen = name
    else:
        chosen = asked or next(iter(known), "loss")
        if chosen not in {*known, "loss"}:
            raise ValueError(
                f"metric must be one of {', '.join([*known, 'loss'])} for this loss, or a function of outputs and"
                f" targets; got {chosen!r}"
            )
    figures = {name: _number(figure(outputs, targets), name) for name, figure in known.items()}
    value = mean if chosen == "loss" else figures[chosen]
    higher = bool(getattr(known.get(chosen), "higher_is_better", False))
    return TaskMetrics(chosen, value, mean, len(outputs) if n is None else n, figures, higher)


def _check_foreign(metric: Callable[..., Any]) -> None:
    """Refuse functions of other libraries that would be misread: by their order of arguments, or what is better."""
    function, _ = unwrapped(metric)
    library = str(getattr(function, "__module__", None) or type(function).__module__).partition(".")[0]
    name = getattr(function, "__name__", type(function).__name__)
    if library == "sklearn":
        raise ValueError(
            f"metric: {name} of scikit-learn takes the targets first, and a metric is called with outputs (N, C) first:"
            f" give a function of yours, such as def score(outputs, targets): return {name}(targets, outputs), with"
            " score.higher_is_better = True where more of it is better"
        )
    if library == "torchmetrics" and getattr(metric, "higher_is_better", None) is None:
        raise ValueError(
            f"metric: {name} of torchmetrics does not say whether more of it is better: set its attribute"
            " higher_is_better to True or False"
        )


def _usual(loss: Loss, outputs: Tensor, targets: Tensor) -> dict[str, Figure]:
    for kind, figures in USUAL:
        if isinstance(loss, kind):
            return figures
    indices = isinstance(targets, Tensor) and targets.ndim == 1 and not targets.is_floating_point()
    return {"error": wrong_classes} if indices and outputs.shape[1] > 1 else {}


def _number(value: Any, name: str) -> float:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"the metric {name!r} must be a number; got a tensor {tuple(value.shape)}")
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the metric {name!r} must be a number; got {value!r}") from error
