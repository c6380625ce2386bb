"""The learning rate of ``--lr auto``, and the order of weights in memory."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pof._support.modules import convolutions_channels_last
from pof.app.cli import main
from pof.app.job import _class_weights, _of_all, make_optimizer
from pof.app.job import find_learning_rate as learning_rate
from pof.app.methods import Context, build_method
from pof.app.options import ModelOptions, TrainOptions
from pof.app.splits import Splits
from pof.data import ImageData, load_data


def folder(path: Path, training: str) -> ModelOptions:
    path.mkdir()
    (path / "config.yaml").write_text(f"training: {training}\n", encoding="utf-8")
    return ModelOptions("small-cnn", weights=str(path))


@pytest.mark.parametrize(("method", "rate"), [("head-ascent", 0.05), ("finetune", 0.05), ("pof", 1.6e-4)])
def test_it_follows_the_training(method: str, rate: float, tmp_path: Path) -> None:
    model = folder(tmp_path / "run", "{lr: 0.1, optimizer: sgd}")
    assert learning_rate(model, TrainOptions(method, lr="auto")) == pytest.approx(rate)


def test_a_number_is_taken_as_it_is() -> None:
    assert learning_rate(ModelOptions("small-cnn"), TrainOptions("pof", lr=0.3)) == 0.3


def test_balanced_class_weights_count_the_samples_that_are_trained_with() -> None:
    loaded, rows = load_data("digits"), list[Any]()
    assert isinstance(loaded, ImageData)
    zeros, ones = ((loaded.train_labels == label).nonzero()[:, 0] for label in (0, 1))
    splits = Splits(torch.cat([zeros[:6], ones[:2]]), None)
    weights = _class_weights(TrainOptions("finetune", class_weights="balanced"), loaded, splits, rows.append)
    assert weights is not None
    assert weights.tolist() == pytest.approx([8 / (2 * 6), 8 / (2 * 2), *[0.0] * 8])
    assert (rows[0]["event"], rows[0]["1"]) == ("class_weights", pytest.approx(2.0))


def test_processes_share_all_settings_but_places() -> None:
    parts = {"model": {"model": "small-cnn"}, "data": {"data": "digits"}, "training": {"lr": 0.1}}
    own = {"model": {"weights": "a"}, "data": {"data_root": "b", "workers": 2}, "training": {"device": "cuda:1"}}
    whole = {name: part | own[name] for name, part in parts.items()}
    assert _of_all({**whole, "processes": 2}) == {**parts, "processes": 2}


def test_it_says_what_it_cannot_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights are 'net.pth': give --lr"):
        learning_rate(ModelOptions("small-cnn", weights="net.pth"), TrainOptions("pof", lr="auto"))
    with pytest.raises(ValueError, match=r"lr 0.1 of 'adamw', now 'sgd'.*give --lr"):
        learning_rate(folder(tmp_path / "a", "{lr: 0.1, optimizer: adamw}"), TrainOptions("pof", lr="auto"))
    with pytest.raises(ValueError, match=r"is of no single training with a rate"):
        learning_rate(folder(tmp_path / "b", "{}"), TrainOptions("pof", lr="auto"))


@pytest.mark.parametrize(("method", "nesterov"), [("finetune", True), ("sam", True), ("msam", False)])
def test_momentum_is_nesterovs_but_of_msam_whose_authors_take_plain_momentum(method: str, nesterov: bool) -> None:
    training = TrainOptions(method)
    made = build_method(Context(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), None, training, 2, ()))
    (group,) = make_optimizer(made, training).param_groups
    assert (group["nesterov"], group["momentum"]) == (nesterov, 0.9)


def test_only_weights_of_images_convolutions_change_their_order() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(1, 2, 3, 4))

    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv3d(2, 4, 3), nn.Conv1d(2, 4, 3), nn.Linear(4, 2), Table())
    convolutions_channels_last(network)
    last = [p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last) for p in network.parameters()]
    assert last == [True, *[False] * 8]
    assert all(p.is_contiguous() for p in list(network.parameters())[1:])


def test_networks_that_draw_from_python_and_numpy_are_the_same_for_a_seed(tmp_path: Path) -> None:
    plain = ["train", "--data", "digits", "--model", "tests.strangers:drawing", "--train_size", "100", "--epochs", "1"]
    found = []
    for number in range(2):
        random.seed(number)
        numpy.random.seed(number)
        assert main([*plain, "--batch_size", "20", "--out", str(tmp_path / str(number))]) == 0
        found.append((tmp_path / str(number) / "model.safetensors").read_bytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("method", ["pof", "sam"])
def test_a_compiled_run_runs_compiled_and_learns_the_same(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, original = [0], nn.Module.compile

    def backend(graph: Any, inputs: Any) -> Any:
        def counted(*given: Any) -> Any:
            calls[0] += 1
            return graph(*given)

        return counted

    monkeypatch.setattr(nn.Module, "compile", lambda self, **more: original(self, backend=backend, **more))
    words = ["train", "--data", "digits", "--model", "small-cnn", "--train_size", "60", "--batch_size", "20"]
    words += ["--epochs", "2", "--device", "cpu", "--precision", "fp32", "--method", method]
    for name, compiled in {"plain": "false", "compiled": "true"}.items():
        assert main([*words, "--compile", compiled, "--out", str(tmp_path / name)]) == 0
        assert (calls[0] > 0) == (compiled == "true")
    plain, compiled_ones = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "compiled"))
    torch.testing.assert_close(plain, compiled_ones, rtol=1e-5, atol=1e-5)
