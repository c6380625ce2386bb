"""The same training in five trainers: pof.fit, a plain loop, Accelerate, Lightning, and the Trainer of transformers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import pof

BATCH, ACCUMULATION, CLIP, EPOCHS, LR = 8, 2, 0.5, 5, 0.05
SAMPLES = 60
"""8 mini-batches, the last of 4 samples: 4 steps an epoch, 20 in all, one in each epoch of unequal mini-batches."""
CLASSES = 4
Make = Callable[[nn.Module], pof.Method]

# What the frameworks say about themselves, or about a test that runs them small; by message, so that ours still fail.
QUIET = (
    "ignore:.*does not have many workers which may be a bottleneck:UserWarning",
    "ignore:The number of training batches .* is smaller than the logging interval:UserWarning",
    "ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning",
    "ignore:'pin_memory' argument is set as true but no accelerator is found:UserWarning",
    "ignore:Checkpoint directory .* exists and is not empty:UserWarning",
)


class Net(nn.Module):
    """A network as the Trainer of transformers wants it: keywords in, a dict with loss and logits out."""

    def __init__(self, norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Linear(5, 12)
        self.norm = nn.BatchNorm1d(12) if norm else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.classifier = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.classifier(self.drop(torch.tanh(self.norm(self.body(x)))))
        loss = {} if labels is None else {"loss": F.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


def net(norm: bool = False, dropout: float = 0.0) -> Net:
    torch.manual_seed(3)
    return Net(norm, dropout)


def samples(n: int = SAMPLES) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(n, 5, generator=generator)
    labels = (inputs[:, :CLASSES] + 0.5 * torch.randn(n, CLASSES, generator=generator)).argmax(dim=1)
    return [{"x": x, "labels": y} for x, y in zip(inputs, labels, strict=True)]


def loader(shuffle: bool = False, n: int = SAMPLES) -> DataLoader[Any]:
    return DataLoader(samples(n), batch_size=BATCH, shuffle=shuffle)  # type: ignore[arg-type]


def sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=LR, momentum=0.9, weight_decay=1e-3)


def make_optimizer(method: pof.Method, decay: float = 1e-3) -> torch.optim.Optimizer:
    return method.build_optimizer(torch.optim.SGD, lr=LR, momentum=0.9, weight_decay=decay)


@dataclass
class Trace:
    """Mean loss and radius of each optimizer step, samples weighted, and the network at the end."""

    losses: list[float] = field(default_factory=list)
    radii: list[float] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)

    def close_to(self, other: Trace, tolerance: float = 1e-6) -> None:
        assert len(self.losses) == len(other.losses) > 0
        assert self.losses == pytest.approx(other.losses, abs=tolerance, rel=tolerance)
        assert self.radii == pytest.approx(other.radii, abs=tolerance, rel=tolerance)
        # float32: twenty steps of sums in other orders.
        for name, value in self.weights.items():
            torch.testing.assert_close(value, other.weights[name], rtol=1e-5, atol=2e-6, msg=name)


def weighted(values: list[tuple[float, int]]) -> float:
    return sum(value * n for value, n in values) / sum(n for _, n in values)


@contextmanager
def recorded(method: pof.Method) -> Iterator[list[tuple[float, float, int]]]:
    """Losses, radii and sizes of the mini-batches that go through a method."""
    rows: list[tuple[float, float, int]] = []

    def hook(_: Any, inputs: Any, output: pof.StepOutput) -> None:
        radius = output.metrics.get("radius", torch.zeros(()))
        rows.append((float(output.loss.detach()), float(radius), len(inputs[1])))

    with method.register_forward_hook(hook):
        yield rows


def trace(method: pof.Method, rows: list[tuple[float, float, int]], passes: int = 1) -> Trace:
    """Put mini-batches together to the steps that they belong to; of several passes, the first counts."""
    per_epoch = SAMPLES // BATCH + 1
    windows, at = [], 0
    while at < len(rows):
        left = per_epoch - (sum(map(len, windows)) % per_epoch)
        size = min(ACCUMULATION, left)
        windows.append(rows[at : at + size])
        at += passes * size
    losses = [weighted([(loss, n) for loss, _, n in window]) for window in windows]
    radii = [weighted([(radius, n) for _, radius, n in window]) for window in windows]
    return Trace(losses, radii, copy.deepcopy(method.model.state_dict()))


def in_fit(make: Make, model: nn.Module, epochs: int = EPOCHS, n: int = SAMPLES, decay: float = 1e-3) -> Trace:
    method, rows = make(model), []
    pof.fit(
        method,
        loader(n=n),
        epochs=epochs,
        optimizer=make_optimizer(method, decay),
        schedule=pof.Schedule("constant"),
        accumulation=ACCUMULATION,
        clip_norm=CLIP,
        device="cpu",
        log=rows.append,
    )
    steps: Any = [row for row in rows if row["event"] == "step"]  # type: ignore[call-overload]
    radii = [row.get("radius", 0.0) for row in steps]
    return Trace([row["loss"] for row in steps], radii, method.candidate().state_dict())


def in_plain_loop(make: Make, model: nn.Module) -> Trace:
    method = make(model)
    optimizer = make_optimizer(method)
    with recorded(method) as rows:
        for _ in range(EPOCHS):
            pairs = list(pof.with_reference(loader()))
            for start in range(0, len(pairs), ACCUMULATION):
                window = pairs[start : start + ACCUMULATION]
                total = sum(len(targets) for (_, targets), _ in window)
                for (inputs, targets), reference in window:
                    out = method(inputs, targets, *reference)
                    (out.loss * len(targets) / total).backward()
                nn.utils.clip_grad_norm_(method.parameters(), CLIP)
                optimizer.step()
                method.after_step()
                optimizer.zero_grad()
    return trace(method, rows)


def in_accelerate(make: Make, model: nn.Module) -> Trace:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=1)
    plain = make(model)
    method, optimizer, data = accelerator.prepare(plain, make_optimizer(plain), loader())
    with recorded(plain) as rows:
        for _ in range(EPOCHS):
            pairs = list(pof.with_reference(data))
            for start in range(0, len(pairs), ACCUMULATION):
                window = pairs[start : start + ACCUMULATION]
                total = sum(len(targets) for (_, targets), _ in window)
                for (inputs, targets), reference in window:
                    out = method(inputs, targets, *reference)
                    accelerator.backward(out.loss * len(targets) / total)
                accelerator.clip_grad_norm_(method.parameters(), CLIP)
                optimizer.step()
                plain.after_step()
                optimizer.zero_grad()
    return trace(plain, rows)


def lightning_module(method: pof.Method) -> Any:
    from pof.integrations.lightning import PostTraining

    class Module(PostTraining):
        def __init__(self) -> None:
            super().__init__()
            self.method = method

        def configure_optimizers(self) -> Any:
            return make_optimizer(self.method)

    return Module()


def lightning_trainer(**options: Any) -> Any:
    import lightning.pytorch as pl

    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": EPOCHS,
        "accumulate_grad_batches": ACCUMULATION,
        "gradient_clip_val": CLIP,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(**{**defaults, **options})


def in_lightning(make: Make, model: nn.Module, passes: int = 1, **options: Any) -> Trace:
    method = make(model)
    with recorded(method) as rows:
        lightning_trainer(**options).fit(lightning_module(method), loader())
    return trace(method, rows, passes)


def hugging_face_trainer(make: Make | pof.Method, model: nn.Module, folder: Path, **options: Any) -> Any:
    from transformers import TrainingArguments

    from pof.integrations.transformers import PostTrainer

    kind = options.pop("kind", PostTrainer)
    data = options.pop("data", None)
    defaults = {
        "output_dir": str(folder),
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATION,
        "max_grad_norm": CLIP,
        "train_sampling_strategy": "sequential",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "report_to": [],
        "logging_steps": 1,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "optim_args": "momentum=0.9",
        "weight_decay": 1e-3,
        "label_names": ["labels"],
    }
    arguments = TrainingArguments(**{**defaults, **options})
    return kind(model, arguments, train_dataset=data or samples(), method=make)


def in_hugging_face(make: Make, model: nn.Module, folder: Path, passes: int = 1, **options: Any) -> Trace:
    method = make(model)
    trainer = hugging_face_trainer(method, model, folder, **options)
    trainer.optimizer = sgd(method.trainable_parameters())
    with recorded(method) as rows:
        trainer.train()
    return trace(method, rows, passes)
