"""Bad values, networks, labels and loaders that ``make hostile`` found: refused, or warned of, in a sentence."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pof
from pof import flatness
from pof.app.cli import main
from pof.app.improve.judge import logits_on
from pof.models import replace_head
from tests.cases import batch, batches, mlp

NAN, INF = float("nan"), float("inf")
X, Y = batch(16)


def fit(method: Any = None, loader: Any = None, **options: Any) -> pof.FitResult:
    return pof.fit(method or pof.Finetune(mlp()), loader or [(X, Y)], **{"epochs": 1, "device": "cpu", **options})


def improve(val: Any = None, model: Any = None, **options: Any) -> Any:
    given = {"budget": 1.0, "candidates": ["sgd"], "lr": 0.1, "device": "cpu", **options}
    return pof.improve(model or mlp().float(), [(X.float(), Y)], val or [(X.float(), Y)], **given)


def destroyed() -> nn.Module:
    """Its weights are no numbers."""
    model = mlp()
    nn.init.constant_(model.fc.weight, NAN)
    return model


NO_LOADER = "loader must give mini-batches, as a DataLoader does; got None"
SAMPLES = torch.utils.data.TensorDataset(X, Y)
LOSS = F.cross_entropy
NOT_FINITE = "the network's features or logits are not finite"
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "device": (lambda: fit(device="toaster"), r"device must be one of torch's, such as 'cpu' or 'cuda'; got 'toaster'"),
    "no such device": (lambda: fit(device="xpu:7"), r"device 'xpu:7' is not there: this machine has cpu"),
    "method": (lambda: fit(mlp()), r"method must be a pof.Method, such as pof.Finetune\(model\); got Sequential"),
    "meta": (lambda: fit(pof.Finetune(mlp().to("meta"))), r"'body.weight' is on the meta device and has no values"),
    "meta, evaluate": (lambda: pof.evaluate(mlp().to("meta"), [(X, Y)]), r"'body.weight' is on the meta device"),
    "no loader, fit": (lambda: pof.fit(pof.Finetune(mlp()), None, epochs=1), f"train_{NO_LOADER}"),
    "no loader, evaluate": (lambda: pof.evaluate(mlp(), None), NO_LOADER),
    "no loader, improve": (lambda: pof.improve(mlp(), [(X, Y)], None), f"val_{NO_LOADER}"),
    "no loader, flatness": (lambda: flatness.top_eigenvalues(mlp(), LOSS, None), NO_LOADER),
    "no loader, norms": (lambda: pof.estimate_statistics(nn.BatchNorm1d(5), None), NO_LOADER),
    "no loader, references": (lambda: pof.with_reference(None), NO_LOADER),
    "no loader, radius": (lambda: pof.SharpnessAware(mlp()).calibrate(3), r"batches must give mini-batches, .*; got 3"),
    "a number for a loader": (lambda: fit(val_loader=5), "val_loader must give mini-batches, .*; got 5"),
    "a Dataset": (lambda: fit(loader=SAMPLES), r"got a tensor of shape \(\): of a Dataset, which gives single"),
    "a Dataset, evaluate": (lambda: pof.evaluate(mlp(), SAMPLES), r"make a torch\.utils\.data\.DataLoader"),
    "warm-up": (
        lambda: fit(schedule=pof.Schedule(warmup_steps=5)),
        r"warmup_steps 5: the run has 1 steps, all of them in the warm-up",
    ),
    "reference_size": (lambda: pof.PoF(mlp(), reference_size=1.5), "reference_size must be .*; got 1.5"),
    "loss": (lambda: pof.PoF(mlp(), loss="mape"), "loss must be one of .* or a function of outputs .* got 'mape'"),
    "rho": (lambda: pof.SharpnessAware(mlp(), rho=-1), r"rho must be a finite number >= 0; got -1"),
    "rho is NaN": (lambda: pof.SharpnessAware(mlp(), rho=NAN), r"rho must be a finite number >= 0; got nan"),
    "rho is a text": (lambda: pof.SharpnessAware(mlp(), rho="big"), r"rho must be a finite number >= 0; got 'big'"),
    "k": (lambda: pof.BSS(k=1.5), r"k must be a whole number >= 1; got 1.5"),
    "another network's penalty": (
        lambda: pof.Regularized(mlp(), pof.L2SP(mlp())),
        r"this L2SP was made for another network than the one that is trained: make it anew",
    ),
    "another network's maps": (
        lambda: pof.Regularized(mlp(), pof.DELTA(mlp(), ["body"])),
        r"this DELTA was made for another network",
    ),
    "labels": (lambda: fit(loader=[(X, Y + 1)]), r"class indices must be in \[0, 3\]; got values from \d to 4"),
    "negative labels": (lambda: fit(loader=[(X, Y - 1)]), r"class indices must be in \[0, 3\]; got values from -1"),
    "labels of floats": (lambda: fit(loader=[(X, Y.double())]), r"soft targets must .* \(16, 4\); got \(16,\)"),
    "rows": (lambda: fit(loader=[(X, Y[:9])]), r"targets must be \(16,\) class .*; got \(9,\)"),
    "class weights": (
        lambda: pof.Finetune(mlp(), class_weights=torch.ones(5))(X, Y),
        r"class_weights must be \(4,\), one per class; got shape \(5,\)",
    ),
    "class weights, PoF": (
        lambda: pof.PoF(mlp(), class_weights=torch.ones(5))(X, Y, X, Y),
        r"class_weights must be \(4,\), one per class; got shape \(5,\)",
    ),
    "scalar output": (lambda: pof.evaluate(Summed(), [(X, Y)]), r"evaluate needs logits \(N, C\) and class indices"),
    "head": (lambda: pof.evaluate(mlp(), [(X, Y)], head="none"), r"there is no module 'none'"),
    "statistics": (
        lambda: pof.estimate_statistics(mlp(norm=True), []),
        r"the loader gave no batch, and statistics cannot be estimated without one",
    ),
    "temperature": (
        lambda: flatness.fit_temperature(torch.full((4, 3), NAN), Y[:4] % 3),
        r"logits must be finite; got NaN or infinite ones",
    ),
    "landscape": (lambda: pof.landscape(destroyed(), [(X, Y)]), NOT_FINITE),
    "radii": (lambda: pof.radius_distribution(destroyed(), [(X, Y)]), NOT_FINITE),
    "features": (
        lambda: flatness.feature_statistics(destroyed(), [(X, Y)]),
        NOT_FINITE,
    ),
    "sharpness": (lambda: flatness.sam_sharpness(destroyed(), LOSS, [(X, Y)]), "the loss is nan before any"),
    "rho of sharpness": (lambda: flatness.sam_sharpness(mlp(), LOSS, [(X, Y)], rho=NAN), "rho must be a .* got nan"),
    "reach": (lambda: pof.landscape(mlp(), [(X, Y)], reach=INF), r"reach must be a finite number > 0"),
    "eigenvalues": (lambda: pof.top_eigenvalues(mlp(), LOSS, [(X, Y)], k=1.5), "k must be .*; got 1.5"),
    "tolerance": (
        lambda: pof.top_eigenvalues(mlp(), LOSS, [(X, Y)], tolerance=-1),
        r"tolerance must be a finite number > 0; got -1",
    ),
    "classes": (lambda: replace_head(mlp(), 0), r"num_classes must be a whole number >= 1; got 0"),
    "improve, lr": (lambda: improve(lr=-1), r"lr must be a finite number > 0; got -1"),
    "improve, lr is NaN": (lambda: improve(lr=NAN), r"lr must be a finite number > 0; got nan"),
    "improve, seed": (lambda: improve(seed=1.5), r"seed must be a whole number >= 0; got 1.5"),
    "improve, head": (lambda: improve(head="none"), r"there is no module 'none'"),
    "improve, candidate": (
        lambda: improve(candidates={"x": {"method": "finetune", "lr": -1}}),
        r"candidates.x: lr must be a finite number > 0; got -1",
    ),
    "improve, labels": (lambda: logits_on(mlp(), [(X, Y + 1)]), r"labels must be in \[0, 3\]"),
    "improve, validation": (
        lambda: improve(model=destroyed().float()),
        "the incoming network's logits on the validation data are not finite",
    ),
}  # fmt: skip


class Summed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.fc(x).sum()
        return total


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    call, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        call()


def test_weights_of_integers_are_not_rounded_into_a_network(tmp_path: Path) -> None:
    model = mlp()
    whole = {name: (100 * value).long() for name, value in model.state_dict().items()}
    torch.save(whole, tmp_path / "w.pt")
    with pytest.raises(pof.WeightsError, match=r"of another kind: body.weight int64 strided"):
        pof.load_weights(model, tmp_path / "w.pt")


class Lying(list[Any]):
    """Says another length than it has."""

    said = 0

    def __len__(self) -> int:
        return self.said


def test_a_loader_whose_length_is_another_one_is_named() -> None:
    loader = Lying(batches(4))
    loader.said = 3
    with pytest.raises(ValueError, match=r"gives more mini-batches than its length says \(3 steps per epoch\)"):
        fit(loader=loader)
    loader.said = 5
    with pytest.warns(UserWarning, match="the training loader gave 4 steps where its length says 5"):
        fit(loader=loader)


def test_figures_that_are_no_numbers_are_said() -> None:
    with pytest.warns(UserWarning, match=r"the logits of 16 of 16 samples are not finite: these figures mean nothing"):
        pof.evaluate(destroyed(), [(X, Y)])


def test_a_run_that_is_stopped_says_so_once() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(val_loader=[(X, Y)], epochs=3, optimizer=lambda p: torch.optim.SGD(p, lr=1e308))
    assert [one.category for one in said] == [pof.DivergenceWarning]


DIGITS = ["--model", "small-cnn", "--data", "digits", "--device", "cpu"]
NEW_HEAD = ["--weights", "w.safetensors", "--source_classes", "10"]
LINES = {
    "evaluate with a new head": (
        ["evaluate", *DIGITS, *NEW_HEAD],
        "--source_classes 10 gives the network a new head, and evaluate needs a trained one: leave it out, or train",
    ),
    "improve with a new head": (
        ["improve", *DIGITS, *NEW_HEAD, "--out", "new"],
        "--source_classes 10 gives the network a new head, and improve needs a trained one",
    ),
    "improve with a new head, dry": (
        ["improve", *DIGITS, *NEW_HEAD, "--out", "new", "--dry_run"],
        "--source_classes 10 gives the network a new head, and improve needs a trained one",
    ),
    "device": (["train", *DIGITS, "--device", "toaster", "--out", "new"], "device must be one of torch's"),
    "batch_size": (
        ["improve", *DIGITS, "--weights", "w.safetensors", "--batch_size", "0", "--out", "new"],
        "batch_size must be a whole number >= 1; got 0",
    ),
    "validation data": (
        ["improve", *DIGITS, "--weights", "w.safetensors", "--validation_data", "images", "--out", "new"],
        "images (--validation_data) has inputs of 3 channels and classes ape, bee, where digits has 1 and 0, 1,",
    ),
}


@pytest.mark.parametrize("case", LINES)
def test_refused_by_the_command_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    from pof.models import build_model

    arguments, sentence = LINES[case]
    monkeypatch.chdir(tmp_path)
    pof.save_model(build_model("small-cnn", num_classes=10, in_channels=1), "w.safetensors")
    for name in ("ape", "bee"):
        Path("images", name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (8, 8)).save(Path("images", name, f"{number}.png"))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error and "POF_TRACEBACK" not in error
