"""What the code in README, docs and docstrings takes for granted: a trained model, loaders, a batch, a loop's names."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pof

CLASSES = 10


def stand_ins(code: str = "") -> dict[str, Any]:
    """Fresh objects under the names that the pages use; whatever a page defines itself takes their place.

    Args:
        code: what is going to run; where it is about the Hugging Face Trainer, model and data are of its kind.
    """
    model = _network()
    network = pof.split(model)
    train, held_out = (DataLoader(_data(seed), batch_size=16, shuffle=True) for seed in (0, 1))
    inputs, targets = next(iter(train))
    features, logits = network.features_and_logits(inputs)
    names: dict[str, Any] = {
        "torch": torch,
        "nn": nn,
        "pof": pof,
        "SAM": pof.SAM,
        "MSAM": pof.MSAM,
        "cross_entropy": F.cross_entropy,
        "num_classes": CLASSES,
        "network": network,
        "split_model": network,
        "inputs": inputs,
        "targets": targets,
        "batch": (inputs, targets),
        "features": features,
        "logits": logits,
        "method": pof.PoF(model),
        "regularizer": pof.FNP(),
        "optimizer": torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9),
        "plain": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        "scaler": torch.amp.GradScaler("cpu"),
    }
    names |= dict.fromkeys(("model", "your_model", "your_trained_model"), model)
    names |= dict.fromkeys(("loader", "train_loader", "your_loader", "your_train_loader"), train)
    names |= dict.fromkeys(
        ("val_loader", "test_loader", "your_val_loader", "your_validation_loader", "your_test_loader"), held_out
    )
    names["loss_of"], names["closure"] = _loss_of(model), _closure(names)
    return names | (_for_the_trainer() if "PostTrainer" in code else {})


def _for_the_trainer() -> dict[str, Any]:
    from transformers import TrainingArguments, ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = ViTForImageClassification(
        ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=CLASSES, **sizes)
    )
    data = [{"pixel_values": images, "labels": int(label)} for images, label in _data(0)]
    quiet = {"disable_tqdm": True, "report_to": [], "save_strategy": "no", "logging_strategy": "no"}
    arguments = TrainingArguments(tempfile.mkdtemp(), max_steps=2, use_cpu=True, dataloader_pin_memory=False, **quiet)
    names: dict[str, Any] = {"arguments": arguments, "training_arguments": arguments}
    names |= dict.fromkeys(("data", "train_dataset", "your_dataset", "your_train_dataset"), data)
    names |= dict.fromkeys(("eval_dataset", "val_dataset", "your_val_dataset"), data[:32])
    return names | dict.fromkeys(("model", "your_model", "your_trained_model"), model)


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )


def _data(seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(96) % CLASSES
    images = torch.randn(96, 1, 8, 8, generator=generator)
    images[:, 0, 0] += F.one_hot(labels % 8, 8) * 3
    return TensorDataset(images, labels)


def _loss_of(model: nn.Module) -> Callable[[tuple[Tensor, Tensor]], Tensor]:
    def loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    return loss_of


def _closure(names: dict[str, Any]) -> Callable[[], Tensor]:
    # The optimizer is looked up when the closure runs: the page may have made another one.
    def closure() -> Tensor:
        names["optimizer"].zero_grad()
        loss: Tensor = names["loss_of"](names["batch"])
        loss.backward()
        return loss

    return closure
