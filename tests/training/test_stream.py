"""Order, references and exact continuation of the mini-batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

import pof
from pof.data import DatasetLoader
from pof.training.stream import Micro, micro_batches, windows

CPU = torch.device("cpu")


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Items with augmentation from the global generator, as most data sets draw it."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return index + torch.rand(1), torch.tensor(index)


class Stateless:
    """Batch i of epoch e, by (e, i) alone."""

    def __len__(self) -> int:
        return 4

    def iterate(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for index in range(start, 4):
            yield torch.tensor([100.0 * epoch + index]), torch.tensor([index])

    def __iter__(self) -> Iterator[Any]:
        return self.iterate(0)


def noisy_loader(workers: int = 0, own_generator: bool = False) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(5) if own_generator else None
    return DataLoader(Noisy(), batch_size=3, shuffle=True, num_workers=workers, generator=generator)


def seen(window: list[Micro]) -> list[Any]:
    return [(m.inputs.tolist(), m.reference and m.reference[0].tolist()) for m in window]  # type: ignore[union-attr]


def consume(loader: Any, references: bool, accumulation: int, stop: int | None = None) -> tuple[list[Any], Any]:
    """Two epochs, drawing from the global generator as a step with dropout does; the state after ``stop`` windows."""
    stream, found, state = micro_batches(loader, references, CPU), [], None
    for epoch in range(2):
        for window in windows(stream, accumulation, epoch):
            found.append((seen(window), torch.rand(1).item()))
            if stop is not None and len(found) == stop:
                state = (epoch, stream.state_dict())
    return found, state


def resume(loader: Any, references: bool, accumulation: int, state: tuple[int, dict[str, Any]]) -> list[Any]:
    stream, found = micro_batches(loader, references, CPU), []
    epoch, within = state
    for number in range(epoch, 2):
        rest = windows(stream, accumulation, number, within if number == epoch else None)
        found += [(seen(window), torch.rand(1).item()) for window in rest]
    return found


@pytest.mark.parametrize("references", [True, False])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("make", [Stateless, noisy_loader, lambda: noisy_loader(own_generator=True)])
def test_resume_continues_with_the_same_bits(make: Any, references: bool, accumulation: int) -> None:
    total = len(consume(make(), references, accumulation)[0])
    for stop in range(1, total):
        torch.manual_seed(0)
        whole, state = consume(make(), references, accumulation, stop)
        torch.manual_seed(99)
        assert resume(make(), references, accumulation, state) == whole[stop:]


def test_resume_with_workers() -> None:
    torch.manual_seed(0)
    whole, state = consume(noisy_loader(workers=2), True, 1, 2)
    torch.manual_seed(99)
    assert resume(noisy_loader(workers=2), True, 1, state) == whole[2:]


@pytest.mark.parametrize("make", [Stateless, noisy_loader])
def test_no_reference_comes_from_the_epoch_before(make: Any) -> None:
    stream = micro_batches(make(), True, CPU)
    for epoch in range(3):
        found = [seen(window)[0] for window in windows(stream, 1, epoch)]
        assert {str(reference) for _, reference in found} == {str(inputs) for inputs, _ in found}
        assert found[-1][1] == found[0][0]


class Counting(Noisy):
    """Counts the items read."""

    read = 0

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.read += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("stateless", [True, False])
def test_an_epoch_reads_every_item_once(stateless: bool) -> None:
    data = Counting()
    loader = DatasetLoader(data, batch_size=3, shuffle=True, seed=0) if stateless else DataLoader(data, batch_size=3)
    stream = micro_batches(loader, True, CPU)
    for epoch in range(2):
        found = list(windows(stream, 1, epoch))
        assert len(found) == 4 and data.read == 10 * (epoch + 1)


def test_only_a_resume_behind_the_first_mini_batch_reads_it_again() -> None:
    data = Counting()
    loader = DatasetLoader(data, batch_size=3, shuffle=True, seed=0)
    for consumed, read in ((0, 10), (1, 10), (3, 4)):
        stream = micro_batches(loader, True, CPU)
        stream.consumed, data.read = consumed, 0
        list(windows(stream, 1, 0, stream.state_dict()))
        assert data.read == read


@pytest.mark.parametrize("make", [Stateless, noisy_loader])
def test_reference_is_the_next_batch_and_the_first_at_the_end(make: Any) -> None:
    micros = [micro for window in windows(micro_batches(make(), True, CPU), 1, 1) for micro in window]
    batches = [m.inputs.tolist() for m in micros]  # type: ignore[union-attr]
    references = [m.reference[0].tolist() for m in micros]  # type: ignore[index,union-attr]
    assert references == [*batches[1:], batches[0]]


def test_windows_hold_the_accumulated_batches_and_the_last_may_be_short() -> None:
    sizes = [[m.size for m in w] for w in windows(micro_batches(noisy_loader(), False, CPU), 3, 0)]
    assert sizes == [[3, 3, 3], [1]]


def test_between_epochs_a_generator_of_the_loader_is_put_back() -> None:
    loader = noisy_loader(own_generator=True)
    stream = micro_batches(loader, False, CPU)
    list(windows(stream, 1, 0))
    state = stream.state_dict()
    second = [seen(w)[0][0] for w in windows(stream, 1, 1)]
    fresh = micro_batches(noisy_loader(own_generator=True), False, CPU)
    fresh.load_state_dict(state)
    assert [seen(w)[0][0] for w in windows(fresh, 1, 1)] == second


def test_dict_batches_and_distributed_samplers() -> None:
    class Sampler(torch.utils.data.SequentialSampler):
        epoch = -1

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    data = [{"x": torch.ones(2), "labels": torch.tensor(1)}] * 4
    sampler = Sampler(data)
    loader = DataLoader(data, batch_size=2, sampler=sampler)  # type: ignore[arg-type]
    (micro,), *_ = windows(micro_batches(loader, True, CPU), 1, 7)
    assert sampler.epoch == 7
    assert micro.size == 2 and set(micro.inputs) == {"x"}


@pytest.mark.parametrize("references", [False, True])
def test_a_data_set_is_told_the_epoch(references: bool) -> None:
    """As streams of Hugging Face ``datasets`` are, which shuffle by it."""

    class Shuffled(torch.utils.data.IterableDataset[Any]):
        epoch = -1

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Iterator[Any]:
            generator = torch.Generator().manual_seed(self.epoch)
            return iter([(number.double(), 0) for number in torch.randperm(8, generator=generator)])

    stream = micro_batches(DataLoader(Shuffled(), batch_size=4), references, CPU)
    orders = [torch.cat([micro.inputs for (micro,) in windows(stream, 1, epoch)]) for epoch in (0, 1, 0)]  # type: ignore
    assert torch.equal(orders[0], orders[2]) and not torch.equal(orders[0], orders[1])
    pairs = pof.with_reference(DataLoader(Shuffled(), batch_size=4))
    pairs.set_epoch(1)
    assert torch.equal(torch.cat([inputs for (inputs, _), _ in pairs]), orders[1])


def test_tensor_dataset_of_one_batch_refers_to_itself() -> None:
    loader = DataLoader(TensorDataset(torch.arange(3.0), torch.arange(3)), batch_size=3)
    (micro,) = next(windows(micro_batches(loader, True, CPU), 1, 0))
    assert micro.reference is not None and torch.equal(micro.reference[0], micro.inputs)  # type: ignore[arg-type]
