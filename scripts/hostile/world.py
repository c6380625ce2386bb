"""The small world that tries begin in: a trained run, its weights, an image folder, a recipe, modules of a user."""

from __future__ import annotations

from pathlib import Path

import torch
from scripts.hostile.trial import Child, pof
from torch.nn import functional as F

DIGITS = ("--data", "digits", "--model", "small-cnn", "--train_size", "100", "--precision", "fp32", "--device", "cpu")
SMALL = (*DIGITS, "--batch_size", "20", "--lr", "0.05")
TRAIN = ("train", *SMALL, "--epochs", "2", "--out", "new")
POST_TRAIN = ("post-train", *SMALL, "--epochs", "2", "--weights", "run", "--out", "new")
FINE_TUNE = ("fine-tune", *SMALL, "--epochs", "2", "--weights", "run", "--source_classes", "10", "--out", "new")
IMPROVE = ("improve", *SMALL, "--weights", "run", "--budget", "3", "--candidates", "sgd", "--out", "new")
EVALUATE = ("evaluate", "--data", "digits", "--model", "small-cnn", "--device", "cpu", "--weights", "run")
FOLDER = ("train", "--data", "images", "--model", "small-cnn", "--image_size", "8", "--workers", "0", "--epochs", "1")
FOLDER = (*FOLDER, "--batch_size", "4", "--lr", "0.05", "--validation", "0", "--device", "cpu", "--out", "new")
RECIPE = """\
name: tiny
seeds: 1
data: {data: digits, train_size: 100}
model: {model: small-cnn}
pretrain: {epochs: 2, batch_size: 20, lr: 0.05, device: cpu, precision: fp32}
train: {lr: 0.01, batch_size: 20, device: cpu, precision: fp32}
budget: 2
methods: {sgd: {method: finetune}, pof: {method: pof}}
control: sgd
"""


def make_world(folder: Path) -> Path:
    """Make it."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    make_images(folder / "images")
    # Every command that starts from this run holds out what it did: 30 samples, enough for ``improve`` to judge by.
    done = Child(folder, pof, *TRAIN[:-1], "run", "--validation", "0.3").ended(600)
    if done.code != 0:
        raise RuntimeError(f"the world cannot be made: {done.err or done.out}")
    from pof.weights import read_weights

    torch.save(read_weights(folder / "run" / "model.safetensors"), folder / "weights.pt")
    return folder


def make_images(folder: Path) -> None:
    """Three classes of six images for training and two for testing."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 6), ("test", 2)):
        for label, name in enumerate(("ape", "bee", "cow")):
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 200, (8, 8, 3), dtype=torch.uint8, generator=generator)
                pixels += 50 * F.one_hot(torch.tensor(label), 3).to(torch.uint8)
                Image.fromarray(pixels.numpy()).save(place / f"{number}.png")
