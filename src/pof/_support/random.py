"""Random numbers: explicit generators, and the global state captured and put back, so that a run resumes exactly."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def seeded(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Make a generator of its own for ``seed``; the global ones are left alone."""
    return torch.Generator(device).manual_seed(seed)


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch, Python and NumPy: models and data of users draw from any of them."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy = _numpy_random()
    if numpy is not None:
        numpy.seed(seed % 2**32)


def draw_seed(generator: torch.Generator) -> int:
    """Draw a seed in [0, 2**62) for a dependent stream, from a generator on the CPU (no host synchronisation)."""
    return int(torch.randint(2**62, (), generator=generator))


def derive_seed(*parts: int | str) -> int:
    """Mix numbers and names (a run's seed, a purpose, an epoch) into a seed in [0, 2**63), unrelated to others."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def mix(seed: int, step: int) -> int:
    """Hash (seed, step) to 64 bits (the finaliser of splitmix64): neighbouring steps get unrelated streams.

    For streams that a saved state continues by these two numbers; elsewhere :func:`derive_seed`.
    """
    mask = 2**64 - 1
    x = (seed + (step + 1) * 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


@contextmanager
def preserved(loader: Any = None, *, cuda: bool = True, torch_only: bool = False) -> Iterator[None]:
    """The global generators, and those of a loader, are afterwards where they were before, also where the body raises.

    For bodies that draw as they like, such as a custom loader or data set; without ``cuda`` those of the CPU alone, and
    with ``torch_only`` those of torch (the state of NumPy's takes 0.1 ms).
    """
    numpy = None if torch_only else _numpy_random()
    before: list[tuple[Callable[[Any], object], Any]] = [(torch.set_rng_state, torch.get_rng_state())]
    if not torch_only:
        before.append((random.setstate, random.getstate()))
    if numpy is not None:
        before.append((numpy.set_state, numpy.get_state()))
    if cuda and torch.cuda.is_available():
        before.append((torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    for generator in loader_generators(loader):
        before.append((generator.set_state, generator.get_state()))
    try:
        yield
    finally:
        for put_back, state in before:
            put_back(state)


@contextmanager
def isolated(seed: int, device: torch.device | str = "cpu", *, torch_only: bool = False) -> Iterator[None]:
    """Run the body on global generators seeded with ``seed``; afterwards they are where they were.

    Dropout and stochastic depth draw from the global generators, some from those of Python and NumPy; a pass that
    must not move the training's own stream runs inside this.
    """
    cuda = torch.device(device).type == "cuda"
    numpy = None if torch_only else _numpy_random()
    with preserved(cuda=cuda, torch_only=torch_only):
        torch.default_generator.manual_seed(seed)
        if not torch_only:
            random.seed(seed)
        if numpy is not None:
            numpy.seed(seed % 2**32)
        if cuda:
            torch.cuda.manual_seed(seed)
        yield


def loader_generators(loader: Any) -> list[torch.Generator]:
    """The generators of a DataLoader and its samplers, each once."""
    owners = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
    owners.append(getattr(owners[-1], "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


def capture() -> dict[str, Any]:
    """Take the state of every global generator: Python, NumPy if it is installed, torch CPU and all CUDA devices.

    ``torch.save`` writes it and ``torch.load(weights_only=True)`` reads it.
    """
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": (version, torch.tensor(internal, dtype=torch.int64), gauss),
        "torch": torch.get_rng_state(),
        "cuda": list(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else [],
    }
    numpy = _numpy_random()
    if numpy is not None:
        name, keys, position, has_gauss, cached = numpy.get_state()
        state["numpy"] = (
            name,
            torch.from_numpy(keys.astype("int64")),
            int(position),
            int(has_gauss),
            float(cached),
        )
    return state


def restore(state: dict[str, Any]) -> None:
    """Put back what :func:`capture` took."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))
    torch.set_rng_state(_as_bytes(state["torch"]))
    if state["cuda"]:
        torch.cuda.set_rng_state_all([_as_bytes(s) for s in state["cuda"]])
    numpy = _numpy_random()
    if numpy is not None and "numpy" in state:
        name, keys, position, has_gauss, cached = state["numpy"]
        numpy.set_state((name, keys.numpy().astype("uint32"), position, has_gauss, cached))


def _as_bytes(state: Tensor) -> Tensor:
    return state.cpu().to(torch.uint8)


def _numpy_random() -> Any:
    try:
        import numpy
    except ImportError:
        return None
    return numpy.random
