"""What a step of PoF, head ascent and SAM costs on a GPU: kernel launches, ms, samples per second.

    python benchmarks/gpu_speed.py [--repetitions 30]

Batch 128, bf16, channels_last, as they are and compiled.  All methods take turns within one run; ratios are medians
over the rounds.  Writes results/gpu_speed.json.  About 3 minutes on an H100.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from speed import fitted, mlp, small_cnn, steps_of
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torchvision.models import resnet18

from pof.app.run_folder import environment
from pof.models import build_model

ROOT = Path(__file__).resolve().parents[1]
DEVICE = torch.device("cuda")
BATCH = 128
KINDS = ("eager", "compiled")
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "mlp": (mlp, (1, 8, 8), 10),
    "small-cnn": (small_cnn, (1, 8, 8), 10),
    "resnet20, 32 px": (lambda: build_model("resnet20", num_classes=10), (3, 32, 32), 10),
    "resnet18, 224 px, 1000 classes": (resnet18, (3, 224, 224), 1000),
    "wrn-28-10, 32 px": (lambda: build_model("wrn-28-10", num_classes=10), (3, 32, 32), 10),
}


def in_bf16(step: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            step()

    return run


def launches(step: Callable[[], Any]) -> int:
    """Kernels and copies that a step starts on the device."""
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        step()
        torch.cuda.synchronize()
    return sum(event.count for event in found.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA)


def medians(steps: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, list[float]]:
    """Times in ms of ten steps each, which are queued as in training; the steps take turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(3 + repetitions):
        for name, step in steps.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(10):
                step()
            torch.cuda.synchronize()
            if repetition >= 3:
                times[name].append(100 * (time.perf_counter() - start))
    return times


def measure(build: Callable[[], nn.Module], shape: tuple[int, ...], classes: int, compiled: bool, rounds: int) -> Any:
    torch.manual_seed(0)
    images, other = (torch.randn(BATCH, *shape, device=DEVICE) for _ in range(2))
    if len(shape) == 3:
        images, other = (batch.to(memory_format=torch.channels_last) for batch in (images, other))
    labels, others = (torch.randint(classes, (BATCH,), device=DEVICE) for _ in range(2))
    start = fitted(build().to(DEVICE, memory_format=torch.channels_last), images, labels, lr=0.02)

    def network() -> nn.Module:
        made = copy.deepcopy(start)
        if compiled:
            made.compile(dynamic=False)
        return made

    steps = {name: in_bf16(step) for name, step in steps_of(network, images, labels, other, others).items()}
    times = medians(steps, rounds)
    plain = times["plain"]
    return {
        name: {
            "launches": launches(step),
            "median_ms": statistics.median(times[name]),
            "images_per_second": 1e3 * BATCH / statistics.median(times[name]),
            "ratio": statistics.median(t / p for t, p in zip(times[name], plain, strict=True)),
        }
        for name, step in steps.items()
    }


def write(found: dict[str, Any]) -> None:
    about = {name: value for name, value in environment().items() if name != "command"}
    written = {"batch": BATCH, "precision": "bf16", "environment": about, "networks": found}
    (ROOT / "benchmarks" / "results" / "gpu_speed.json").write_text(json.dumps(written, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--only", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for name in options.only:
        build, shape, classes = NETWORKS[name]
        for kind in options.kinds:
            key = f"{name}, {kind}"
            found[key] = measure(build, shape, classes, kind == "compiled", options.repetitions)
            rows = {method: (row["launches"], round(row["ratio"], 2)) for method, row in found[key].items()}
            write(found)
            print(key, round(found[key]["plain"]["images_per_second"]), rows, flush=True)


if __name__ == "__main__":
    main()
