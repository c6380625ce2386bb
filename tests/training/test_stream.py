"""Order, references and exact continuation of the mini-batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pof.training.stream import Micro, Stream

CPU = torch.device("cpu")


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Items with augmentation from the global generator, as most people's are."""

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
    stream, windows, state = Stream(loader, accumulation, references, CPU), [], None
    for epoch in range(2):
        for window in stream.windows(epoch):
            windows.append((seen(window), torch.rand(1).item()))
            if stop is not None and len(windows) == stop:
                state = (epoch, stream.state_dict())
    return windows, state


def resume(loader: Any, references: bool, accumulation: int, state: tuple[int, dict[str, Any]]) -> list[Any]:
    stream, windows = Stream(loader, accumulation, references, CPU), []
    epoch, within = state
    for number in range(epoch, 2):
        windows += [
            (seen(w), torch.rand(1).item()) for w in stream.windows(number, within if number == epoch else None)
        ]
    return windows


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
def test_reference_is_the_next_batch_and_the_first_at_the_end(make: Any) -> None:
    stream = Stream(make(), 1, True, CPU)
    micros = [micro for window in stream.windows(1) for micro in window]
    batches = [m.inputs.tolist() for m in micros]  # type: ignore[union-attr]
    references = [m.reference[0].tolist() for m in micros]  # type: ignore[index,union-attr]
    assert references == [*batches[1:], batches[0]]


def test_windows_hold_the_accumulated_batches_and_the_last_may_be_short() -> None:
    sizes = [[m.size for m in w] for w in Stream(noisy_loader(), 3, False, CPU).windows(0)]
    assert sizes == [[3, 3, 3], [1]]


def test_between_epochs_a_generator_of_the_loader_is_put_back() -> None:
    loader = noisy_loader(own_generator=True)
    stream = Stream(loader, 1, False, CPU)
    list(stream.windows(0))
    state = stream.state_dict()
    second = [seen(w)[0][0] for w in stream.windows(1)]
    fresh = Stream(noisy_loader(own_generator=True), 1, False, CPU)
    fresh.load_state_dict(state)
    assert [seen(w)[0][0] for w in fresh.windows(1)] == second


def test_dict_batches_and_distributed_samplers() -> None:
    class Sampler(torch.utils.data.SequentialSampler):
        epoch = -1

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    data = [{"x": torch.ones(2), "labels": torch.tensor(1)}] * 4
    sampler = Sampler(data)
    loader = DataLoader(data, batch_size=2, sampler=sampler)  # type: ignore[arg-type]
    windows = list(Stream(loader, 1, True, CPU).windows(7))
    assert sampler.epoch == 7
    assert windows[0][0].size == 2 and set(windows[0][0].inputs) == {"x"}


def test_tensor_dataset_of_one_batch_refers_to_itself() -> None:
    loader = DataLoader(TensorDataset(torch.arange(3.0), torch.arange(3)), batch_size=3)
    (micro,) = next(Stream(loader, 1, True, CPU).windows(0))
    assert micro.reference is not None and torch.equal(micro.reference[0], micro.inputs)  # type: ignore[arg-type]
