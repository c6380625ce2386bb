"""Why does PoF run away once the mean expansion is above about 1?  Radius, loss at theta_0 and curvature by epoch.

    python benchmarks/runaway.py

The idea: with a mean expansion of mu the extractor is trained for the head theta_0 - mu xi* g_hat.  Once it has learned
that, the line search from theta_0 finds a minimum about mu times as far away, and so on: stable below 1, not above.

Small CNNs that fit 150 digits, post-trained at a constant rate.  After each epoch, over all training mini-batches,
in train mode: median radius xi*, loss at theta_0, second derivative of the loss along g_hat at theta_0.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import pof
from pof._support.modules import frozen_statistics
from pof.app.run_folder import environment
from pof.data import load_data, stratified_fraction, train_loader
from pof.models import build_model
from pof.perturbation.linear import respond
from pof.training.schedules import Schedule

ROOT = Path(__file__).resolve().parents[1]
SEEDS, SAMPLES, BATCH, PRE_EPOCHS, EPOCHS, RATE = 8, 150, 30, 60, 60, 1e-2
Expansion = tuple[str, float]
EXPANSIONS: dict[str, Expansion] = {
    **{f"fixed {gamma:g}": ("fixed", gamma) for gamma in (0.0, 1.0, 1.25, 1.5, 2.0)},
    **{f"U(0, {gamma:g})": ("uniform", gamma) for gamma in (2.0, 2.5, 3.0, 4.0)},
}


def trained(loader: Any, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = build_model("small-cnn", num_classes=10, in_channels=1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    pof.fit(pof.Finetune(network), loader, epochs=PRE_EPOCHS, optimizer=optimizer, schedule=Schedule(), device="cpu")
    return network


@torch.no_grad()
def measure(network: nn.Module, loader: Any, epoch: int) -> dict[str, float]:
    split = pof.split(network)
    radii, losses, curvatures = [], [], []
    network.train()
    for inputs, targets in loader.iterate(epoch):
        with frozen_statistics(network):
            features = split.features(inputs)
        gradient = pof.head_gradient(features, targets, split.weight, split.bias)
        logits = respond(features, split.weight, split.bias)
        response = respond(features, gradient.weight, gradient.bias)
        radii.append(float(pof.line_search(logits, response, targets).radius))
        losses.append(float(F.cross_entropy(logits, targets)))
        p = logits.softmax(1)
        variance = (p * response.square()).sum(1) - (p * response).sum(1).square()
        curvatures.append(float(variance.mean()))
    return {"radius": median(radii), "loss": sum(losses) / len(losses), "curvature": sum(curvatures) / len(curvatures)}


def post_trained(network: nn.Module, loader: Any, expansion: Expansion, seed: int) -> list[dict[str, float]]:
    method = pof.PoF(network, sampling=expansion[0], gamma=expansion[1], seed=seed)  # type: ignore[arg-type]
    parameters = list(method.trainable_parameters())
    optimizer = torch.optim.SGD(parameters, lr=RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    trace = [measure(network, loader, 0)]
    batches = pof.with_reference(loader)
    for epoch in range(EPOCHS):
        batches.set_epoch(epoch)
        method.train()
        for batch, reference in batches:
            out = method(*batch, *reference)
            out.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        trace.append(measure(network, loader, epoch))
    return trace


def doubled(trace: list[dict[str, float]]) -> int | None:
    """First epoch after which the loss at theta_0 is twice that of the start."""
    return next((epoch for epoch, row in enumerate(trace) if row["loss"] > 2 * trace[0]["loss"]), None)


def main() -> None:
    torch.set_num_threads(1)
    data = load_data("digits")
    traces: dict[str, list[list[dict[str, float]]]] = {name: [] for name in EXPANSIONS}
    for seed in range(SEEDS):
        few = stratified_fraction(data.train_labels, SAMPLES, seed=seed)
        loader = train_loader(data, batch_size=BATCH, seed=seed, indices=few)
        start = {name: value.clone() for name, value in trained(loader, seed).state_dict().items()}
        for name, expansion in EXPANSIONS.items():
            network = build_model("small-cnn", num_classes=10, in_channels=1)
            network.load_state_dict(start)
            traces[name].append(post_trained(network, loader, expansion, seed))
        print(f"seed {seed} done", flush=True)
    figures = {
        name: {
            "loss_doubled_after_epoch": [doubled(trace) for trace in runs],
            **{
                key: [median(trace[epoch][key] for trace in runs) for epoch in range(EPOCHS + 1)]
                for key in ("radius", "loss", "curvature")
            },
        }
        for name, runs in traces.items()
    }
    result: dict[str, Any] = {
        "question": "why does PoF run away from a mean expansion of about 1 on?",
        "settings": {
            "seeds": SEEDS, "samples": SAMPLES, "batch_size": BATCH, "epochs": EPOCHS, "lr": RATE,
            "values": "medians over the seeds, before and after each epoch",
        },
        "environment": {name: value for name, value in environment().items() if name != "command"},
        "figures": figures,
    }  # fmt: skip
    (ROOT / "benchmarks" / "results" / "runaway.json").write_text(json.dumps(result, indent=2) + "\n")
    for name, figure in figures.items():
        columns = {
            key: [figure[key][epoch] for epoch in (0, 10, 20, EPOCHS)] for key in ("radius", "loss", "curvature")
        }
        print(name, "doubled", figure["loss_doubled_after_epoch"], columns)


if __name__ == "__main__":
    main()
