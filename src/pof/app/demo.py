"""The demonstration: ``pof improve`` on a small network that was trained on a few digits for a few seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pof.app import job
from pof.app.improve.job import improve_network
from pof.app.improve.result import ImproveResult
from pof.app.options import DataOptions, ImproveOptions, ModelOptions, RunOptions, TrainOptions
from pof.training.evaluation import Metrics

# Few digits leave a gap between training and test error; the rest of them judges.
DATA = DataOptions(data="digits", train_size=150, validation=0.5)
TRAINING = TrainOptions("finetune", epochs=30, batch_size=32, lr=0.1, precision="fp32", device="cpu")
BUDGET = 60.0
Row = Mapping[str, Any]


def train_digits(folder: Path) -> Path:
    """Train the network to be improved, or go on with it; gives its run folder, inside of ``folder``."""
    out = folder / "base"
    run = RunOptions(str(out), resume=out.exists())
    result = job.train(ModelOptions("small-cnn"), DATA, TRAINING, run, lambda row: None)
    if result.after is None:
        raise KeyboardInterrupt
    return out


def improve_digits(
    folder: Path, base: Path, log: Callable[[Row], None]
) -> tuple[ImproveResult, tuple[Metrics, Metrics]]:
    """Improve the network, or go on; gives what was found, and the figures on the test set before and after."""
    out = folder / "better"
    options = ImproveOptions(str(out), resume=out.exists(), budget=BUDGET, precision="fp32", device="cpu")
    return improve_network(ModelOptions("small-cnn", weights=str(base)), DATA, options, log)
