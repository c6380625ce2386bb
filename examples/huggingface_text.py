"""Hugging Face Trainer, texts: which module of Python's library does a line of documentation come from?

    python examples/huggingface_text.py

A tiny BERT is built from a configuration, its vocabulary from the docstrings that come with Python. It is fine-tuned
with the regulariser AdaRand; the Trainer sets the label smoothing.  Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import collections
import inspect
import logging
import re
import statistics
import tempfile
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

import pof
from pof.integrations.transformers import PostTrainer

SOURCES = (argparse, collections, inspect, logging, re, statistics)
LENGTH = 12


def load() -> tuple[list[dict[str, Any]], int]:
    """Lines of the modules' docstrings as word numbers, and the size of the vocabulary."""
    lines, labels = [], []
    for label, module in enumerate(SOURCES):
        members = [module, *(value for _, value in inspect.getmembers(module) if callable(value))]
        text = "\n".join(inspect.getdoc(member) or "" for member in members)
        words = [re.findall(r"[a-z]+", line.lower()) for line in text.splitlines()]
        kept = sorted({tuple(line) for line in words if len(line) > 3})
        lines += kept
        labels += [label] * len(kept)
    count = collections.Counter(word for line in lines for word in line)
    known = {word: number for number, (word, _) in enumerate(count.most_common(1500), start=2)}
    numbers = torch.zeros(len(lines), LENGTH, dtype=torch.long)  # 0 pads, 1 stands for all other words
    for row, line in zip(numbers, lines, strict=True):
        row[: min(len(line), LENGTH)] = torch.tensor([known.get(word, 1) for word in line[:LENGTH]])
    rows = [
        {"input_ids": row, "attention_mask": (row > 0).long(), "labels": label}
        for row, label in zip(numbers, labels, strict=True)
    ]
    return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))], len(known) + 2


def main() -> None:
    rows, vocabulary = load()
    test, train = rows[: len(rows) // 3], rows[len(rows) // 3 :]
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=vocabulary, num_labels=len(SOURCES), **sizes))
    options = {"per_device_train_batch_size": 32, "num_train_epochs": 6, "learning_rate": 3e-3, "use_cpu": True}
    quiet = {"disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no", "report_to": []}
    quiet["dataloader_pin_memory"] = False
    arguments = TrainingArguments(tempfile.mkdtemp(), label_smoothing_factor=0.1, **options, **quiet)

    batches = torch.utils.data.DataLoader(train, batch_size=64)
    regularizer = pof.AdaRand.from_loader(pof.split(model), batches, num_classes=len(SOURCES), strength=0.1)
    method = pof.Regularized(model, regularizer)
    trainer = PostTrainer(model, arguments, train_dataset=train, eval_dataset=test, method=method)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    error = (trainer.predict(test).predictions.argmax(axis=1) != [row["labels"] for row in test]).mean()
    print(f"{len(train)} lines to learn from, {len(test)} held out, {vocabulary} words, {len(SOURCES)} modules")
    print(f"loss {before:.3f} -> {trainer.evaluate()['eval_loss']:.3f}, error {100 * error:.1f} %, one seed")


if __name__ == "__main__":
    main()
