"""What a run may not change when it resumes: every option of its method, derived and not listed by hand."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pof
from pof._support.described import LEFT_OUT, described
from tests.cases import batches, mlp

Make = Callable[[nn.Module], pof.Method]
MEAN, STD = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double(), torch.ones(4, 6).double()


class Focal:
    def __init__(self, gamma: float) -> None:
        self.gamma = gamma

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets)


def one(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets)


def other(logits: Tensor, targets: Tensor, share: float = 0.5) -> Tensor:
    return share * F.cross_entropy(logits, targets)


def weighted(first: float) -> Tensor:
    return torch.tensor([first, 1.0, 1.0, 1.0], dtype=torch.float64)


def adarand(model: nn.Module, alpha: float = 0.5, lr: float = 1e-2) -> pof.Method:
    return pof.Regularized(model, pof.AdaRand(MEAN, STD, alpha=alpha, lr=lr))


CHANGES: dict[str, tuple[Make, Make, str]] = {
    "gamma": (pof.PoF, partial(pof.PoF, gamma=1.0), r"PoF.gamma was 2.0 and is now 1.0"),
    "smoothing": (pof.PoF, partial(pof.PoF, label_smoothing=0.1), r"label_smoothing was 0.0 and is now 0.1"),
    "weights": (
        partial(pof.Finetune, class_weights=weighted(1.0)),
        partial(pof.Finetune, class_weights=weighted(2.0)),
        r"class_weights was '\(4,\)",
    ),
    "weights given": (
        pof.HeadAscent,
        partial(pof.HeadAscent, class_weights=weighted(1.0)),
        "class_weights was None and is now",
    ),
    "loss": (partial(pof.PoF, loss=one), partial(pof.PoF, loss=other), "loss was '.*one' and is now '.*other'"),
    "loss given": (pof.HeadAscent, partial(pof.HeadAscent, loss=one), "label_smoothing was 0.0 and is now None"),
    "loss's option": (
        partial(pof.PoF, loss=Focal(1.0)),
        partial(pof.PoF, loss=Focal(2.0)),
        "loss.Focal.gamma was 1.0 and is now 2.0",
    ),
    "partial loss": (
        partial(pof.PoF, loss=partial(other, share=0.1)),
        partial(pof.PoF, loss=partial(other, share=0.2)),
        "share was 0.1 and is now 0.2",
    ),
    "module loss": (
        partial(pof.PoF, loss=nn.CrossEntropyLoss(weight=weighted(1.0))),
        partial(pof.PoF, loss=nn.CrossEntropyLoss(weight=weighted(3.0))),
        "loss.CrossEntropyLoss.weight was",
    ),
    "alpha": (adarand, partial(adarand, alpha=0.9), "AdaRand.alpha was 0.5 and is now 0.9"),
    "lr": (adarand, partial(adarand, lr=0.1), "AdaRand.lr was 0.01 and is now 0.1"),
    "prior": (
        lambda m: pof.Regularized(m, pof.RandReg("normal")),
        lambda m: pof.Regularized(m, pof.RandReg("uniform")),
        "prior was 'normal' and is now 'uniform'",
    ),
    "k": (
        lambda m: pof.Regularized(m, pof.BSS(k=1)),
        lambda m: pof.Regularized(m, pof.BSS(k=2)),
        "BSS.k was 1 and is now 2",
    ),
    "rho": (pof.SharpnessAware, partial(pof.SharpnessAware, rho=0.1), "rho was 0.05 and is now 0.1"),
    "inner": (
        lambda m: pof.Averaged(pof.PoF(m), "ema"),
        lambda m: pof.Averaged(pof.PoF(m, gamma=1.0), "ema"),
        r"Averaged.method.PoF.gamma was 2.0 and is now 1.0",
    ),
    "decay": (
        lambda m: pof.Averaged(pof.PoF(m), "ema"),
        lambda m: pof.Averaged(pof.PoF(m), "ema", decay=0.5),
        "decay was 0.99 and is now 0.5",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_option_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    before, after, message = CHANGES[name]

    def run(make: Make, resume: bool) -> None:
        pof.fit(make(mlp()), batches(2), epochs=1, checkpoint_dir=tmp_path, resume=resume, device="cpu")

    run(before, resume=False)
    run(before, resume=True)
    with pytest.raises(pof.CheckpointError, match=message):
        run(after, resume=True)


def test_a_seed_and_a_calibrated_radius_are_not_compared() -> None:
    assert pof.PoF(mlp(), seed=1).settings() == pof.PoF(mlp(), seed=2).settings()
    method = pof.SharpnessAware(mlp(), rho=0.3)
    assert method.settings()["SharpnessAware"]["rho"] == 0.3
    model = mlp()
    with torch.no_grad():
        model.fc.weight *= 10
    fitted = [(x, model(x).argmax(1)) for x, _ in batches(2)]
    method = pof.SharpnessAware(model)
    method.calibrate(fitted, level=0.5)
    assert method.settings()["SharpnessAware"]["rho"] == "from the data"


def test_a_run_goes_on_with_its_radius_where_it_would_be_another_one_now(tmp_path: Path) -> None:
    radii, model = [], mlp()
    with torch.no_grad():
        model.fc.weight *= 10
    fitted = [(x, model(x).argmax(1)) for x, _ in batches(6)]

    def run(level: float, **options: Any) -> None:
        method = pof.Averaged(pof.SharpnessAware(copy.deepcopy(model)), "ema")
        radii.append(method.method.calibrate(fitted, level=level))
        pof.fit(method, fitted, epochs=2, device="cpu", checkpoint_dir=tmp_path, **options)
        radii.append(method.method.rho)

    run(0.5)
    run(0.9, resume=True)  # as other mini-batches would
    assert radii[0] == radii[1] == radii[3] != radii[2]


def test_statistics_of_the_features_are_not_compared() -> None:
    """They are in the state, and another machine may compute other last bits."""
    moved = pof.Regularized(mlp(), pof.RandReg("class", mean=MEAN + 1e-9, std=STD))
    assert moved.settings() == pof.Regularized(mlp(), pof.RandReg("class", mean=MEAN, std=STD)).settings()


@pytest.mark.parametrize(
    "kind", [pof.Finetune, pof.PoF, pof.HeadAscent, pof.SharpnessAware, pof.Regularized, pof.Averaged]
)
def test_every_option_of_the_constructor_is_among_the_settings(kind: type[pof.Method]) -> None:
    given = {pof.Regularized: (pof.FNP(),), pof.Averaged: ("ema",)}.get(kind, ())
    method = kind(pof.Finetune(mlp()) if kind is pof.Averaged else mlp(), *given)
    (found,) = method.settings().values()
    wanted = inspect.signature(kind).parameters.keys() - LEFT_OUT
    loss = {"label_smoothing", "class_weights"}
    assert wanted - loss <= found.keys()
    if wanted & loss:
        assert found["loss"] == {"CrossEntropy": {"label_smoothing": 0.0, "class_weights": None}}


def test_values_are_described_plainly() -> None:
    assert described([1, 2.5, None, ("a", True)]) == [1, 2.5, None, ["a", True]]
    assert described(one) == f"{__name__}.one"
    assert described(object()) == "builtins.object"
    assert described(weighted(1.0)) == described(weighted(1.0).float()) != described(weighted(2.0))
    assert described(partial(other, share=0.1)) == {f"{__name__}.other": {"arguments": [], "share": 0.1}}
