"""How long the largest Hessian eigenvalue takes, and in how much memory.

    python benchmarks/flatness_speed.py
    python benchmarks/flatness_speed.py --repetitions 1 --output /tmp/speed.json    # a quick look

Two questions, each in a separate process, so that each peak resident set is separate:
- head: the 6,410 parameters of a WRN-28-10 head (640 features, 10 classes) over 5,000 samples of stored features.
  Features are random (half-normal, as after a ReLU).  The cost of a product does not depend on them, the number of
  products does a little.  Target: under 5 s.
- network: all parameters of a ResNet-20 with random weights over 1,000 random CIFAR-sized images.  Target: under 120 s.
Times are of the whole call (scipy and curvlinops are imported before); the median and all values are kept.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pof.app.run_folder import environment
from pof.flatness import Eigenvalues, head_eigenvalues, top_eigenvalues
from pof.models import build_model

LIMITS = {"head": 5.0, "network": 120.0}
RESULTS = Path(__file__).parent / "results" / "flatness_speed.json"


def head() -> Callable[[], Eigenvalues]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5000, 640, generator=generator).abs()
    weight = torch.randn(10, 640, generator=generator) * 0.2
    bias = torch.zeros(10)
    return lambda: head_eigenvalues(features, weight, bias)


def network() -> Callable[[], Eigenvalues]:
    torch.manual_seed(0)
    model = build_model("resnet20", num_classes=10)
    images, labels = torch.randn(1000, 3, 32, 32), torch.randint(10, (1000,))
    batches = list(zip(images.split(125), labels.split(125), strict=True))
    return lambda: top_eigenvalues(model, nn.CrossEntropyLoss(), batches, parameters="all")


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(part: str, repetitions: int) -> dict[str, Any]:
    import scipy.sparse.linalg  # noqa: F401

    small = nn.Linear(30, 2)
    top_eigenvalues(small, nn.MSELoss(), [(torch.randn(4, 30), torch.randn(4, 2))], parameters="all")
    run = {"head": head, "network": network}[part]()
    before, seconds = peak_mib(), []
    for _ in range(repetitions):
        start = time.perf_counter()
        found = run()
        seconds.append(time.perf_counter() - start)
    return {
        "parameters": found.vectors.shape[0],
        "samples": found.samples,
        "seconds_median": statistics.median(seconds),
        "seconds": seconds,
        "limit_seconds": LIMITS[part],
        "within_limit": max(seconds) < LIMITS[part],
        "products": found.products,
        "eigenvalue": float(found.values[0]),
        "residual": float(found.residuals[0]),
        "peak_resident_mib": peak_mib(),
        "peak_resident_before_mib": before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--part", choices=LIMITS, help="measure this one in this process")
    arguments = parser.parse_args()
    if arguments.part:
        arguments.output.write_text(json.dumps(measure(arguments.part, arguments.repetitions)))
        return
    found: dict[str, Any] = {"environment": environment()}
    for part in LIMITS:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "part.json"
            options = ["--part", part, "--repetitions", str(arguments.repetitions), "--output", str(output)]
            subprocess.run([sys.executable, __file__, *options], check=True)
            found[part] = json.loads(output.read_text())
        one = found[part]
        print(
            f"{part}: {one['seconds_median']:.2f} s (limit {one['limit_seconds']:.0f} s), {one['products']} products,"
            f" peak {one['peak_resident_mib']:.0f} MiB, {one['peak_resident_before_mib']:.0f} MiB of it before"
        )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
