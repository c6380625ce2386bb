"""Random numbers: explicit generators, and the global state captured and put back, so that a run resumes exactly."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def seeded(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Make a generator of its own for ``seed``.

    Returns:
        A ``torch.Generator`` on ``device``; the global generator is left alone.
    """
    return torch.Generator(device).manual_seed(seed)


def draw_seed(generator: torch.Generator) -> int:
    """Draw a seed in [0, 2**62) for a dependent stream.

    Returns:
        The seed, as a Python integer (the generator lives on the CPU: no device is waited for).
    """
    return int(torch.randint(2**62, (), generator=generator))


def derive_seed(*parts: int | str) -> int:
    """Mix numbers and names into a seed; different parts give unrelated seeds.

    Args:
        *parts: for example the run's seed, a purpose, an epoch.

    Returns:
        A number in [0, 2**63).
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def isolated(seed: int, device: torch.device) -> Iterator[None]:
    """Run the body on global generators seeded with ``seed``; afterwards they are where they were.

    Dropout and stochastic depth draw from the global generators, some from those of Python and NumPy; a pass that
    must not move the training's own stream runs inside this.
    """
    devices = [device] if device.type == "cuda" else []
    numpy = _numpy_random()
    before = random.getstate(), None if numpy is None else numpy.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            if numpy is not None:
                numpy.seed(seed % 2**32)
            if devices:
                torch.cuda.manual_seed(seed)
            yield
    finally:
        random.setstate(before[0])
        if numpy is not None:
            numpy.set_state(before[1])


def capture() -> dict[str, Any]:
    """Take the state of every global generator: Python, NumPy if it is installed, torch CPU and all CUDA devices.

    Returns:
        A dict of tensors and plain values that ``torch.save`` writes and ``torch.load(weights_only=True)`` reads.
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


@contextmanager
def preserved() -> Iterator[None]:
    """Put every global generator back to where it was, also where the body raises."""
    state = capture()
    try:
        yield
    finally:
        restore(state)


def _as_bytes(state: Tensor) -> Tensor:
    return state.cpu().to(torch.uint8)


def _numpy_random() -> Any:
    try:
        import numpy
    except ImportError:
        return None
    return numpy.random
