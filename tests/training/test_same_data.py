"""A resume is with the data of the interrupted run, or is refused; knowing them moves no generator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import pof
from pof.data import DatasetLoader
from pof.training.checkpoint import load_state, save_state
from pof.training.same_data import are_same, sampled
from tests.cases import batches, mlp

X, Y = torch.randn(48, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.arange(48) % 4
OTHER = "the training data are not those of the interrupted run: the first mini-batch of epoch 1 is another one; give"


def torch_loader(x: Any = X, y: Any = Y, **options: Any) -> DataLoader[Any]:
    own = {"generator": torch.Generator().manual_seed(5)} if options.pop("own", False) else {}
    return DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True, **own, **options)


def our_loader(x: Any = X, y: Any = Y) -> DatasetLoader:
    return DatasetLoader(TensorDataset(x, y), batch_size=16, shuffle=True, seed=3)


def listed(x: Any = X, y: Any = Y) -> list[Any]:
    return list(zip(x.split(16), y.split(16), strict=True))


def run(folder: Path | None, loader: Any, *, stop_at: int = 0, resume: bool = False) -> Any:
    """Two epochs of three steps, the state saved after each; may end at a step, before its state is saved."""

    def log(row: Any) -> None:
        if stop_at and row["event"] == "step" and row["step"] == stop_at:
            raise KeyboardInterrupt

    torch.manual_seed(0)
    options: Any = {"epochs": 2, "checkpoint_dir": folder, "resume": resume, "checkpoint_every": 1, "device": "cpu"}
    try:
        return pof.fit(pof.PoF(mlp()), loader, log=log, **options)
    except KeyboardInterrupt:
        return None


@pytest.mark.parametrize("stop_at", [2, 4])
@pytest.mark.parametrize("make", [torch_loader, our_loader, listed])
def test_other_data_of_the_same_length_are_refused(make: Any, stop_at: int, tmp_path: Path) -> None:
    whole = run(None, make())
    run(tmp_path, make(), stop_at=stop_at)
    for other in (make(X + 1, Y), make(X, (Y + 1) % 4), make(X.flip(0), Y), make(X, Y.double())):
        with pytest.raises(pof.CheckpointError, match=OTHER):
            run(tmp_path, other, resume=True)
    gone_on = run(tmp_path, make(X + 1e-9 * torch.randn(48, 5)), resume=True)
    assert torch.allclose(gone_on.model.fc.weight, whole.model.fc.weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("stop_at", [2, 4, 5])
@pytest.mark.parametrize("options", [{}, {"own": True}])
def test_looking_moves_no_generator(options: Any, stop_at: int, tmp_path: Path) -> None:
    whole = run(None, torch_loader(**options))
    run(tmp_path, torch_loader(**options), stop_at=stop_at)
    again = run(tmp_path, torch_loader(**options), resume=True)
    assert torch.equal(again.model.fc.weight, whole.model.fc.weight)


class Unseeded(Dataset[Any]):
    """Draws from where no seed reaches."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        unseeded = torch.Generator()
        unseeded.seed()
        return X[index] + torch.randn(5, dtype=torch.float64, generator=unseeded), Y[index]


def test_draws_that_nobody_can_repeat_are_no_other_data(tmp_path: Path) -> None:
    for number, make in enumerate(
        (
            lambda: DataLoader(Unseeded(), batch_size=16),
            lambda: DatasetLoader(Unseeded(), batch_size=16, shuffle=True, seed=3),
        )
    ):
        run(tmp_path / str(number), make(), stop_at=4)
        assert run(tmp_path / str(number), make(), resume=True).steps == 6


class Counting:
    """A loader that nobody can know: it counts how often it is begun."""

    def __init__(self, batches: Any) -> None:
        self.batches, self.begun = batches, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        self.begun += 1
        return iter(self.batches)


class Stream(IterableDataset[Any]):
    """Counts too."""

    def __init__(self, inputs: Tensor = X) -> None:
        self.inputs, self.begun = inputs, 0

    def __len__(self) -> int:
        return 48

    def __iter__(self) -> Iterator[Any]:
        self.begun += 1
        return iter(zip(self.inputs, Y, strict=True))


def test_streams_and_unknown_loaders_are_begun_once_an_epoch(tmp_path: Path) -> None:
    for number, (make, counter) in enumerate(
        [
            (lambda: Counting(listed()), lambda loader: loader),
            (lambda: DataLoader(Stream(), batch_size=16), lambda loader: loader.dataset),
        ]
    ):
        run(tmp_path / str(number), make(), stop_at=4)
        loader = make()
        assert run(tmp_path / str(number), loader, resume=True).steps == 6
        assert counter(loader).begun == 1


def test_streams_and_unknown_loaders_are_known_where_they_are_read_again(tmp_path: Path) -> None:
    """Inside an epoch a resume reads its first mini-batch anyway; it may differ by draws that nobody has seeded."""
    makes: list[Any] = [lambda x: Counting(listed(x)), lambda x: DataLoader(Stream(x), batch_size=16)]
    for number, make in enumerate(makes):
        folder = tmp_path / str(number)
        run(folder, make(X), stop_at=5)
        with pytest.warns(UserWarning, match=r"first mini-batch of epoch 2 is another one than in the interrupted run"):
            assert run(folder, make(X + 1), resume=True).steps == 6


def test_a_loader_of_another_kind_is_refused(tmp_path: Path) -> None:
    run(tmp_path, torch_loader(own=True), stop_at=2)
    for other in (our_loader(), torch_loader(), listed()):
        with pytest.raises(pof.CheckpointError, match="the training loader is of another kind than that of the"):
            run(tmp_path, other, resume=True)


@pytest.mark.parametrize("stop_at", [2, 4])
def test_a_state_of_an_older_version_is_gone_on_from(stop_at: int, tmp_path: Path) -> None:
    run(tmp_path, listed(), stop_at=stop_at)
    state = load_state(tmp_path)
    assert state is not None
    for stream in state["streams"]:
        del stream["first"]
    save_state(tmp_path, state)
    assert run(tmp_path, listed(X + 1), resume=True).steps == 6


def test_what_is_kept_is_small_and_tolerant() -> None:
    images, labels = torch.rand(64, 3, 32, 32), torch.arange(64)
    kept = sampled((images, labels))
    assert [each["shape"] for each in kept] == [[64, 3, 32, 32], [64]]
    assert [len(each["values"]) for each in kept] == [256, 64] and torch.equal(kept[1]["values"], labels)
    assert are_same(kept, sampled((images + 0.01 * torch.randn_like(images), labels)))
    assert not are_same(kept, sampled((images.flip(0), labels)))
    assert not are_same(kept, sampled((images, labels.roll(1))))
    assert not are_same(kept, sampled((images[:32], labels[:32])))
    empty = sampled((torch.zeros(0, 3), torch.zeros(0).long()))
    assert are_same(empty, empty)


def test_batches_of_one_run_differ() -> None:
    first, second = batches(2)
    assert not are_same(sampled(first), sampled(second))
