"""What a step of SAM and its relatives costs relative to a step of SGD, and how much SAM-ON copies.

    python benchmarks/optimizer_cost.py [--model resnet20] [--batch_size 128] [--repetitions 25]

All variants take turns within one run; medians and their ratio to SGD.  Writes results/optimizer_cost.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

import pof
from pof.app.run_folder import environment
from pof.models import build_model

SGD = {"lr": 1e-4, "momentum": 0.9, "nesterov": True}


def optimizers(model: torch.nn.Module) -> dict[str, Callable[[], torch.optim.Optimizer]]:
    parameters = list(model.parameters())
    return {
        "sgd": lambda: torch.optim.SGD(parameters, **SGD),
        "sam": lambda: pof.SAM(parameters, torch.optim.SGD, model=model, **SGD),
        "asam": lambda: pof.ASAM(parameters, torch.optim.SGD, model=model, **SGD),
        "sam-on": lambda: pof.SAMON(parameters, torch.optim.SGD, model=model, **SGD),
        "msam": lambda: pof.MSAM(parameters, torch.optim.SGD, **SGD),
    }


def stepper(name: str, options: argparse.Namespace, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], Any]:
    model = build_model(options.model, num_classes=10).to(memory_format=torch.channels_last)
    optimizer = optimizers(model)[name]()

    def closure() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = cross_entropy(model(images), labels)
        loss.backward()
        return loss

    return lambda: optimizer.step(closure)


def kept_while_perturbed() -> dict[str, int]:
    """How many numbers SAM-ON copies to restore the weights, and how many the normalisation layers have."""
    model = build_model("resnet20", num_classes=10)
    optimizer = pof.SAMON(model.parameters(), torch.optim.SGD, model=model, **SGD)
    cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    before = {name: p.clone() for name, p in model.named_parameters()}
    with optimizer.perturbed():
        moved = sum(p.numel() for name, p in model.named_parameters() if not torch.equal(p, before[name]))
    return {"perturbed": moved, "normalisation": sum(p.numel() for p in pof.normalization_parameters(model))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=25)
    parser.add_argument("--warm_up", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    images, labels = torch.randn(options.batch_size, 3, 32, 32), torch.randint(10, (options.batch_size,))
    names = ("sgd", "sam", "asam", "sam-on", "msam")
    steps = {name: stepper(name, options, images, labels) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(options.warm_up + options.repetitions):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if repetition >= options.warm_up:
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "question": "cost of a step of SAM and its relatives beside SGD",
        "settings": vars(options),
        "environment": {name: value for name, value in environment().items() if name != "command"},
        "median_ms": {name: 1e3 * value for name, value in medians.items()},
        "ratio_of_medians_to_sgd": {name: value / medians["sgd"] for name, value in medians.items()},
        "sam_on": kept_while_perturbed(),
    }
    out = Path(__file__).parent / "results" / "optimizer_cost.json"
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
