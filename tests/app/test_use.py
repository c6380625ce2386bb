"""``pof predict`` and ``pof export`` on a run folder, on weights with a card, and on weights of others."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pof._support.preprocessing import Preprocessing
from pof.app.cli import main
from pof.app.runs import load_run
from pof.models import build_model
from pof.models.card import NetworkCard
from pof.weights import load_model, save_model
from tests.app.test_predict import CLASSES, picture

Said = Callable[[], str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 6), ("val", 4), ("test", 7)):
        for label, name in enumerate(CLASSES):
            for i in range(count):
                picture(root / split / name / f"{split}{i}.png", 100 * len(split) + 10 * label + i, label)
    return root


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    data = ["--data", str(folder), "--image_size", "16", "--mean", "0.5,0.4,0.3", "--workers", "0"]
    how = ["--model", "small-cnn", "--epochs", "1", "--batch_size", "6", "--lr", "0.01", "--precision", "fp32"]
    assert main(["train", *data, *how, "--out", str(out)]) == 0
    return out


def test_predictions_of_a_run_reproduce_the_error_of_evaluate(run: Path, folder: Path, tmp_path: Path) -> None:
    out, figures = tmp_path / "p.csv", tmp_path / "figures.json"
    images = ["--images", str(folder / "test"), "--workers", "0"]
    assert main(["predict", str(run), *images, "--out", str(out), "--top", "2"]) == 0
    assert main(["evaluate", str(run), "--json", str(figures), "--worst", "3"]) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    wrong = [row["class"] != Path(row["path"]).parent.name for row in rows]
    found = json.loads(figures.read_text())
    assert len(rows) == found["metrics"]["n"] == 21
    assert sum(wrong) / len(wrong) == found["metrics"]["error"]
    assert all(Path(row["path"]).parent.name == row["class"] for row in found["worst"])
    loaded = load_run(run).predict([row["path"] for row in rows], top=2)
    assert [CLASSES[label] for label in loaded.labels[:, 1]] == [row["class_2"] for row in rows]
    assert main(["predict", str(run), *images, "--out", str(out)]) == 0, "its own table is replaced"


def test_a_test_set_that_is_a_fifth_of_a_folder_is_said(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for data, said in ((folder, False), (folder / "test", True)):
        assert main(["evaluate", str(run), "--data", str(data), "--workers", "0"]) == 0
        assert ("note: a fifth of the 21 samples, as these data have no test part" in capsys.readouterr().out) is said


def test_a_fitted_temperature_changes_probabilities_and_no_class(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tables = []
    for name, more in (("plain", []), ("fitted", ["--calibrate"])):
        out = tmp_path / f"{name}.csv"
        images = ["--images", str(folder / "test"), "--workers", "0", "--out", str(out)]
        assert main(["predict", str(run), *images, *more]) == 0
        tables.append(list(csv.DictReader(out.read_text().splitlines())))
    assert "temperature " in capsys.readouterr().out
    plain, fitted = tables
    assert [row["class"] for row in plain] == [row["class"] for row in fitted]
    assert [row["probability"] for row in plain] != [row["probability"] for row in fitted]


def test_unreadable_images_are_named_and_the_exit_code_says_so(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    good = str(folder / "test/red/test0.png")
    assert main(["predict", str(run), "--images", good, str(tmp_path / "broken.png"), "--workers", "0"]) == 1
    said = capsys.readouterr()
    assert "broken.png: not a readable image" in said.err and "predictions" in said.out


def test_a_run_is_exported_and_checked_on_held_out_samples(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "net.pt2"
    assert main(["export", str(run), "--format", "torch-export", "--out", str(out), "--workers", "0"]) == 0
    said = capsys.readouterr().out
    assert "on random inputs and 12 held-out samples" in said and str(out) in said
    network = build_model("small-cnn", num_classes=3).eval()
    load_model(network, run / "model.safetensors")
    inputs = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(torch.export.load(out).module()(inputs), network(inputs), atol=1e-4, rtol=0)
    beside = json.loads((tmp_path / "net.preprocessing.json").read_text())
    assert beside["classes"] == list(CLASSES) and beside["preprocessing"]["mean"] == [0.5, 0.4, 0.3]
    assert main(["export", str(run), "--format", "torch-export", "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err


CARDS = {
    "timm": NetworkCard(
        "timm:test_resnet", CLASSES, (3, 16, 16), preprocessing=Preprocessing(16, (0.5,) * 3, (0.2,) * 3)
    ),
    "factory": NetworkCard(
        "tests.strangers:dropping", CLASSES, (1, 8, 8), preprocessing=Preprocessing(8, (0.5,), (0.2,))
    ),
}


@pytest.mark.parametrize("name", CARDS)
def test_weights_with_a_card_need_no_data(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card, file = CARDS[name], tmp_path / "net.safetensors"
    save_model(card.build(), file, metadata=card.metadata())
    images = ["--images", str(folder / "test" / "red"), "--workers", "0"]
    if name == "factory":
        assert main(["predict", str(file), *images]) == 2
        assert "whose code would run: give --model tests.strangers:dropping" in capsys.readouterr().err
    named = ["--model", card.model, "--weights", str(file)]
    assert main(["predict", *named, *images, "--out", str(tmp_path / "p.csv")]) == 0
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 8
    assert main(["export", *named, "--format", "torch-export", "--out", str(tmp_path / "net.pt2")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "on random inputs and no real ones (give --data" in said
    assert (tmp_path / "net.pt2").exists()


def test_weights_of_others_need_data_that_say_what_they_are_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    torch.save(build_model("small-cnn", num_classes=10, in_channels=1).state_dict(), tmp_path / "net.pth")
    command = ["export", "--weights", str(tmp_path / "net.pth"), "--format", "safetensors"]
    command += ["--out", str(tmp_path / "net.safetensors")]
    for more, said in (([], "give --model"), (["--model", "small-cnn"], "give --data")):
        assert main([*command, *more]) == 2
        assert said in capsys.readouterr().err
    assert main([*command, "--model", "small-cnn", "--data", "digits"]) == 0
    assert "64 held-out samples" in capsys.readouterr().out


def test_what_cannot_be_is_refused_in_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = ["--format", "hf", "--out", str(tmp_path / "out")]
    cases = [
        (["export", str(run), *other], "onnx, torch-export and safetensors hold it"),
        (["export", str(run), "--model", "resnet20", *other], f"the network in {run} is small-cnn: leave out --model"),
        (["export", *other], "export needs a trained network"),
        (["predict", str(run), "--images", "nowhere"], "no such file or folder: nowhere"),
        (["predict", str(run)], "no image in"),
        (["predict", str(run), "--images", ".", "--temperature", "2", "--calibrate"], "give one of them"),
        (["predict", str(run), "--images", ".", "--out", str(run / "result.json")], "written to a .csv or .parquet"),
    ]
    for command, said in cases:
        assert main(command) == 2, command
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("image_size", "8"),
        ("mean", "0.5,0.5,0.5"),
        ("std", "1,1,1"),
        ("interpolation", "box"),
        ("crop", "0.5"),
        ("head", "conv1"),
    ],
)
def test_images_are_not_prepared_in_another_way_than_in_training_and_nobody_believes_so(
    run: Path, folder: Path, option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uses = (["predict", "--images", str(folder)], ["export", "--format", "onnx", "--out", str(tmp_path / "n.onnx")])
    for words in uses:
        assert main([words[0], str(run), *words[1:], f"--{option}", value]) == 2
        assert f"error: --{option} {value}: the network in {run} was trained with" in capsys.readouterr().err
    same = ["--image_size", "16", "--mean", "0.5,0.4,0.3", "--interpolation", "bilinear", "--head", "fc"]
    assert main(["predict", str(run), "--images", str(folder / "test"), *same]) == 0
