"""The verdict of a report: each network against the one it started from, on the same test samples, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pof.app.comparison import SIGNIFICANT, Disagreement, Interval, in_words, mcnemar, paired_intervals
from pof.app.report.collection import RunFigures


@dataclass(frozen=True)
class Verdict:
    """A network against the one it started from."""

    name: str
    before: str
    n: int
    """Test samples that both were measured on."""
    counts: Disagreement
    error: Interval
    """Difference of the error, in [-1, 1]: negative is better."""
    nll: Interval
    """Difference of the mean negative log-likelihood, in nats: negative is better."""

    @property
    def sentences(self) -> str:
        """Say it: the judgement first, then the figures that it rests on."""
        counts = self.counts
        if not any((counts.fixed, counts.broken, *self.nll)):
            return f"{self.name} gives the same outputs as {self.before} on all {self.n} test samples."
        shown = counts.p < SIGNIFICANT
        fewer = "fewer" if counts.fixed > counts.broken else "more"
        error = (
            f"makes {fewer} errors than {self.before}"
            if shown
            else f"is not shown to differ in error from {self.before}"
        )
        low, mean, high = (100 * value for value in self.error)
        texts = [
            f"{self.name} {error}: of the same {self.n} test samples it corrects {counts.fixed} and breaks"
            f" {counts.broken} (exact McNemar, p = {counts.p:.2g}); error {in_words((low, mean, high), 2)} percentage"
            " points."
        ]
        if math.isfinite(self.nll[1]):
            better = "better" if self.nll[1] < 0 else "worse"
            judged = f"is {better}" if self.nll[0] > 0 or self.nll[2] < 0 else "is not shown to differ"
            texts.append(f"Its likelihood {judged}: NLL {in_words(self.nll, 4)}.")
        return " ".join(texts)


def verdicts(networks: Sequence[RunFigures]) -> list[Verdict]:
    """Compare each network with the one it started from, where that is there."""
    named = {n.subject.name: n for n in networks}
    return [_verdict(named[n.subject.before], n) for n in networks if n.subject.before is not None]


def _verdict(before: RunFigures, after: RunFigures) -> Verdict:
    one, other = before.calibration, after.calibration
    differences = [one.correct.double() - other.correct.double(), other.losses - one.losses]
    if not torch.isfinite(differences[1]).all():
        differences[1] = torch.full_like(differences[1], math.nan)
    return Verdict(
        after.subject.name,
        before.subject.name,
        other.samples,
        mcnemar(one.correct, other.correct),
        *paired_intervals(differences, seed=0),
    )
