"""What the trainers add to a training step: ``pof.fit``, Lightning and the Hugging Face Trainer against a bare loop.

    python benchmarks/trainers.py [--steps 400] [--rounds 7]

The same MLP, mini-batches of 32 and optimizer everywhere; logging, checkpoints and progress bars are off.  The trainers
take turns; the loader holds the clock, which starts behind the first steps, so that no set-up counts.  Ratios are
medians over the rounds, each to the bare loop of the same round.  Writes results/trainers.json.  About 1 minute.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import pof
from pof.app.run_folder import environment

SGD = {"lr": 1e-3, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
WARM_UP = 50


class Clocked:
    """Mini-batches, and the time from the one after the warm-up to the end of the last."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.start, self.end = batches, 0.0, 0.0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.batches):
            self.end = time.perf_counter()
            if number == WARM_UP:
                self.start = self.end
            yield batch

    def ms_per_step(self) -> float:
        """Mean time of a step."""
        # Some fetch one mini-batch ahead, from the first on, so the number of steps between the two is the same.
        return 1e3 * (self.end - self.start) / (len(self) - 1 - WARM_UP)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, **SGD)


def bare(model: nn.Module, loader: Clocked) -> None:
    optimizer = sgd(model.parameters())
    for inputs, targets in loader:
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        optimizer.step()


def fit(model: nn.Module, loader: Clocked) -> None:
    constant = pof.Schedule(kind="constant")
    pof.fit(pof.Finetune(model), loader, epochs=1, optimizer=sgd, schedule=constant, device="cpu")


def in_lightning(model: nn.Module, loader: Clocked) -> None:
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            return cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self.model.parameters())

    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    pl.Trainer(accelerator="cpu", devices=1, max_epochs=1, **dict.fromkeys(off, False)).fit(Module(), loader)


def in_transformers(model: nn.Module, loader: Clocked) -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.model(x)
            return {"loss": cross_entropy(logits, labels), "logits": logits}

    class Trainer(transformers.Trainer):
        def get_train_dataloader(self) -> Any:
            return loader

    loader.batches = [{"x": inputs, "labels": targets} for inputs, targets in loader.batches]
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, num_train_epochs=1, max_grad_norm=0.0, use_cpu=True, disable_tqdm=True, report_to=[],
            save_strategy="no", logging_strategy="no", lr_scheduler_type="constant",
        )  # fmt: skip
        module = Module()
        Trainer(module, arguments, train_dataset=[0], optimizers=(sgd(module.parameters()), None)).train()


TRAINERS: dict[str, Callable[[nn.Module, Clocked], None]] = {
    "bare loop": bare,
    "pof.fit": fit,
    "Lightning": in_lightning,
    "Hugging Face": in_transformers,
}


def measure(steps: int, rounds: int) -> dict[str, Any]:
    torch.manual_seed(1)
    batches = [(torch.randn(32, 1, 8, 8), torch.randint(10, (32,))) for _ in range(WARM_UP + 1 + steps)]
    times: dict[str, list[float]] = {name: [] for name in TRAINERS}
    apart = dict.fromkeys(TRAINERS, 0.0)
    for _ in range(rounds):
        expected: list[Tensor] = []
        for name, train in TRAINERS.items():
            model, loader = mlp(), Clocked(list(batches))
            train(model, loader)
            times[name].append(loader.ms_per_step())
            found = [p.detach() for p in model.parameters()]
            expected = expected or found
            apart[name] = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    return {
        name: {
            "median_ms": statistics.median(values),
            "ratio": statistics.median(t / b for t, b in zip(values, times["bare loop"], strict=True)),
            "ratios": [t / b for t, b in zip(values, times["bare loop"], strict=True)],
            "weights_apart": apart[name],
        }
        for name, values in times.items()
    }


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "trainers.json")
    options = parser.parse_args()
    result = {
        "question": "overhead of a training step in pof.fit, Lightning and the Hugging Face Trainer beside a bare loop",
        "settings": {"steps": options.steps, "rounds": options.rounds, "network": "MLP 64-128-64-10", "batch": 32},
        "versions": {"lightning": lightning.__version__, "transformers": transformers.__version__},
        "environment": {name: value for name, value in environment().items() if name != "command"},
        "trainers": measure(options.steps, options.rounds),
    }
    for name, row in result["trainers"].items():
        print(f"{name:14s} {row['median_ms']:.3f} ms {row['ratio']:.3f}, weights apart {row['weights_apart']:.1e}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
