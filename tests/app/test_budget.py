"""Forward-backward units against the passes that real training runs make."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pof.app.budget import epochs_within, passes
from pof.app.job import make_optimizer
from pof.app.method_options import AverageOptions, PoFOptions, RegularizerOptions, SAMOptions
from pof.app.methods import METHODS, Context, build_method
from pof.app.options import TrainOptions
from pof.training.fit import fit

SAMPLES, EPOCHS = 20, 3


class Counting(nn.Module):
    """Counts the samples of its forwards with and without graph, and of its backwards; copies count together."""

    counts: dict[str, int]

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.fc = nn.Linear(4 * 4 * 4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits = self.fc(self.body(inputs))
        graph = torch.is_grad_enabled() and logits.requires_grad
        self._count("with graph" if graph else "without graph", len(inputs))
        if graph:
            logits.register_hook(lambda gradient: self._count("backward", len(gradient)))
        return logits

    def _count(self, kind: str, samples: int) -> None:
        Counting.counts[kind] = Counting.counts.get(kind, 0) + samples


CASES: dict[str, dict[str, Any]] = {name: {"method": name} for name in METHODS} | {
    "pof previous": {"method": "pof", "pof": PoFOptions(features="previous")},
    "pof half the reference": {"method": "pof", "pof": PoFOptions(reference_size=2), "batch_size": 4},
    "pof ema": {"method": "pof", "average": AverageOptions(kind="ema")},
    "sam lawa": {"method": "sam", "average": AverageOptions(kind="lawa", window=2)},
    "swa late": {"method": "swa", "average": AverageOptions(start=0.5)},
    "late-sam 2": {"method": "late-sam", "sam": SAMOptions(last_epochs=2)},
    "sam at 0": {"method": "sam", "sam": SAMOptions(rho=0.0)},
    "late-sam at 0": {"method": "late-sam", "sam": SAMOptions(rho=0.0, last_epochs=2)},
    "le-sam": {"method": "sam", "sam": SAMOptions(rho="budget")},
    "sam of half": {"method": "sam", "sam": SAMOptions(ascent_share=0.5), "batch_size": 4},
    "randreg normal": {"method": "randreg", "regularizer": RegularizerOptions(prior="normal")},
}


@pytest.mark.parametrize("name", CASES)
def test_units_are_the_passes_of_a_real_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pof.head.split._TRIES", 0)  # the head is not tried on a few samples, which would be counted
    # Nor is the last mini-batch of an epoch looked at again.
    monkeypatch.setattr("pof.training.loop.Loop._check_finite", lambda self: None)
    training = TrainOptions(**({"epochs": EPOCHS, "batch_size": 6} | CASES[name]))
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(SAMPLES, 1, 4, 4, generator=generator), torch.arange(SAMPLES) % 3
    # Of six samples, the last batch is short.
    size = training.batch_size
    batches = list(zip(inputs.split(size), targets.split(size), strict=True))
    Counting.counts = {}
    model = Counting()
    source_head = nn.Linear(model.fc.in_features, 5)
    method = build_method(Context(model, "fc", training, 3, batches, source_head=source_head))
    if training.method == "delta":
        Counting.counts = {}  # it looks at two samples to choose its layers
    fit(method, batches, epochs=EPOCHS, optimizer=make_optimizer(method, training), device="cpu")
    counts = Counting.counts
    assert counts["backward"] == counts["with graph"]
    counted = Fraction(counts["backward"], SAMPLES) + Fraction(counts.get("without graph", 0), 3 * SAMPLES)
    assert counted == passes(training)


def test_an_unknown_method_is_refused_with_the_names() -> None:
    with pytest.raises(ValueError, match="unknown method 'sgd': choose one of finetune, pof"):
        passes(TrainOptions("sgd"))


@pytest.mark.parametrize(
    ("training", "epochs"),
    [
        (TrainOptions("finetune"), 12),
        (TrainOptions("pof"), 9),
        (TrainOptions("pof", pof=PoFOptions(features="previous")), 12),
        (TrainOptions("pof", pof=PoFOptions(reference_size=32)), 11),
        (TrainOptions("sam"), 6),
        (TrainOptions("sam", sam=SAMOptions(ascent_share=0.2)), 10),
        (TrainOptions("sam", sam=SAMOptions(rho=0.0)), 12),
        (TrainOptions("sam", sam=SAMOptions(rho="auto")), 6),
        (TrainOptions("late-sam", sam=SAMOptions(last_epochs=3)), 9),
        (TrainOptions("ema"), 9),
        (TrainOptions("swa", average=AverageOptions(start=0.5)), 10),
        (TrainOptions("adarand"), 11),
    ],
    ids=lambda value: getattr(value, "method", value),
)
def test_epochs_that_a_budget_of_12_pays(training: TrainOptions, epochs: int) -> None:
    assert epochs_within(12, training) == epochs


def test_a_budget_below_one_epoch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a budget of 1\.5 does not pay one epoch of sam, which costs 2"):
        epochs_within(1.5, TrainOptions("sam"))


def test_the_page_on_experiments_has_the_units_of_an_epoch() -> None:
    page = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z0-9, -]+?) \| (\d(?:/\d)?)\b[^|]*\|$", page, re.M)
    found = {name: Fraction(units) for names, units in rows for name in names.split(", ") if name in METHODS}
    assert found.keys() >= {"finetune", "head-ascent", "msam", "sam", "asam", "sam-on", "rewarm", "delta", "bi-tuning"}
    del found["late-sam"], found["pof"]  # of its last epochs, and with other features, something else
    assert found == {name: passes(TrainOptions(name, epochs=1)) for name in found}
