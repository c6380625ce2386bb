"""Do the paper's two claims hold on a public CIFAR-10 ResNet-20?  Largest head eigenvalue halved; radius ratio of 2.

    python benchmarks/paper_claims.py --weights resnet20-12fca82f.th --after RUN --data_root FOLDER

Before and after post-training: largest eigenvalue of the head's Hessian over training and test samples, distribution
of the radius over mini-batches of 128 (for both readings of a test mini-batch's direction), loss along one head
gradient.  Writes results/paper_claims.json and docs/figures/*.svg.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

import pof
from pof.app.run_folder import environment
from pof.data import eval_loader, load_data, train_loader
from pof.models import build_model

ROOT = Path(__file__).resolve().parents[1]
BATCH = 128


def radii(network: torch.nn.Module, train: Any, test: Any, batches: int) -> dict[str, Any]:
    figures = {}
    for direction in ("own", "train"):
        found = pof.radius_distribution(network, train, test_loader=test, batches=batches, direction=direction)
        figures[direction] = {
            "train_median": found.train.median,
            "test_median": found.test.median,
            "ratio": found.ratio,
            "train_separable": found.train.separable_share,
            "test_separable": found.test.separable_share,
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--after", required=True, help="run folder of the post-training")
    parser.add_argument("--data_root", required=True)
    parser.add_argument("--batches", type=int, default=78)
    options = parser.parse_args()
    data = load_data("cifar10", data_root=options.data_root, augment="none")
    train = partial(train_loader, data, batch_size=BATCH, seed=0)
    # Drawn at random from the training set, so that test mini-batches must be too.
    order = torch.randperm(len(data.test_labels), generator=torch.Generator().manual_seed(0))
    test = partial(eval_loader, data, "test", batch_size=BATCH, indices=order)
    from matplotlib import pyplot

    figures: dict[str, Any] = {}
    landscapes, distributions = {}, {}
    for name, weights in {"before": options.weights, "after": f"{options.after}/model.safetensors"}.items():
        network = build_model("resnet20", num_classes=10, weights=weights)
        eigenvalues = {
            part: pof.top_eigenvalues(network, torch.nn.functional.cross_entropy, loader, batches=options.batches)
            for part, loader in (("train", train()), ("test", test()))
        }
        landscapes[name] = pof.landscape(network, train(), test_loader=test(), batches=options.batches, reach=3.0)
        distributions[name] = pof.radius_distribution(network, train(), test_loader=test(), batches=options.batches)
        figures[name] = {
            "test_error": pof.evaluate(network, test()).error,
            "largest_head_eigenvalue": {part: float(e.values[0]) for part, e in eigenvalues.items()},
            "radius": radii(network, train(), test(), options.batches),
            "loss_increment_along_one_direction": landscapes[name].increment,
        }
    for kind, drawn in (("landscape", landscapes), ("radius", distributions)):
        figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True)
        for ax, (name, result) in zip(axes, drawn.items(), strict=True):
            result.plot(ax)
            ax.set_title(f"{name} post-training")
        figure.tight_layout()
        folder = ROOT / "docs" / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"public-resnet20-{kind}.svg", metadata={"Date": None})
    result = {
        "question": "do the paper's two claims hold on a public CIFAR-10 ResNet-20?",
        "settings": {"batches": options.batches, "batch_size": BATCH},
        "post_training": json.loads((Path(options.after) / "result.json").read_text()),
        "environment": {name: value for name, value in environment().items() if name != "command"},
        "figures": figures,
    }
    out = ROOT / "benchmarks" / "results" / "paper_claims.json"
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
