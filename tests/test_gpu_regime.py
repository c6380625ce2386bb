"""A rehearsal of benchmarks/gpu_regime.sh: pieces of an archive, the smallest wide ResNet, a few epochs of digits."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tarfile
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_regime.sh"
SMALL = (
    *("data.data=digits", "data.data_root=null", "data.train_size=60", "model.model=wrn-10-1"),
    *("pretrain.epochs=1", "pretrain.batch_size=20", "train.batch_size=20", "budget=2.7"),
    "methods={finetune 1.6e-4: {method: finetune}, pof fixed 2: {method: pof, pof: {sampling: fixed}}}",
    *("pretrain.compile=false", "train.compile=false", "pretrain.precision=fp32", "train.precision=fp32"),
)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable}
    command = ["sh", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_script_from_the_pieces_to_the_table(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(os.urandom(5000))
    with tarfile.open(tmp_path / "whole", "w:xz") as archive:
        archive.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    content = (tmp_path / "whole").read_bytes()
    (tmp_path / "parts").mkdir()
    for name, piece in {"aa": content[:2000], "ab": content[2000:]}.items():
        (tmp_path / "parts" / f"cifar10.tar.xz.{name}").write_bytes(piece)
    done = run(tmp_path / "parts", tmp_path / "out", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "[3/3]" in done.stdout
    unpacked = tmp_path / "out" / "data" / "cifar-10-batches-py" / "data_batch_1"
    assert unpacked.read_bytes() == (tmp_path / "cifar-10-batches-py" / "data_batch_1").read_bytes()
    with (tmp_path / "out" / "wrn-28-10-short" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["finetune 1.6e-4", "pof fixed 2"]
    assert max(float(row["units"]) for row in rows) <= 2.7
    again = run(tmp_path / "nowhere", tmp_path / "out", *SMALL)  # it goes on with what is there
    assert again.returncode == 0
    assert again.stdout.startswith("wrn-28-10-short: 2 of 2 runs")


def test_without_arguments_it_says_how_to_call_it() -> None:
    done = run()
    assert done.returncode == 2
    assert "benchmarks/gpu_regime.sh PARTS OUT" in done.stdout
