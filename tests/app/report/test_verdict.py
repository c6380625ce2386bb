from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pof.app.comparison import Disagreement
from pof.app.report import Bounds, RunFigures, Verdict, collect, read_run, verdicts
from pof.app.report.subjects import with_incoming
from pof.app.splits import load
from pof.data import eval_loader

SAME = (0.0, 0.0, 0.0)


def said(fixed: int, broken: int, p: float, nll: tuple[float, float, float]) -> str:
    error = (-0.02, (broken - fixed) / 100, 0.01)
    return Verdict("new", "old", 100, Disagreement(fixed, broken, p), error, nll).sentences


@pytest.mark.parametrize(
    ("fixed", "broken", "p", "nll", "judgements"),
    [
        (9, 1, 0.0215, (-0.2, -0.1, -0.01), ("makes fewer errors than old", "is better")),
        (1, 9, 0.0215, (0.01, 0.1, 0.2), ("makes more errors than old", "is worse")),
        (3, 1, 0.625, (-0.2, -0.1, 0.01), ("is not shown to differ in error from old", "is not shown to differ")),
    ],
)
def test_a_judgement_needs_significance(
    fixed: int, broken: int, p: float, nll: tuple[float, float, float], judgements: tuple[str, str]
) -> None:
    text = said(fixed, broken, p, nll)
    assert text.startswith(f"new {judgements[0]}: of the same 100 test samples it corrects {fixed} and breaks {broken}")
    text = text.replace("−", "-")
    assert f"Its likelihood {judgements[1]}: NLL {nll[1]:+.4f} (95 % interval" in text
    assert f"error {float(broken - fixed):+.2f} (95 % interval -2.00 to +1.00) percentage points" in text


def test_the_same_network_is_called_the_same() -> None:
    assert said(0, 0, 1.0, SAME) == "new gives the same outputs as old on all 100 test samples."
    assert "not shown" in said(0, 0, 1.0, (-0.2, -0.1, 0.1))


def test_a_likelihood_that_is_no_number_is_left_out() -> None:
    text = said(1, 9, 0.0215, (math.nan, math.nan, math.nan))
    assert "makes more errors" in text and "nan" not in text and "likelihood" not in text


@pytest.fixture(scope="module")
def networks(runs: Path) -> list[RunFigures]:
    return collect(with_incoming([read_run(runs / "sam")])[0], Bounds(2, 32, torch.device("cpu")))


def test_the_verdict_is_that_of_the_networks_on_the_test_set(networks: list[RunFigures]) -> None:
    (found,) = verdicts(networks)
    data = load(networks[0].subject.data)
    logits = []
    with torch.no_grad():
        for n in networks:
            images = eval_loader(data, "test", batch_size=1000, workers=0, device=torch.device("cpu"))
            network = n.subject.network(data).eval()
            logits.append(torch.cat([network(x) for x, _ in images]).double())
    right = [z.argmax(dim=1) == data.test_labels for z in logits]
    counts = (int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum()))
    assert (found.counts.fixed, found.counts.broken) == counts
    assert found.n == len(data.test_labels) == 797
    assert found.error[1] == pytest.approx(networks[1].test.error - networks[0].test.error)
    # The same softmax in double precision instead of single.
    assert found.nll[1] == pytest.approx(networks[1].test.nll - networks[0].test.nll, abs=1e-6)
    assert found.nll[0] <= found.nll[1] <= found.nll[2]


def test_only_the_later_network_corrects_and_breaks(networks: list[RunFigures]) -> None:
    before, after = networks
    right = before.calibration.correct.clone()
    right[:5], right[5:7] = False, True
    fewer, more = right.clone(), right.clone()
    fewer[5:7], more[:5] = False, True
    both = (replace(n, calibration=replace(n.calibration, correct=c)) for n, c in ((before, fewer), (after, more)))
    (found,) = verdicts(list(both))
    assert (found.counts.fixed, found.counts.broken) == (7, 0)
    assert found.error[1] == pytest.approx(-7 / found.n)


def test_destroyed_outputs_give_no_interval(networks: list[RunFigures]) -> None:
    before, after = networks
    losses = after.calibration.losses.clone()
    losses[0] = math.inf
    broken = replace(after, calibration=replace(after.calibration, losses=losses))
    (found,) = verdicts([before, broken])
    assert math.isnan(found.nll[1]) and math.isfinite(found.error[1])
