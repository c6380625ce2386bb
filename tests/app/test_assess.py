"""What ``pof evaluate`` says beyond the means: checked against a loop over samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pof.app.assess import assessment
from pof.app.cli import main
from pof.app.options import DataOptions
from pof.app.splits import load, split
from pof.data import split_validation
from pof.models import build_model
from pof.training.evaluation import evaluate, judged
from pof.weights import save_model

LOGITS = torch.tensor([[2.0, 0, 0], [0, 1, 0], [3, 0, 0], [0, 0, 1], [0, 5, 0]], dtype=torch.float64)
LABELS = torch.tensor([0, -100, 1, 2, 0])
BATCHES = [(LOGITS[:2], LABELS[:2]), (LOGITS[2:], LABELS[2:])]


def values(**changes: Any) -> dict[str, Any]:
    options = {"largest": 3, "path_of": lambda index: f"{index}.png", "asked": {"split": "test"}}
    return assessment(judged(nn.Identity(), BATCHES), ("a", "b", "c"), **options | changes)


def test_figures_of_classes_equal_a_count_by_hand() -> None:
    found = values()
    assert found["confusion"] == [[1, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert found["per_class"] == [
        {"class": "a", "n": 2, "error": 0.5, "precision": 0.5, "recall": 0.5},
        {"class": "b", "n": 1, "error": 1.0, "precision": 0.0, "recall": 0.0},
        {"class": "c", "n": 1, "error": 0.0, "precision": 1.0, "recall": 1.0},
    ]
    assert found["metrics"] == vars(evaluate(nn.Identity(), BATCHES)) and found["metrics"]["error"] == 0.5


def test_largest_losses_come_first_and_keep_their_place_among_ignored_samples() -> None:
    rows = values()["worst"]
    assert [(row["index"], row["path"], row["class"], row["predicted"]) for row in rows] == [
        (4, "4.png", "a", "b"),
        (2, "2.png", "b", "a"),
        (3, "3.png", "c", "c"),
    ]
    expected = F.cross_entropy(LOGITS[[4, 2, 3]], LABELS[[4, 2, 3]], reduction="none")
    torch.testing.assert_close(torch.tensor([row["loss"] for row in rows], dtype=torch.float64), expected)
    assert "path" not in values(path_of=lambda _: None)["worst"][0]


def test_a_class_without_samples_or_predictions_has_no_share_and_nan_is_null() -> None:
    class Logarithm(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.log()

    inputs = torch.tensor([[2.0, 1, 1], [-1, 1, 1]])
    found = assessment(
        judged(Logarithm(), [(inputs, torch.tensor([0, 0]))]),
        ("a", "b", "c"),
        largest=1,
        path_of=lambda _: None,
        asked={},
    )
    assert found["per_class"][0] == {"class": "a", "n": 2, "error": 0.5, "precision": 1.0, "recall": 0.5}
    assert found["per_class"][2] == {"class": "c", "n": 0, "error": None, "precision": None, "recall": None}
    assert found["metrics"]["nll"] is None and found["samples_without_finite_logits"] == 1
    assert found["worst"][0]["index"] == 1 and found["worst"][0]["loss"] is None
    json.dumps(found, allow_nan=False)


def test_other_classes_than_the_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="gives 3 logits, and the data have 2 classes"):
        assessment(judged(nn.Identity(), BATCHES), ("a", "b"), largest=0, path_of=lambda _: None, asked={})


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_model(build_model("small-cnn", num_classes=10, in_channels=1), path)
    return path


def on_digits(network: Path, *more: str) -> int:
    return main(["evaluate", "--model", "small-cnn", "--weights", str(network), "--data", "digits", *more])


@pytest.mark.filterwarnings("always:the logits of")
def test_json_stays_json_where_logits_are_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_model("small-cnn", num_classes=10, in_channels=1)
    for parameter in list(model.parameters())[-2:]:
        parameter.data.fill_(3e38)
    save_model(model, tmp_path / "net.safetensors")
    assert on_digits(tmp_path / "net.safetensors", "--json", "-") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["samples_without_finite_logits"] > 0
    assert "samples are not finite: these figures mean nothing" in " ".join(said.err.split())


def test_json_of_the_command_agrees_with_its_table(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    assert on_digits(network, "--json", str(file), "--worst", "2", "--per_class") == 0
    printed, found = capsys.readouterr().out, json.loads(file.read_text())
    assert f"{100 * found['metrics']['error']:.2f} %" in printed and "confusion matrix" in printed
    assert sum(map(sum, found["confusion"])) == found["metrics"]["n"] == len(load(DataOptions("digits")).test_labels)
    assert [row["class"] for row in found["per_class"]] == list(load(DataOptions("digits")).classes)
    assert len(found["worst"]) == 2 and str(found["worst"][0]["index"]) in printed
    assert on_digits(network, "--json", str(file)) == 0, "its own file is replaced"
    capsys.readouterr()
    assert on_digits(network, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(file.read_text())


def test_held_out_samples_are_evaluated_and_named_by_their_place_in_the_training_set(
    network: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert on_digits(network, "--split", "validation", "--validation", "0.2", "--json", "-", "--worst", "1") == 0
    found = json.loads(capsys.readouterr().out)
    loaded = load(DataOptions("digits"))
    _, held = split_validation(loaded.train_labels, 0.2, seed=0)
    row = found["worst"][0]
    assert found["metrics"]["n"] == len(held) and row["index"] in held.tolist()
    assert loaded.classes[int(loaded.train_labels[row["index"]])] == row["class"]
    assert on_digits(network, "--split", "validation", "--validation", "0") == 2
    assert "no validation samples" in capsys.readouterr().err


def test_training_samples_are_those_that_the_run_was_trained_on(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "train --model small-cnn --data digits --train_size 150 --validation 0.2 --batch_size 50 --epochs 1 --out"
    assert main([*words.split(), str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--split", "train", "--json", "-", "--worst", "9"]) == 0
    found = json.loads(capsys.readouterr().out)
    options = DataOptions("digits", train_size=150, validation=0.2)
    loaded = load(options)
    trained = split(loaded, options).train
    assert found["metrics"]["n"] == len(trained) == 150
    assert {row["index"] for row in found["worst"]} <= set(trained.tolist())
    counts = torch.bincount(loaded.train_labels[trained], minlength=10).tolist()
    assert [row["n"] for row in found["per_class"]] == counts
    assert on_digits(network, "--split", "train", "--validation", "0.2") == 0
    assert "note: 800 of the 1000 training samples" in capsys.readouterr().out
    assert on_digits(network, "--split", "train", "--validation", "0") == 0
    assert "note" not in capsys.readouterr().out


def test_a_file_of_others_stays(network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.json").write_text('{"mine": 1}')
    assert on_digits(network, "--json", str(tmp_path / "notes.json")) == 2
    assert "not of this command" in capsys.readouterr().err
    assert (tmp_path / "notes.json").read_text() == '{"mine": 1}'
