"""What PoF, head ascent and SAM cost beside plain training, and whether the search for the radius is exact.

    python benchmarks/speed.py [--repetitions 40] [--problems 10000] [--only steps search head problems]

- ``steps``: operator calls and times of a whole step (forward, backward, optimizer) on four networks.  All methods
  take turns within one run, so that a disturbance hits them alike; ratios are medians over the rounds.
- ``search``: calls and time of the line search alone, N = 128, C = 10.
- ``head``: direction, response and search for 1,000 classes of 2,048 features, in products of the head.
- ``problems``: random problems of every scale against Brent's method in float64.

Writes results/speed.json.  About 6 minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import softmax
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import pof
from pof.app.run_folder import environment
from pof.head.split import split
from pof.models import build_model
from pof.perturbation.line import LinearLine
from pof.perturbation.loss import CrossEntropy

SGD = {"lr": 1e-4, "momentum": 0.9, "nesterov": True}


class Counting(TorchDispatchMode):
    """Counts what reaches the dispatcher."""

    calls = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return function(*args, **(kwargs or {}))


def calls(step: Callable[[], Any]) -> int:
    with Counting() as counting:
        step()
    return counting.calls


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def small_cnn() -> nn.Module:
    return build_model("small-cnn", num_classes=10, in_channels=1)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...]]] = {
    "mlp, batch 32": (mlp, 32, (1, 8, 8)),
    "small-cnn, batch 32": (small_cnn, 32, (1, 8, 8)),
    "small-cnn, batch 128": (small_cnn, 128, (1, 8, 8)),
    "resnet20, batch 128": (lambda: build_model("resnet20", num_classes=10), 128, (3, 32, 32)),
}


def medians(steps: dict[str, Callable[[], Any]], repetitions: int, warm_up: int = 5) -> dict[str, list[float]]:
    """Times in ms, the steps taking turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(warm_up + repetitions):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if repetition >= warm_up:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def step_of(method: nn.Module, *given: Tensor) -> Callable[[], Any]:
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], **SGD)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        method(*given).loss.backward()
        optimizer.step()

    return step


def and_forward(step: Callable[[], Any], model: nn.Module, other: Tensor) -> Callable[[], Any]:
    """A step, and what PoF needs at least beside it: a forward of another mini-batch without gradient."""

    def both() -> None:
        with torch.no_grad():
            model(other)
        step()

    return both


def sam_step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], Any]:
    optimizer = pof.SAM(model.parameters(), torch.optim.SGD, model=model, **SGD)

    def closure() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        return loss

    return lambda: optimizer.step(closure)


