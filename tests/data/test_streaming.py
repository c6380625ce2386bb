"""Streams: the same mini-batches from any position on, in training too, and what cannot be done with them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, TensorDataset, get_worker_info

from pof.app.cli import main
from pof.app.options import DataOptions
from pof.app.splits import split
from pof.data import DataError, eval_loader, load_data, train_loader
from pof.data.mixing import Mixing
from pof.data.streaming import StreamLoader
from tests.interrupted import resumes_bitwise

CLASSES = ["a", "b", "c"]


class Stream(IterableDataset[Any]):
    """Ten samples in a new order each time, with noise from all three generators."""

    classes = CLASSES

    def __init__(self, size: int = 10) -> None:
        self.size = size

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        info = get_worker_info()
        rows = list(range(self.size))[info.id :: info.num_workers] if info else list(range(self.size))
        random.shuffle(rows)
        for row in rows:
            noise = 0.1 * torch.rand(1) + 0.01 * random.random() + 0.001 * numpy.random.random()
            yield torch.tensor([float(row), 0.0, 1.0]) + noise.float(), row % 3


def held(size: int = 6) -> TensorDataset:
    return TensorDataset(torch.randn(size, 3, generator=torch.Generator().manual_seed(0)), torch.arange(size) % 3)


def without_validation() -> Any:
    return Stream(), held()


def with_validation() -> Any:
    return Stream(), held(), held(9)


def network(in_features: int, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(in_features, 8), nn.ReLU(), nn.Linear(8, num_classes))


def loader(**options: Any) -> StreamLoader:
    return StreamLoader(Stream(), **{"batch_size": 4, "steps": 3, "seed": 7, "num_classes": 3, **options})


def equal(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_any_batch_is_the_same_from_any_position_and_the_global_generators_stay(workers):
    kept = loader(workers=workers)
    torch.manual_seed(1)
    random.seed(1)
    before = torch.get_rng_state(), random.getstate()
    whole = [list(kept.iterate(epoch)) for epoch in range(3)]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    torch.manual_seed(2)
    assert equal(list(loader(workers=workers).iterate(2, 1)), whole[2][1:])
    assert equal(list(kept.iterate(0)), whole[0])  # a pass for statistics, in between
    assert not equal(whole[0], whole[1])


def test_an_epoch_goes_on_where_the_one_before_ended_and_each_pass_has_each_sample_once():
    big = StreamLoader(Stream(12), batch_size=4, steps=2, seed=0, num_classes=3)
    rows = [int(row) for epoch in range(3) for inputs, _ in big.iterate(epoch) for row in inputs[:, 0]]
    assert sorted(rows[:12]) == list(range(12))
    assert sorted(rows[12:]) == list(range(12))
    assert rows[:12] != rows[12:]


def test_labels_and_sizes_are_checked():
    with pytest.raises(DataError, match="the stream has not 11 samples, a full mini-batch: lower batch_size"):
        list(loader(batch_size=11).iterate(0))
    with pytest.raises(DataError, match=r"label 2 of sample .* is out of range for 2 classes"):
        list(loader(num_classes=2).iterate(0))
    for name, given in (("batch_size", {"batch_size": 0}), ("steps_per_epoch", {"steps": 0})):
        with pytest.raises(DataError, match=f"{name} must be at least 1; got 0"):
            loader(**given)
    with pytest.raises(DataError, match="mixup and cutmix are for images"):
        list(loader(mixing=Mixing(3, mixup=1.0)).iterate(0))


DATA = f"{__name__}:without_validation"


def test_what_needs_every_label_is_refused_with_the_remedy():
    data = load_data(DATA)
    assert (data.classes, data.image_shape) == (tuple(CLASSES), (3,))
    for options in ({}, {"validation": 0, "train_size": 4}, {"validation": 0, "fraction": 0.5}):
        with pytest.raises(
            DataError, match=r"are a stream .*: let the factory return \(training, validation, test\), or"
        ):
            split(data, DataOptions(DATA, **options))
    splits = split(data, DataOptions(DATA, validation=0))
    with pytest.raises(ValueError, match="are a stream, whose samples have no numbers: give a Dataset with a length"):
        len(splits.train)
    with pytest.raises(DataError, match="the training data are a stream without a length: give --steps_per_epoch"):
        train_loader(data, batch_size=2, seed=0)
    with pytest.raises(DataError, match="a stream is not balanced, nor shared by processes"):
        train_loader(data, batch_size=2, seed=0, steps=2, balanced=True)
    with pytest.raises(DataError, match="are a stream"):
        eval_loader(data, "train", batch_size=2)
    with pytest.raises(DataError, match=r"digits has a length: leave out steps_per_epoch \(5\), which is for streams"):
        train_loader(load_data("digits"), batch_size=2, seed=0, steps=5)
    ((inputs, labels),) = eval_loader(data, "test", batch_size=9)
    assert torch.equal(inputs, held().tensors[0])
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]


def nameless() -> Any:
    return IterableTensors(), held()


class IterableTensors(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return islice(iter(held()), 4)


def test_a_stream_must_say_its_classes():
    with pytest.raises(DataError, match="does not say how many classes there are: give it the attribute classes"):
        load_data(f"{__name__}:nameless")


def test_of_a_stream_every_other_sample_is_read(capsys):
    assert main(["data", "--data", f"{__name__}:with_validation", "--read_all"]) == 0
    assert "every sample was read but the training stream" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("factory", "options"), [("with_validation", []), ("without_validation", ["--validation", "0"])]
)
@pytest.mark.parametrize("method", ["finetune", "pof"])
def test_trained_on_the_command_line_and_resumed_bitwise(tmp_path, factory, options, method, monkeypatch, capsys):
    arguments = [
        "train",
        "--model",
        f"{__name__}:network",
        "--data",
        f"{__name__}:{factory}",
        "--epochs",
        "2",
        *options,
    ]
    arguments += [
        "--batch_size",
        "3",
        "--lr",
        "1e-4",
        "--checkpoint_every",
        "1",
        "--device",
        "cpu",
        "--precision",
        "fp32",
    ]
    arguments += ["--steps_per_epoch", "4", "--method", "finetune", "--workers", "0"]
    assert main([*arguments, "--out", str(tmp_path / "first")]) == 0
    if method == "pof":
        arguments[0] = "post-train"
        arguments += ["--method", "pof", "--weights", str(tmp_path / "first" / "model.safetensors")]
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    assert resumes_bitwise(arguments, tmp_path, monkeypatch, step=7)
