"""Numbers that cannot be, or that nobody means, are refused in one sentence before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch.nn import functional as F

import pof
from pof import flatness
from pof._support.batches import check_inputs
from pof._support.checks import MOST, finite, whole_number
from pof.app.cards import load_network
from pof.app.options import DataOptions, ModelOptions, TrainOptions, check_numbers
from pof.app.report.samples import Bounds, samples_of
from pof.app.splits import load
from pof.models import build_model
from pof.training.schedules import Schedule
from pof.weights import WeightsError
from tests.cases import batch, mlp

NAN, HUGE = math.nan, 10**12
DATA = [batch(8)]
NAN_DATA = [(batch(8)[0] * NAN, batch(8)[1])]


def fit(**options: Any) -> Any:
    return pof.fit(pof.Finetune(mlp()), DATA, device="cpu", **options)


def trained(**options: Any) -> None:
    check_numbers(TrainOptions("finetune", **options))


def loaded(**options: Any) -> Any:
    return load(DataOptions("digits", **options))


CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "epochs 2.5": (lambda: fit(epochs=2.5), "epochs must be a whole number >= 1; got 2.5"),
    "epochs nan": (lambda: fit(epochs=NAN), "epochs must be a whole number >= 1; got nan"),
    "epochs inf": (lambda: fit(epochs=math.inf), "epochs must be a whole number >= 1; got inf"),
    "epochs huge": (lambda: fit(epochs=HUGE), "epochs must be at most 1000000; got 1000000000000"),
    "checkpoints": (lambda: fit(checkpoint_every=NAN), "checkpoint_every must be a whole number >= 1; got nan"),
    "accumulation": (lambda: fit(accumulation=HUGE), "accumulation must be at most 1000000000; got 1000000000000"),
    "warmup": (lambda: Schedule(warmup_steps=NAN), "warmup_steps must be a whole number >= 0"),
    "last epochs": (lambda: pof.methods.SharpnessAware(mlp(), last_epochs=1.5), "last_epochs must be a whole number"),
    "ascent share": (lambda: pof.methods.SharpnessAware(mlp(), ascent_share=-1), "must be in .0, 1.; got -1"),
    "rho": (lambda: pof.methods.SharpnessAware(mlp(), rho=NAN), "rho must be a finite number >= 0; got nan"),
    "gamma": (lambda: pof.PoF(mlp(), gamma=math.inf), "gamma must be a finite number >= 0; got inf"),
    "reference": (lambda: pof.PoF(mlp(), reference_size=1.5), "reference_size must be a whole number >= 1; got 1.5"),
    "seed": (lambda: pof.PoF(mlp(), seed=-1), "seed must be a whole number >= 0; got -1"),
    "class weights nan": (lambda: pof.Finetune(mlp(), class_weights=[1, NAN, 1, 1]), "class_weights must not be"),
    "class weights 0": (lambda: pof.Finetune(mlp(), class_weights=torch.zeros(4)), "class_weights must not be"),
    "points -1": (lambda: pof.landscape(mlp(), DATA, points=-1), "points must be a whole number >= 2; got -1"),
    "points huge": (lambda: pof.landscape(mlp(), DATA, points=HUGE), "points must be at most 10000"),
    "reach": (lambda: pof.landscape(mlp(), DATA, reach=NAN), "reach must be a finite number > 0; got nan"),
    "plane": (lambda: flatness.loss_plane(mlp(), F.cross_entropy, DATA, points=HUGE), "points must be at most 999"),
    "batches": (lambda: flatness.calibration(mlp(), DATA, batches=1.5), "batches must be a whole number >= 1; got 1.5"),
    "sharpness": (lambda: flatness.sam_sharpness(mlp(), F.cross_entropy, DATA, rho=NAN), "rho must be a finite number"),
    "k": (lambda: pof.top_eigenvalues(mlp(), F.cross_entropy, DATA, 1.5), "k must be a whole number >= 1; got 1.5"),
    "classes": (lambda: build_model("small-cnn", num_classes=HUGE), "num_classes must be at most 1000000"),
    "width": (lambda: build_model("wrn-28-1000000", num_classes=2), "width must be at most 100; got 1000000"),
    "depth": (lambda: build_model("wrn-6000004-1", num_classes=2), "depth must be at most 1000; got 6000004"),
    "resnet": (lambda: build_model("resnet20x1000000", num_classes=2), "width must be at most 100; got 1000000"),
    "workers": (lambda: loaded(workers=10**6), "workers must be at most 1024; got 1000000"),
    "split seed": (lambda: loaded(split_seed=10**30), "split_seed must be at most 9223372036854775807"),
    "run epochs": (lambda: trained(epochs=10**30), "epochs must be at most 1000000"),
    "run batch": (lambda: trained(batch_size=10**30), "batch_size must be at most 1000000000"),
    "run seed": (lambda: trained(seed=-1), "seed must be a whole number >= 0; got -1"),
    "run decay": (lambda: trained(weight_decay=NAN), "weight_decay must be a finite number >= 0; got nan"),
    "run clip": (lambda: trained(clip_norm=NAN), "clip_norm must be a finite number > 0; got nan"),
    "run lr": (lambda: trained(lr=math.inf), "lr must be a finite number > 0; got inf"),
    "budget": (lambda: pof.improve(mlp(), DATA, DATA, budget=HUGE), "budget must be .* at most 1000000; got"),
    "rate": (lambda: pof.improve(mlp(), DATA, DATA, lr=NAN), "lr must be a finite number > 0; got nan"),
}
MEASURES: dict[str, Callable[[Any], Any]] = {
    "evaluate": lambda data: pof.evaluate(mlp(), data),
    "landscape": lambda data: pof.landscape(mlp(), data),
    "radii": lambda data: pof.radius_distribution(mlp(), data),
    "features": lambda data: flatness.feature_statistics(mlp(), data),
    "calibration": lambda data: flatness.calibration(mlp(), data),
    "sharpness": lambda data: flatness.sam_sharpness(mlp(), F.cross_entropy, data),
    "eigenvalues": lambda data: pof.top_eigenvalues(mlp(), F.cross_entropy, data),
    "plane": lambda data: flatness.loss_plane(mlp(), F.cross_entropy, data, points=3),
}


@pytest.mark.parametrize("case", CASES)
def test_a_number_that_cannot_be_is_refused(case: str) -> None:
    call, message = CASES[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("measure", MEASURES)
def test_inputs_that_hold_nan_are_refused(measure: str) -> None:
    with pytest.raises(ValueError, match=r"inputs hold NaN or infinity \(40 of 40 values\): mend the data"):
        MEASURES[measure](NAN_DATA)


def test_a_mask_of_minus_infinity_is_none() -> None:
    check_inputs({"x": torch.ones(2, 3), "mask": torch.tensor([0.0, -math.inf]), "ids": torch.arange(3)})
    with pytest.raises(ValueError, match=r"inputs hold NaN or infinity \(1 of 2 values\)"):
        check_inputs({"x": torch.tensor([1.0, NAN])})
    with pytest.raises(ValueError, match=r"inputs hold NaN or infinity \(2 of 2 values\)"):
        check_inputs(torch.tensor([math.inf, NAN]))


def test_a_network_that_gives_nan_is_right_nowhere() -> None:
    model = mlp()
    torch.nn.init.constant_(model.fc.bias, NAN)
    with pytest.warns(UserWarning, match="these figures mean nothing"):
        assert pof.evaluate(model, DATA).error == 1.0


def test_what_is_a_number() -> None:
    for value in (1, True + 1, numpy.int64(3), MOST):
        whole_number("n", value, 1)
    for value in (0.5, 1, numpy.float32(2)):
        finite("x", value, above=0)
    for value in (True, "1", None, 1.0, 0, MOST + 1):
        with pytest.raises(ValueError, match="n must be"):
            whole_number("n", value, 1)
    for value in (True, "1", None, 0, math.inf, NAN, 10**400):
        with pytest.raises(ValueError, match="x must be a finite number > 0"):
            finite("x", value, above=0)


class Lying(list[Any]):
    """Four mini-batches, whatever the length says."""

    def __init__(self, length: int) -> None:
        super().__init__([batch(8, seed=number) for number in range(4)])
        self.length = length

    def __len__(self) -> int:
        return self.length


def test_a_loader_whose_length_lies_is_noticed() -> None:
    options: Any = {"epochs": 2, "device": "cpu", "accumulation": 2}
    with pytest.raises(ValueError, match=r"more mini-batches than its length says \(1 steps per epoch\)"):
        pof.fit(pof.Finetune(mlp()), Lying(2), **options)
    with pytest.warns(UserWarning, match="gave 2 steps where its length says 5"):
        pof.fit(pof.Finetune(mlp()), Lying(9), **options)
    assert pof.fit(pof.Finetune(mlp()), Lying(4), **options).steps == 4


def test_other_folders_and_classes(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="checkpoint_dir must be a folder; got the file"):
        fit(checkpoint_dir=tmp_path / "file")
    with pytest.raises(ValueError, match="source_classes must be a whole number >= 2; got 0"):
        load_network(ModelOptions("small-cnn", source_classes=0), loaded())
    old = tmp_path / "old"  # a run of a version without cards
    old.mkdir()
    (old / "config.yaml").write_text("model: {model: small-cnn}\ndata: {data: other}\ntraining: {method: finetune}\n")
    pof.save_model(build_model("small-cnn", num_classes=7, in_channels=1), old / "model.safetensors")
    for asked, found in {
        None: r"old has 7 outputs, and digits needs 10: .* for a new head, --source_classes 7 \(pof fine-",
        1000: r"--source_classes 1000: the network in .*old has 7: give --source_classes 7$",
    }.items():
        with pytest.raises(ValueError, match=found):
            load_network(ModelOptions("small-cnn", str(old), source_classes=asked), loaded())
    with pytest.raises(WeightsError, match="does not fit the CifarResNet"):  # of another network: classes do not help
        load_network(ModelOptions("resnet20", str(old / "model.safetensors")), loaded())
    huge = Bounds(10**6, 128, torch.device("cpu"))
    with pytest.raises(ValueError, match="batches times batch_size must be at most 1000000; got 128000000"):
        samples_of(loaded(), DataOptions("digits"), huge)
