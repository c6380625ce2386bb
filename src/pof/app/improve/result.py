"""What a search gives: the network, the judgement, a table of all that was tried, and sentences about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pof._support.calibration import expected_calibration_error
from pof._support.precision import widest
from pof.app.comparison import SIGNIFICANT, in_words
from pof.app.improve.candidates import Candidate
from pof.app.improve.judge import FITTED, Confirmation, Figures, TrainingFit
from pof.app.improve.race import HALFWAY, KINDS, Run
from pof.training.evaluation import Metrics

ENOUGH = 100
"""Validation samples that confirm, below which hardly anything can be shown."""


@dataclass(frozen=True)
class Row:
    """One network that was judged."""

    name: str
    method: str
    lr: float | None
    passes: float
    """That its training took; 0 of what was put together without more training."""
    error: float | None
    """On the samples that choose, as the figures that follow; None for a run that gave no network."""
    nll: float | None
    scaled_nll: float | None
    temperature: float | None
    note: str
    """``chosen``, or why it was not."""


@dataclass(frozen=True)
class ImproveResult:
    """What :func:`pof.app.improve.improve.improve` found."""

    model: nn.Module
    """The network that is handed back: a new one, or the incoming one itself, untouched."""
    chosen: str
    """Its name in the table; ``incoming`` where nothing was better."""
    improved: bool
    before: Metrics
    """The incoming network on the samples that confirm."""
    after: Metrics
    """The network handed back, on the same samples."""
    p_error: float
    """Of the exact McNemar test between the incoming network and the best network; 1 where they are the same."""
    confirmation: Confirmation | None
    """The best network against the incoming one; None where none was better in choosing."""
    passes: float
    """Forward-backward passes over the training set that were spent, the search for the rate included."""
    message: str
    """What happened, in a sentence or two."""
    notes: tuple[str, ...]
    """What the user should know before trusting it."""
    table: tuple[Row, ...]
    """One row per network that was judged, the incoming one first."""
    single: nn.Module
    """The best in choosing of the networks that one training gave, confirmed or not, to see what putting weights
    together adds; the incoming one where none was better."""


def row_of(name: str, candidate: Candidate | None, passes: float, found: Figures | None, note: str = "") -> Row:
    """A row of the table."""
    method, lr = ("", None) if candidate is None else (candidate.options.method, candidate.options.lr)
    rate = None if lr is None else float(lr)
    if found is None:
        return Row(name, method, rate, passes, None, None, None, None, note)
    return Row(name, method, rate, passes, found.error, found.nll, found.scaled_nll, found.temperature, note)


def on_the_way(share: float, candidate: Candidate, kind: str) -> str:
    """The name of a network between the incoming one and one of a run."""
    return f"{share:g} of the way to {candidate.name}, {kind}"


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """A row for each network of a run that gave some, one for each run that did not."""
    rows = []
    for run in runs:
        if run.figures is None:
            rows.append(row_of(run.candidate.name, run.candidate, run.passes, None, run.dropped))
        else:
            for kind, found in run.figures.items():
                whole = kind in KINDS
                name = f"{run.candidate.name}, {kind}" if whole else on_the_way(HALFWAY, run.candidate, "last")
                rows.append(row_of(name, run.candidate, run.passes if whole else 0.0, found, run.dropped))
    return rows


def noted(row: Row, chosen: str, found: Row | None) -> Row:
    """Say of a row whether it was chosen."""
    if row.name == chosen:
        return replace(row, note="handed back")
    if found is not None and row.name == found.name:
        return replace(row, note="best in choosing, not confirmed")
    return row


def message_of(rows: Sequence[Row], found: Row | None, confirmation: Confirmation | None, improved: bool) -> str:
    """Say what happened; ``rows`` are those of the incoming network and of what was tried."""
    if (tried := rows[1:]) and all(row.error is None for row in tried):
        return f"no candidate gave a network ({tried[0].name}: {tried[0].note}): the incoming network is handed back"
    if found is None or confirmation is None:
        return "no network was better on the samples that choose: the incoming network is handed back unchanged"
    chance = ", which may be chance" if confirmation.p_error >= SIGNIFICANT else ""
    counts = (
        f"of {confirmation.n} samples that chose nothing it corrects {confirmation.fixed} and breaks"
        f" {confirmation.broken} (p {confirmation.p_error:.2g}{chance}), and changes their NLL after temperature by"
        f" {in_words(confirmation.nll, 4)}"
    )
    if improved:
        shown = confirmation.p_error < SIGNIFICANT or confirmation.nll[2] < 0
        return f"{found.name}: {counts}" + ("" if shown else "; handed back as no worse, not shown to be better")
    return (
        f"nothing was confirmed: the best network was {found.name}, but {counts}; the incoming network is handed back"
    )


def notes_on(
    fit: TrainingFit, incoming: Figures, n: int, passes: tuple[float, float, float], *, plain: bool
) -> tuple[str, ...]:
    """What the user should know: little data to judge by, validation data that were trained on, training unfinished.

    ``passes``: that the rates took, the budget, and left for the race; ``plain``: all candidates are plain training.
    """
    notes, error = [], fit.error
    if n < ENOUGH:
        notes.append(f"only {n} validation samples confirm: a small gain cannot be told from chance")
    if error <= FITTED and incoming.error <= max(FITTED, 2 * error):
        notes.append(
            f"validation error ({100 * incoming.error:.2f} %) is as low as training error ({100 * error:.2f} %): if the"
            " network was trained on the validation data, they favour it over every candidate; give data of your own"
        )
    if not fit.fits:
        tried = (
            ": only plain training was tried" if plain else "; plain training alone, as --candidates sgd, may gain more"
        )
        notes.append(
            f"the incoming network does not fit its training data (error {100 * error:.2f} %){tried}; more training"
            " before the search, with all of its epochs, may gain still more"
        )
    spent, budget, left = passes
    if spent > budget / 2:
        notes.append(
            f"finding the rates took {spent:.1f} of a budget of {budget:g} passes, and the race had {left:.1f}: give"
            " more, or lr, which saves that"
        )
    return tuple(notes)


def metrics_of(logits: Tensor, targets: Tensor) -> Metrics:
    """Figures of logits (N, C), as :func:`pof.evaluate` gives them."""
    confidence, prediction = torch.softmax(logits, dim=1).max(dim=1)
    correct = prediction == targets
    return Metrics(
        float(widest(~correct).mean()),
        float(F.cross_entropy(widest(logits), targets)),
        float(expected_calibration_error(widest(confidence), correct)),
        len(targets),
        logits.shape[1],
    )


def as_json(result: ImproveResult) -> dict[str, Any]:
    """Everything but the network."""
    plain = {name: value for name, value in vars(result).items() if name not in {"model", "single"}}
    return {
        **plain,
        "before": vars(result.before),
        "after": vars(result.after),
        "confirmation": None if result.confirmation is None else asdict(result.confirmation),
        "table": [asdict(row) for row in result.table],
    }
