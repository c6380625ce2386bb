"""What a step of PoF costs relative to a step of plain training.

    python benchmarks/step_cost.py [--model resnet20] [--batch_size 128] [--repetitions 40]

All variants take turns within one run, so that a disturbance hits them alike.  Reports medians, and quartiles of the
per-round ratio to SGD.  The line search is timed inside the same rounds.  Writes results/step_cost.json.
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

import pof
from pof.app.run_folder import environment
from pof.models import build_model
from pof.perturbation.linear import respond


def stepper(method: torch.nn.Module, batch: Any, reference: Any, dtype: torch.dtype | None) -> Callable[[], None]:
    optimizer = torch.optim.SGD(
        [p for p in method.parameters() if p.requires_grad], lr=1e-4, momentum=0.9, nesterov=True
    )
    device = batch[0].device

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            loss = method(*batch, *reference).loss
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def measure(options: argparse.Namespace, precision: str) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if precision == "bf16" else None
    torch.manual_seed(0)
    batch, reference = (
        (
            torch.randn(options.batch_size, 3, 32, 32, device=device),
            torch.randint(10, (options.batch_size,), device=device),
        )
        for _ in range(2)
    )

    def network() -> torch.nn.Module:
        return build_model(options.model, num_classes=10).to(device, memory_format=torch.channels_last)

    fresh, previous = pof.PoF(network()), pof.PoF(network(), features="previous")
    steps = {
        "sgd": stepper(pof.Finetune(network()), batch, (), dtype),
        "pof fresh": stepper(fresh, batch, reference, dtype),
        "pof previous": stepper(previous, batch, (), dtype),
        "head ascent": stepper(pof.HeadAscent(network()), batch, (), dtype),
    }
    with torch.no_grad():
        features = fresh.network.features(reference[0]).float()
    head = fresh.network
    gradient = pof.head_gradient(features, reference[1], head.weight, head.bias)
    logits = respond(features, head.weight, head.bias).detach()
    response = respond(features, gradient.weight, gradient.bias)

    def search() -> None:
        pof.line_search(logits, response, reference[1])
        if device.type == "cuda":
            torch.cuda.synchronize()

    steps["line search"] = search
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(options.warm_up + options.repetitions):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if repetition >= options.warm_up:
                times[name].append(time.perf_counter() - start)
    ratios = {
        name: [t / s for t, s in zip(values, times["sgd"], strict=True)]
        for name, values in times.items()
        if name != "sgd"
    }
    return {
        "median_ms": {name: 1e3 * statistics.median(values) for name, values in times.items()},
        "ratio_of_medians_to_sgd": {
            name: statistics.median(values) / statistics.median(times["sgd"]) for name, values in times.items()
        },
        "quartiles_of_ratio_to_sgd": {name: statistics.quantiles(values, n=4) for name, values in ratios.items()},
        "line_search_share_of_fresh_step": statistics.median(times["line search"])
        / statistics.median(times["pof fresh"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=40)
    parser.add_argument("--warm_up", type=int, default=5)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "step_cost.json"))
    options = parser.parse_args()
    result = {
        "question": "cost of a PoF step beside plain training",
        "settings": {name: value for name, value in vars(options).items() if name != "out"},
        "environment": {name: value for name, value in environment().items() if name != "command"},
        "fp32": measure(options, "fp32"),
        "bf16": measure(options, "bf16"),
    }
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text(json.dumps(result, indent=2) + "\n")
    for precision in ("fp32", "bf16"):
        print(precision, json.dumps(result[precision], indent=2))


if __name__ == "__main__":
    main()
