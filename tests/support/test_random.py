"""Random states: a stream goes on bitwise identically after a restore, and is not moved by an isolated pass."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import numpy
import pytest
import torch

from pof._support.random import capture, derive_seed, draw_seed, isolated, mix, preserved, restore, seeded


def draws() -> list[float]:
    """From every global generator; the second normal of a pair comes from a cache."""
    return [
        random.random(),
        random.gauss(0, 1),
        float(numpy.random.rand()),
        float(numpy.random.standard_normal()),
        float(torch.rand(())),
        float(torch.randn(())),
    ]


def test_every_global_generator_goes_on_where_it_was() -> None:
    draws()  # leaves the cached second normals of Python and NumPy behind
    state = capture()
    expected = [draws() for _ in range(3)]
    draws()
    restore(state)
    assert [draws() for _ in range(3)] == expected


def test_capture_moves_nothing() -> None:
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)
    expected = draws()
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)
    capture()
    assert draws() == expected


def test_state_survives_a_file_that_is_read_without_executing_anything(tmp_path: Path) -> None:
    draws()
    torch.save(capture(), tmp_path / "state.pt")
    expected = draws()
    draws()
    restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draws() == expected


def test_a_state_without_numpy_leaves_numpy_alone() -> None:
    state = capture()
    del state["numpy"]
    numpy.random.seed(3)
    expected = numpy.random.rand()
    numpy.random.seed(3)
    restore(state)
    assert numpy.random.rand() == expected


@pytest.mark.parametrize("raises", [False, True])
def test_isolated_pass_is_reproducible_and_moves_no_stream(raises: bool) -> None:
    torch.manual_seed(7)
    expected = torch.rand(4)
    torch.manual_seed(7)
    inside = []
    for _ in range(2):
        with suppress(ZeroDivisionError), isolated(5, torch.device("cpu")):
            inside.append(torch.nn.functional.dropout(torch.ones(50)))
            if raises:
                raise ZeroDivisionError
    assert torch.equal(*inside)
    assert torch.equal(torch.rand(4), expected)


def test_isolated_seeds_give_unrelated_streams() -> None:
    values = []
    for seed in (1, 2):
        with isolated(seed, torch.device("cpu")):
            values.append(torch.rand(20))
    assert not torch.equal(*values)


def test_generators_of_their_own() -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    first, second = seeded(3), seeded(3)
    seeds = [draw_seed(first) for _ in range(20)]
    assert seeds == [draw_seed(second) for _ in range(20)]
    assert len(set(seeds)) == 20 and all(0 <= seed < 2**62 for seed in seeds)
    assert max(seeds) > 2**60  # the whole range, not the 32 bits of some generators
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("raises", [False, True])
def test_a_body_that_draws_as_it_likes_moves_no_stream(raises: bool) -> None:
    draws()
    state = capture()
    expected = draws()
    restore(state)
    with suppress(ZeroDivisionError), preserved():
        draws()
        torch.manual_seed(1)
        if raises:
            raise ZeroDivisionError
    assert draws() == expected


def test_isolated_covers_every_global_generator() -> None:
    inside = []
    for _ in range(2):
        draws()
        with isolated(5):
            inside.append(draws())
    assert inside[0] == inside[1]


def accelerator(kind: str, count: int) -> ModuleType:
    """Generators instead of a device's, with the functions that torch has for it."""
    own = [torch.Generator().manual_seed(index) for index in range(count)]
    found = ModuleType(f"torch.{kind}")
    found.rand = lambda: [float(torch.rand((), generator=one)) for one in own]
    found.device_count = lambda: count
    if kind == "mps":
        found.get_rng_state = own[0].get_state
        found.set_rng_state = own[0].set_state
        found.manual_seed = own[0].manual_seed
    else:
        found.get_rng_state_all = lambda: [one.get_state() for one in own]
        # As torch's: more states than devices are an error.
        found.set_rng_state_all = lambda states: [own[i].set_state(state) for i, state in enumerate(states)]
        found.manual_seed_all = lambda seed: [one.manual_seed(seed) for one in own]
        found.manual_seed = own[0].manual_seed
    return found


def put_in(monkeypatch: pytest.MonkeyPatch, there: ModuleType) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(there.__name__[6:]))
    monkeypatch.setattr(torch, "get_device_module", lambda device: there)


@pytest.mark.parametrize(("kind", "count"), [("cuda", 2), ("mps", 1), ("xpu", 1)])
def test_generators_of_any_accelerator(kind: str, count: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    there = accelerator(kind, count)
    put_in(monkeypatch, there)
    torch.save(capture(), tmp_path / "state.pt")
    expected = there.rand()
    there.rand()
    restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert there.rand() == expected

    inside = []
    restore(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(2):
        with isolated(5, kind):
            inside.append(there.rand())
    with preserved():
        there.rand()
    with isolated(5):  # a pass on the CPU
        pass
    assert inside[0] == inside[1] != expected
    assert there.rand() == expected


def test_a_state_goes_where_devices_are_fewer_or_others(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, narrow, other = accelerator("cuda", 8), accelerator("cuda", 1), accelerator("mps", 1)
    put_in(monkeypatch, wide)
    wide.rand()
    state = capture()
    expected = wide.rand()
    put_in(monkeypatch, narrow)
    restore(state)
    assert narrow.rand() == expected[:1]
    put_in(monkeypatch, other)
    untouched = accelerator("mps", 1).rand()
    restore(state)
    assert other.rand() == untouched


def test_seeds_of_streams_stay_what_they_are() -> None:
    """Runs go on, and figures are reproduced, by these numbers."""
    assert derive_seed(0, "order", 3) == 386106667988085106
    assert derive_seed(0, "order", 3) != derive_seed(0, "items", 3) != derive_seed(0, "items", 4)
    # The third number of splitmix64 from the seed 1234567, as in its reference implementation.
    assert mix(1234567, 2) == 9817491932198370423