def fitted(model: nn.Module, images: Tensor, labels: Tensor, *, lr: float) -> nn.Module:
    """Fit a network a little, in place: at the loss of guessing, head ascent has nothing to search."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


def steps_of(
    network: Callable[[], nn.Module], images: Tensor, labels: Tensor, other: Tensor, others: Tensor
) -> dict[str, Callable[[], Any]]:
    """A step of each method, each on a network of its own."""
    return {
        "plain": step_of(pof.Finetune(network()), images, labels),
        "plain and a forward": and_forward(step_of(pof.Finetune(model := network()), images, labels), model, other),
        "pof": step_of(pof.PoF(network()), images, labels, other, others),
        "pof previous": step_of(pof.PoF(network(), features="previous"), images, labels),
        "head ascent": step_of(pof.HeadAscent(network(), level=0.9), images, labels),
        "sam": sam_step(network(), images, labels),
    }


def measure_steps(repetitions: int) -> dict[str, Any]:
    found = {}
    for name, (build, size, shape) in NETWORKS.items():
        torch.manual_seed(0)
        images, labels, other, others = (
            torch.randn(size, *shape),
            torch.randint(10, (size,)),
            torch.randn(size, *shape),
            torch.randint(10, (size,)),
        )

        start = fitted(build().to(memory_format=torch.channels_last), images, labels, lr=0.05)
        steps = steps_of(partial(copy.deepcopy, start), images, labels, other, others)
        rounds = repetitions * (1 if name.startswith("resnet") else 8)
        times = medians(steps, rounds)
        found[name] = {
            method: {
                "calls": calls(step),
                "median_ms": statistics.median(times[method]),
                "ratio": statistics.median(t / p for t, p in zip(times[method], times["plain"], strict=True)),
            }
            for method, step in steps.items()
        }
        print(name, {m: (row["calls"], round(row["ratio"], 3)) for m, row in found[name].items()}, flush=True)
    return found


def measure_search(repetitions: int) -> dict[str, Any]:
    torch.manual_seed(0)
    features, targets, weight = torch.randn(128, 64), torch.randint(10, (128,)), torch.randn(10, 64)
    given = features @ weight.T, pof.head_gradient(features, targets, weight, None).respond(features), targets
    times = medians({"search": lambda: pof.line_search(*given)}, 50 * repetitions)
    found = {"calls": calls(lambda: pof.line_search(*given)), "median_ms": statistics.median(times["search"])}
    print("search", found, flush=True)
    return found


@torch.no_grad()
def measure_head(repetitions: int) -> dict[str, Any]:
    torch.manual_seed(0)
    network = split(nn.Sequential(nn.Identity(), nn.Linear(2048, 1000)))
    features, targets, loss = torch.randn(128, 2048), torch.randint(1000, (128,)), CrossEntropy()
    logits = network.head(features)

    def step() -> None:
        line = LinearLine.along(network, features, targets, loss)
        line.logits(features, logits, line.minimise().radius)

    times = medians({"product": lambda: network.head(features), "all": step}, repetitions)
    ratios = [a / p for a, p in zip(times["all"], times["product"], strict=True)]
    found = {"product_ms": statistics.median(times["product"]), "products": statistics.median(ratios)}
    print("head", found, flush=True)
    return found


def random_problem(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Logits and responses of any scale, the same for all samples or not; fitted; staircases; separable, with ties."""
    n, c = int(2 ** rng.uniform(0, 9.01)), int(2 ** rng.uniform(1, np.log2(1000)))
    n = max(1, min(n, 40_000 // c))
    targets, rows, kind = rng.integers(0, c, n), np.arange(n), rng.integers(6)
    sizes = [(n, 1) if kind == 1 else (), (n, 1) if kind == 2 else ()]
    logits, response = (rng.normal(size=(n, c)) * 10 ** rng.uniform(-6, 6, size) for size in sizes)
    if kind == 3:
        logits = rng.normal(size=(n, c))
        logits[rows, targets] += rng.uniform(20, 600)
    if kind == 4:
        logits, response = 100 * np.round(3 * rng.normal(size=(n, c))), np.round(rng.normal(size=(n, c)))
    if rng.random() < 0.25:
        response[rows, targets] = response.min(1) - (rng.random(n) < 0.5) * np.abs(response).max()
    return logits, response, targets, float(rng.choice([0.0, 0.1]))


def brent(logits: np.ndarray, response: np.ndarray, share: np.ndarray) -> float:
    """Root of the slope, in a bracket found by doubling."""
    moved = response - (share * response).sum(1, keepdims=True)

    def slope(xi: float) -> float:
        return float(-(softmax(logits - xi * moved, axis=1) * moved).sum(1).mean())

    if slope(0.0) >= 0:
        return 0.0
    upper = 1e-12 * max(1.0, float(np.abs(logits).max())) / float(np.abs(moved).max())
    while slope(upper) < 0:
        upper *= 2
    return float(brentq(slope, 0.0, upper, xtol=1e-300, rtol=1e-14, maxiter=2000))


def loss_of(logits: np.ndarray, response: np.ndarray, share: np.ndarray, xi: float) -> float:
    u = logits - xi * response
    u = u - (share * u).sum(1, keepdims=True)
    high = u.max(1)
    return float((high + np.log(np.exp(u - high[:, None]).sum(1))).mean())


def measure_problems(count: int) -> dict[str, Any]:
    """An error counts where the valley is not flat: where the losses differ by more than 1e-12."""
    rng, errors, separable, wrong, flat = np.random.default_rng(1), [0.0], 0, 0, 0
    for _ in range(count):
        logits, response, targets, smoothing = random_problem(rng)
        share = np.eye(logits.shape[1])[targets] * (1 - smoothing) + smoothing / logits.shape[1]
        turns = response.min(1) < response[np.arange(len(targets)), targets]
        never = smoothing == 0 and not turns.any() and bool(np.ptp(response, axis=1).any())
        found = pof.line_search(*map(torch.from_numpy, (logits, response, targets)), smoothing)
        separable, wrong = separable + never, wrong + (bool(found.bounded) is never)
        if never:
            continue
        exact, radius = brent(logits, response, share), float(found.radius)
        error = abs(radius - exact) / exact if exact else float(radius > 0)
        losses = [loss_of(logits, response, share, xi) for xi in (radius, exact)]
        if error > 1e-6 and abs(losses[0] - losses[1]) < 1e-12 * max(1.0, losses[1]):
            flat += 1
        else:
            errors.append(error)
    result = {
        "problems": count,
        "separable": separable,
        "wrongly_told": wrong,
        "flat": flat,
        "largest_error": max(errors),
    }
    print("problems", result, flush=True)
    return result


def main() -> None:
    parts = ("steps", "search", "head", "problems")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=40)
    parser.add_argument("--problems", type=int, default=10_000)
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "speed.json"))
    options = parser.parse_args()
    measures: dict[str, Callable[[], Any]] = {
        "steps": lambda: measure_steps(options.repetitions),
        "search": lambda: measure_search(options.repetitions),
        "head": lambda: measure_head(options.repetitions),
        "problems": lambda: measure_problems(options.problems),
    }
    result = {
        "question": "cost of PoF, head ascent and SAM beside plain training; exactness of the line search",
        "settings": {name: value for name, value in vars(options).items() if name != "out"},
        "environment": {name: value for name, value in environment().items() if name != "command"},
        **{name: measures[name]() for name in options.only},
    }
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
