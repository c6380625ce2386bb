"""Make the pages of docs/gallery.md: real ones, of small networks on digits, in one or two minutes.

    python scripts/gallery.py FOLDER

`make docs` makes them in build/gallery, from where the site takes them: this is an MkDocs hook too.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "build" / "gallery"
DIGITS = "--model small-cnn --data digits --train_size 150 --validation 0.5 --device cpu"
POST = f"post-train {DIGITS} --batch_size 32 --weights base --epochs 20"
METHODS = (
    "{finetune: {method: finetune, lr: 0.5}, pof: {method: pof, lr: 0.01}, head-ascent: {method: head-ascent},"
    " sam auto: {method: sam, lr: 0.1, sam: {rho: auto}}}"
)
COMMANDS = (
    f"train {DIGITS} --batch_size 32 --epochs 30 --lr 0.1 --out base".split(),
    f"{POST} --method head-ascent --lr 0.05 --out head-ascent".split(),
    f"{POST} --method sam --sam.rho auto --lr 0.1 --out sam".split(),
    ["report", "--runs", "head-ascent", "sam", "--out", "report.html"],
    f"improve {DIGITS} --weights base --budget 60 --out improve".split(),
    [*f"experiment {ROOT}/recipes/digits.yaml --out . --set seeds=3 budget=20".split(), f"methods={METHODS}"],
)
PAGES = {"report": "report.html", "improve": "improve/report.html", "experiment": "digits/report.html"}


def make(out: Path) -> None:
    """Run the commands in a folder of their own, and copy the pages."""
    from pof.app.cli import main

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for words in COMMANDS:
            sys.argv = ["pof", *words]  # a run writes down what it was called with
            if code := main(words):
                raise SystemExit(f"pof {' '.join(words)}: exit code {code}")
        for name, page in PAGES.items():
            shutil.copyfile(page, out / f"{name}.html")
        os.chdir(ROOT)


def on_post_build(config: Any) -> None:
    """Put the pages into the site, if they were made.

    Args:
        config: of the site.
    """
    if KEPT.exists():
        shutil.copytree(KEPT, Path(config["site_dir"], "gallery"), dirs_exist_ok=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]).resolve())
