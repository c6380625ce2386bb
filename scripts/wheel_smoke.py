"""Run an installed pof with nothing beside it but its own dependencies: python scripts/wheel_smoke.py (10 s).

Run it with the Python of the environment that holds the wheel, from any folder but `src`.  It prints the versions, the
time that `import pof` takes beside torch, and a line per thing tried; the first failure ends it.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
import time
from importlib.metadata import requires
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import torch

start = time.perf_counter()
import pof  # noqa: E402 -- timed

IMPORT_SECONDS = time.perf_counter() - start
CLASSES = 3


def network() -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(216, 3)
    )


def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (6, 32), generator=generator)
    images = torch.randn(6, 32, 1, 8, 8, generator=generator) + labels.view(6, 32, 1, 1, 1)
    return list(zip(images, labels, strict=True))


def train(model: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for inputs, targets in batches * 3:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


def try_pof(model: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> str:
    radii = []
    for features in ("fresh", "previous"):
        method = pof.PoF(model, features=features)
        head = copy.deepcopy(dict(model[-1].named_parameters()))
        optimizer = torch.optim.SGD(method.trainable_parameters(), lr=1e-3)
        for reference, batch in pairwise(batches):
            out = method(*batch, *reference)
            out.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            radii.append(out.radius.item())
        assert all(torch.equal(value, head[name]) for name, value in model[-1].named_parameters())
    assert max(radii) > 0
    return f"radii up to {max(radii):.3f}, head unchanged"


def try_general_head(model: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> str:
    method = pof.PoF(torch.nn.Sequential(model[:3], torch.nn.Sequential(model[3], model[4])), head="1")
    out = method(*batches[0], *batches[1])
    out.loss.backward()
    assert bool(torch.isfinite(out.loss))
    return f"radius {out.radius.item():.3f}"


def try_line_search(model: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> str:
    network = pof.split(model)
    inputs, targets = batches[0]
    with torch.no_grad():
        features, logits = network.features_and_logits(inputs)
    gradient = pof.head_gradient(features, targets, network.weight, network.bias)
    response = features @ gradient.weight.T + gradient.bias
    found = pof.line_search(logits, response, targets)
    # The exact minimum is not above any point of a grid.
    grid = [
        torch.nn.functional.cross_entropy(logits - xi * response, targets) for xi in torch.linspace(0, 4, 401).tolist()
    ]
    assert float(found.loss) <= float(min(grid)) + 1e-6
    return f"{pof.find_head(model)!r}, xi {float(found.radius):.3f}"


def try_optimizers(model: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> str:
    inputs, targets = batches[0]
    for kind in (pof.SAM, pof.ASAM, pof.SAMON, pof.MSAM):
        options = {} if kind is pof.MSAM else {"model": model}
        optimizer = kind(model.parameters(), torch.optim.SGD, lr=1e-3, momentum=0.9, **options)
        for _ in range(2):

            def closure(optimizer: torch.optim.Optimizer = optimizer) -> torch.Tensor:
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(inputs), targets)
                loss.backward()
                return loss

            optimizer.step(closure)
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return "two steps each, state saved and loaded"


def try_regularizers(model: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> str:
    network = pof.split(model)
    inputs, targets = batches[0]
    delta = pof.DELTA(model, pof.regularizers.widest_convolutions(model, inputs[:2]))
    penalties = [
        pof.AdaRand.from_loader(network, batches, num_classes=CLASSES, seed=0),
        pof.RandReg("normal"),
        pof.FNP(),
        pof.L2SP(model),
        pof.BSS(),
        delta,
    ]
    features, _ = network.features_and_logits(inputs)
    total = sum(penalty(features, targets, inputs) for penalty in penalties)
    total.backward()
    penalties[0].update(features.detach(), targets)
    delta.close()
    return f"{len(penalties)} penalties, sum {total.item():.3f}"


def try_fit(model: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        options = {"epochs": 2, "val_loader": batches[:2], "checkpoint_dir": folder, "device": "cpu"}
        found = pof.fit(pof.PoF(model), batches, **options)
        again = pof.fit(pof.PoF(model), batches, resume=True, **options)
    assert (found.steps, again.steps) == (12, 12)
    return found.message


def try_weights(model: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        pof.save_model(model, path)
        again = network()
        pof.load_model(again, path)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    return str(pof.evaluate(model, batches))


def try_flatness(model: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> str:
    lines = pof.landscape(model, batches)
    radii = pof.radius_distribution(model, batches)
    try:
        found = pof.top_eigenvalues(model, torch.nn.functional.cross_entropy, batches, k=1)
    except ImportError as error:  # scipy is not a dependency of the library
        assert "pip install" in str(error), error
        return f"{type(lines).__name__}, {type(radii).__name__}; eigenvalues: {error}"
    return f"{type(lines).__name__}, {type(radii).__name__}, largest eigenvalue {float(found.values[0]):.4f}"


def main() -> None:
    print(f"pof {pof.__version__} from {Path(pof.__file__).parent}, requires {requires('pof')[:2]}")
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}; import pof after torch: {IMPORT_SECONDS:.2f} s")
    print("also installed:", [name for name in ("scipy", "accelerate", "jsonargparse") if find_spec(name)])
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, batches = network(), data()
    train(model, batches)
    for attempt in (
        try_line_search,
        try_pof,
        try_general_head,
        try_optimizers,
        try_regularizers,
        try_fit,
        try_weights,
        try_flatness,
    ):
        print(f"{attempt.__name__.removeprefix('try_'):13}", attempt(copy.deepcopy(model), batches))
    if not find_spec("jsonargparse"):
        command = subprocess.run([sys.executable, "-m", "pof", "demo"], capture_output=True, text=True, check=False)
        assert command.returncode == 2 and "pip install 'pof[app]'" in command.stderr, command.stderr
        print("command line ", command.stderr.strip())
    print("all of it works")


if __name__ == "__main__":
    main()
