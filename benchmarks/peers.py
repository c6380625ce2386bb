"""Against peers, on the same work in one run: SAM of pytorch_optimizer; Hessians of curvlinops and PyHessian.

    python benchmarks/peers.py [--repetitions 200]

PyHessian is no dependency of anything here: ``pip install --no-deps --target FOLDER pyhessian`` and PYTHONPATH=FOLDER.
Without it the JSON says so.  SAM: time of a step, all taking turns, and how far apart the weights are after 50 steps.
Hessian of a trained MLP over 2,048 samples: largest eigenvalue, and the trace from as many probes each.  Writes
results/peers.json.  About 2 minutes.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import curvlinops
import pytorch_optimizer
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import pof
from pof.app.run_folder import environment
from pof.flatness import hessian_trace, top_eigenvalues
from pof.models import build_model

SGD = {"lr": 0.01, "momentum": 0.9}
PROBES = 30


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def small_cnn() -> nn.Module:
    torch.manual_seed(0)
    return build_model("small-cnn", num_classes=10, in_channels=1)


def backward(optimizer: torch.optim.Optimizer, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    optimizer.zero_grad()
    loss = cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    return loss


def ours(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Callable[[], Any]:
    optimizer = pof.SAM(model.parameters(), torch.optim.SGD, rho=0.05, **SGD)
    return lambda: optimizer.step(lambda: backward(optimizer, model, batch))


def theirs(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Callable[[], Any]:
    optimizer = pytorch_optimizer.SAM(model.parameters(), torch.optim.SGD, rho=0.05, **SGD)

    def step() -> None:
        backward(optimizer, model, batch)
        optimizer.step(lambda: backward(optimizer, model, batch))

    return step


def measure_sam(repetitions: int) -> dict[str, Any]:
    found = {}
    for name, build in {"mlp, batch 32": mlp, "small-cnn, batch 32": small_cnn}.items():
        model, batch = build(), (torch.randn(32, 1, 8, 8), torch.randint(10, (32,)))
        models = [model, copy.deepcopy(model)]
        steps = [make(each, batch) for make, each in zip((ours, theirs), models, strict=True)]
        for _ in range(50):
            for step in steps:
                step()
        pairs = zip(*(each.parameters() for each in models), strict=True)
        apart = max(float((a - b).detach().abs().max()) for a, b in pairs)
        times: list[list[float]] = [[], []]
        for _ in range(repetitions):
            for step, taken in zip(steps, times, strict=True):
                start = time.perf_counter()
                step()
                taken.append(1e3 * (time.perf_counter() - start))
        found[name] = {
            "pof_ms": statistics.median(times[0]),
            "pytorch_optimizer_ms": statistics.median(times[1]),
            "ratio": statistics.median(a / b for a, b in zip(*times, strict=True)),
            "weights_apart": apart,
        }
    return found


def trained() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    model, images = mlp(), torch.randn(2048, 1, 8, 8)
    labels = images.flatten(1)[:, :10].argmax(1)
    batches = list(zip(images.split(256), labels.split(256), strict=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(10):
        for batch in batches:
            backward(optimizer, model, batch)
            optimizer.step()
    return model.eval(), batches


def by_pof(model: nn.Module, batches: list[Any]) -> tuple[Callable[[], float], Callable[[], float]]:
    loss = nn.CrossEntropyLoss()
    return (
        lambda: float(top_eigenvalues(model, loss, batches, parameters="all", tolerance=1e-3).values[0]),
        lambda: float(hessian_trace(model, loss, batches, PROBES, parameters="all").value),
    )


def by_curvlinops(model: nn.Module, batches: list[Any]) -> tuple[Callable[[], float], Callable[[], float]]:
    def hessian() -> curvlinops.HessianLinearOperator:
        return curvlinops.HessianLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), batches)

    return (
        lambda: float(eigsh(hessian().to_scipy(), k=1, which="LA", tol=1e-3, return_eigenvectors=False)[0]),
        lambda: float(curvlinops.hutchinson_trace(hessian(), PROBES)),
    )


def by_pyhessian(model: nn.Module, batches: list[Any]) -> tuple[Callable[[], float], Callable[[], float]]:
    import numpy
    from pyhessian import hessian

    def computation() -> Any:
        return hessian(model, nn.CrossEntropyLoss(), dataloader=batches, cuda=False)

    return (
        lambda: float(computation().eigenvalues(maxIter=100, tol=1e-3)[0][0]),
        lambda: float(numpy.mean(computation().trace(maxIter=PROBES, tol=0.0))),
    )


def measure_hessians(repetitions: int = 3) -> dict[str, Any]:
    model, batches = trained()
    makers = {"pof": by_pof, "curvlinops": by_curvlinops}
    makers |= {"pyhessian": by_pyhessian} if find_spec("pyhessian") else {}
    found: dict[str, Any] = {name: {"eigenvalue_s": [], "trace_s": []} for name in makers}
    for _ in range(repetitions):
        for name, make in makers.items():
            torch.manual_seed(0)
            for quantity, compute in zip(("eigenvalue", "trace"), make(model, batches), strict=True):
                start = time.perf_counter()
                found[name][quantity] = compute()
                found[name][f"{quantity}_s"].append(time.perf_counter() - start)
    for row in found.values():
        row |= {name: statistics.median(row[name]) for name in ("eigenvalue_s", "trace_s")}
    return found


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed: not measured"


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "peers.json")
    options = parser.parse_args()
    peers = ("pytorch_optimizer", "curvlinops-for-pytorch", "pyhessian")
    result = {
        "question": "SAM and Hessians beside those of other packages: time, and whether the results agree",
        "settings": {"repetitions": options.repetitions, "probes": PROBES},
        "versions": {name: version_of(name) for name in peers},
        "environment": {name: value for name, value in environment().items() if name != "command"},
        "sam": measure_sam(options.repetitions),
        "hessian": measure_hessians(),
    }
    print(json.dumps({name: result[name] for name in ("versions", "sam", "hessian")}, indent=1))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
