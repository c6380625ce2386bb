"""Hugging Face Trainer, images: train a small ViT with the plain Trainer, then post-train it with `PostTrainer`.

    python examples/huggingface_image.py

The model is built from a configuration and trained on digits of 8x8 pixels. Nothing is downloaded.
"""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

import pof
from pof.integrations.transformers import PostTrainer


def load() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    rows = [{"pixel_values": x, "labels": int(y)} for x, y in zip(images, digits.target, strict=True)]
    order = np.random.default_rng(0).permutation(len(rows))
    return [rows[i] for i in order[:600]], [rows[i] for i in order[600:]]


def error(prediction: Any) -> dict[str, float]:
    return {"error": float((prediction.predictions.argmax(axis=1) != prediction.label_ids).mean())}


def main() -> None:
    train, test = load()
    torch.manual_seed(0)
    model = ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=4,
            num_channels=1,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            num_labels=10,
        )
    )

    def arguments(**options: Any) -> TrainingArguments:
        common = {
            "per_device_train_batch_size": 32,
            "per_device_eval_batch_size": 200,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
        }
        quiet = {"disable_tqdm": True, "logging_strategy": "no", "dataloader_pin_memory": False}
        return TrainingArguments(tempfile.mkdtemp(), **common, **quiet, **options)

    trainer = Trainer(model, arguments(num_train_epochs=10, learning_rate=3e-3), train_dataset=train)
    trainer.train()

    post = PostTrainer(
        model,
        arguments(num_train_epochs=3, learning_rate=1e-4),
        train_dataset=train,
        eval_dataset=test,
        compute_metrics=error,
        method=pof.PoF,
    )
    before = post.evaluate()
    post.train()
    after = post.evaluate()
    for name in ("eval_error", "eval_loss"):
        print(f"{name} {before[name]:.4f} -> {after[name]:.4f}, n = {len(test)}, one seed")


if __name__ == "__main__":
    main()
