"""Make the example pages of docs/gallery anew, from the digits that scikit-learn ships: about two minutes.

python scripts/gallery.py [FOLDER of a finished `pof experiment recipes/digits.yaml`]
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from pof.app.cli import main

GALLERY = Path(__file__).resolve().parents[1] / "docs" / "gallery"
DIGITS = "--model small-cnn --data digits --train_size 150 --validation 0.5 --batch_size 32 --device cpu"
POST = f"post-train {DIGITS} --weights base --epochs 20"
COMMANDS = (
    f"train {DIGITS} --epochs 30 --lr 0.1 --out base",
    f"{POST} --method head-ascent --lr 0.05 --out head-ascent",
    f"{POST} --method sam --sam.rho auto --lr 0.1 --out sam",
    "report --runs head-ascent sam --out report.html",
    "improve --model small-cnn --data digits --train_size 150 --validation 0.5 --weights base --budget 60 --device cpu"
    " --out improve",
)


def run(command: str) -> None:
    words = command.split()
    sys.argv = ["pof", *words]  # a run writes down what it was called with
    code = main(words)
    if code:
        raise SystemExit(f"pof {command}: exit code {code}")


def make(experiment: Path | None) -> None:
    GALLERY.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for command in COMMANDS:
            run(command)
        shutil.copyfile("report.html", GALLERY / "report.html")
        shutil.copyfile("improve/report.html", GALLERY / "improve.html")
        os.chdir(GALLERY)
    if experiment is not None:
        shutil.copyfile(experiment / "digits" / "report.html", GALLERY / "experiment.html")


if __name__ == "__main__":
    make(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else None)
