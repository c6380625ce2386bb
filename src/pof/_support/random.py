"""Random numbers: explicit generators, and the global state captured and put back, so that a run resumes exactly."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from pof._support.devices import accelerator

# Of a loader, a sampler, a data set or a transform: what may own a generator.
_PARTS = (
    *("loader", "sampler", "batch_sampler", "collate_fn"),
    *("dataset", "datasets", "transform", "target_transform", "transforms"),
)
_MOST_PARTS = 1000


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
def preserved(loader: Any = None) -> Iterator[None]:
    """Put the global generators, and a loader's own, back after the body, even if it raises.

    For bodies that draw as they like, such as a custom loader or data set.
    """
    before = _states(_generators())
    try:
        with loader_preserved(loader):
            yield
    finally:
        for put_back, state in before:
            put_back(state)


@contextmanager
def loader_preserved(loader: Any) -> Iterator[None]:
    """Put the generators that a loader owns back after the body, even if it raises."""
    before = [(generator, generator.get_state()) for generator in loader_generators(loader)]
    try:
        yield
    finally:
        for generator, state in before:
            generator.set_state(state)


def _generators() -> Any:
    """The part of torch for this machine's accelerator (``torch.cuda``, ``torch.mps``, ``torch.xpu``), or None."""
    kind = accelerator()
    return None if kind is None else torch.get_device_module(kind)


def _name(accelerator: Any) -> str:
    return str(accelerator.__name__).rpartition(".")[2]  # cuda, mps, xpu


def _get_states(accelerator: Any) -> list[Tensor]:
    """The states of the generators of its devices; ``torch.mps`` has one device, and no function for all."""
    if hasattr(accelerator, "get_rng_state_all"):
        return list(accelerator.get_rng_state_all())
    return [accelerator.get_rng_state()]


def _set_states(accelerator: Any, states: Sequence[Tensor]) -> None:
    """Put back what :func:`_get_states` gave; with fewer devices than states, those of the first."""
    if hasattr(accelerator, "set_rng_state_all"):
        accelerator.set_rng_state_all(states[: accelerator.device_count()])
    else:
        accelerator.set_rng_state(states[0])


def _states(accelerator: Any, *, torch_only: bool = False) -> list[tuple[Callable[[Any], object], Any]]:
    """What puts each global generator back, and the state to give it; with ``torch_only`` those of torch."""
    own = torch.default_generator
    states: list[tuple[Callable[[Any], object], Any]] = [(own.set_state, own.get_state())]
    if not torch_only:
        states.append((random.setstate, random.getstate()))
        numpy = _numpy_random()
        if numpy is not None:
            states.append((numpy.set_state, numpy.get_state()))
    if accelerator is not None:
        states.append((partial(_set_states, accelerator), _get_states(accelerator)))
    return states


@contextmanager
def isolated(seed: int, device: torch.device | str = "cpu", *, torch_only: bool = False) -> Iterator[None]:
    """Run the body on global generators seeded with ``seed``; afterwards they are where they were.

    Dropout and stochastic depth draw from the global generators, some from those of Python and NumPy; a pass that
    must not move the training's own stream runs inside this.  With ``torch_only`` those of torch alone (the state of
    NumPy's takes 0.1 ms); an accelerator's where ``device`` is not the CPU.
    """
    accelerator = None if torch.device(device).type == "cpu" else _generators()
    before = _states(accelerator, torch_only=torch_only)
    try:
        torch.default_generator.manual_seed(seed)
        if not torch_only:
            random.seed(seed)
            numpy = _numpy_random()
            if numpy is not None:
                numpy.seed(seed % 2**32)
        if accelerator is not None:  # of all devices: the current one need not be the one
            getattr(accelerator, "manual_seed_all", accelerator.manual_seed)(seed)
        yield
    finally:
        for put_back, state in before:
            put_back(state)


class Foreign:
    """A generator of Python or NumPy that an object owns, with the methods of ``torch.Generator``."""

    def __init__(self, generator: Any) -> None:
        self._of_python = isinstance(generator, random.Random)
        # NumPy's newer kind keeps its state in a part of its own.
        self._own = getattr(generator, "bit_generator", generator)

    def get_state(self) -> str:
        """What a checkpoint can hold: NumPy has integers of 128 bits, and arrays."""
        own = self._own
        state = own.getstate() if self._of_python else own.state if hasattr(own, "state") else own.get_state()
        return json.dumps(state, default=lambda array: array.tolist())

    def set_state(self, state: str) -> None:
        """Take back what :meth:`get_state` gave."""
        value = json.loads(state)
        if self._of_python:
            self._own.setstate((value[0], tuple(value[1]), value[2]))
        elif hasattr(self._own, "state"):
            self._own.state = value
        else:
            self._own.set_state(value)

    def manual_seed(self, seed: int) -> None:
        """Start anew."""
        if hasattr(self._own, "state"):
            self._own.state = type(self._own)(seed).state
        else:
            self._own.seed(seed if self._of_python else seed % 2**32)


def loader_generators(loader: Any) -> list[Any]:
    """What a loader, its samplers, data set, transforms and ``collate_fn`` own of generators, each once.

    Generators of torch, Python and NumPy; also those of a bound method's object, and what ``functools.partial`` holds.
    """
    found: dict[int, Any] = {}
    seen: dict[int, Any] = {}
    waiting = [loader]
    while waiting:
        owner = waiting.pop()
        if id(owner) in seen or owner is None:
            continue
        seen[id(owner)] = owner
        held = _held_by(owner)
        values = [getattr(owner, "generator", None), *getattr(owner, "__dict__", {}).values(), *held]
        found |= {id(value): value for value in values if _is_generator(value)}
        waiting += held
        for name in reversed(_PARTS):
            part = getattr(owner, name, None)
            waiting += part if isinstance(part, list | tuple) and len(part) < _MOST_PARTS else [part]
    return [g if isinstance(g, torch.Generator) else Foreign(g) for g in found.values()]


def _held_by(function: Any) -> list[Any]:
    """What a bound method or ``functools.partial`` is called with."""
    if isinstance(function, partial):
        return [function.func, *function.args, *function.keywords.values()]
    return [function.__self__] if isinstance(function, MethodType) else []


def _is_generator(value: Any) -> bool:
    kinds = [torch.Generator, random.Random]
    if "numpy" in sys.modules:
        kinds += [sys.modules["numpy"].random.Generator, sys.modules["numpy"].random.RandomState]
    return isinstance(value, tuple(kinds)) and not isinstance(value, random.SystemRandom)


def capture() -> dict[str, Any]:
    """Take the state of every global generator: Python, NumPy if it is installed, torch's of CPU and accelerator.

    ``torch.save`` writes it and ``torch.load(weights_only=True)`` reads it.
    """
    accelerator = _generators()
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": (version, torch.tensor(internal, dtype=torch.int64), gauss),
        "torch": torch.get_rng_state(),
        **({} if accelerator is None else {_name(accelerator): _get_states(accelerator)}),
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
    accelerator = _generators()
    if accelerator is not None:  # that of another kind of device is no use to this one
        own = state.get(_name(accelerator))
        if own:
            _set_states(accelerator, [_as_bytes(s) for s in own])
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
