"""What AdaRand and RandReg add to a fine-tuning step: time and peak memory, side by side in one run.

    python benchmarks/regularizer_cost.py
    python benchmarks/regularizer_cost.py --repetitions 5 --output /tmp/cost.json    # a quick look

EfficientNet-Lite0 (wheel efficientnet_lite_pytorch, random weights), 1000 classes, batch 64, 128 x 128 pixels, SGD
with momentum, on the CPU; once with its own 1280 features, once with a 2048-wide last convolution.  Each round takes
one step of each variant, in an order that changes from round to round.  Reports medians, and the median over rounds of
the ratio to plain fine-tuning in the same round.  Penalty, its backward and update are also timed alone, which gives
the ratio 1 + alone / plain without the noise of two whole steps.
Memory is measured in a separate process per variant: the peak of torch's own allocations (from the profiler, exact
and repeatable), and the peak resident set (which differs by several per cent between runs of the same variant).
Targets: AdaRand <= 1.05 of the time and <= 1.02 of the memory, RandReg <= 1.01 of the time.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import pof
from pof.regularizers import AdaRand, RandReg, Regularizer

CLASSES, BATCH, PIXELS = 1000, 64, 128
TARGETS = {"adarand": {"time": 1.05, "memory": 1.02}, "randreg": {"time": 1.01}, "randreg-class": {"time": 1.01}}
VARIANTS = ["plain", *TARGETS]
RESULTS = Path(__file__).parent / "results" / "regularizer_cost.json"


def model(features: int) -> nn.Module:
    net = EfficientNet.from_name("efficientnet-lite0")
    if features != net._fc.in_features:
        net._conv_head = nn.Conv2d(net._conv_head.in_channels, features, 1, bias=False)
        net._bn1 = nn.BatchNorm2d(features, eps=net._bn1.eps, momentum=net._bn1.momentum)
        net._fc = nn.Linear(features, CLASSES)
    return net.train()


def regularizer(variant: str, features: int) -> Regularizer | None:
    if variant == "plain":
        return None
    if variant == "randreg":
        return RandReg("normal")
    mean, std = torch.rand(CLASSES, features), torch.rand(CLASSES, features)
    # As AdaRand.from_loader keeps it: sigma in bfloat16.
    return AdaRand(mean, std.bfloat16()) if variant == "adarand" else RandReg("class", mean=mean, std=std)


def step(variant: str, features: int) -> Callable[[], None]:
    """One training step of a fresh model, as a function without arguments."""
    torch.manual_seed(0)
    network = pof.split(model(features), "_fc")
    penalty = regularizer(variant, features)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    inputs, targets = torch.randn(BATCH, 3, PIXELS, PIXELS), torch.randint(CLASSES, (BATCH,))

    def run() -> None:
        optimizer.zero_grad()
        found, logits = network.features_and_logits(inputs)
        loss = F.cross_entropy(logits, targets)
        if penalty is not None:
            loss = loss + penalty(found, targets, inputs)
        loss.backward()
        optimizer.step()
        if penalty is not None:
            penalty.update(found.detach(), targets)

    return run


def alone(variant: str, features: int) -> Callable[[], None]:
    """Penalty, backward to the features and update, without a network."""
    penalty = regularizer(variant, features)
    assert penalty is not None
    found = torch.randn(BATCH, features, requires_grad=True)
    targets = torch.randint(CLASSES, (BATCH,))

    def run() -> None:
        penalty(found, targets).backward()
        penalty.update(found.detach(), targets)

    return run


def interleaved(steps: dict[str, Callable[[], None]], repetitions: int, warmup: int) -> dict[str, list[float]]:
    """Seconds of each variant in each round."""
    order, shuffle = list(steps), random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(warmup + repetitions):
        shuffle.shuffle(order)
        for name in order:
            start = time.perf_counter()
            steps[name]()
            if round_ >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def time_steps(features: int, repetitions: int) -> dict[str, Any]:
    seconds = interleaved({v: step(v, features) for v in VARIANTS}, repetitions, warmup=2)
    return {
        v: {
            "median_s": statistics.median(s),
            "ratio": statistics.median(a / b for a, b in zip(s, seconds["plain"], strict=True)),
            "seconds": s,
        }
        for v, s in seconds.items()
    }


def time_alone(features: int, repetitions: int) -> dict[str, Any]:
    seconds = interleaved({v: alone(v, features) for v in TARGETS}, repetitions, warmup=3)
    return {v: {"median_ms": 1e3 * statistics.median(s)} for v, s in seconds.items()}


def peak_resident_kib() -> int:
    """VmHWM (Linux): ru_maxrss would be that of the parent, if it was larger."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def memory_of(variant: str, features: int) -> dict[str, float]:
    """Peak of torch's own allocations over building and two steps, and of the process."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run = step(variant, features)
        run()
        run()
    resident = peak_resident_kib() / 1024
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    allocated = max(e["args"]["Total Allocated"] for e in events if e["name"] == "[memory]")
    return {"allocated_mib": allocated / 2**20, "resident_mib": resident}


def memory(features: int, processes: int, threads: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--threads", str(threads), "--features", str(features)]
    found: dict[str, Any] = {}
    for variant in VARIANTS:
        runs = [
            json.loads(subprocess.run([*command, "--memory-of", variant], check=True, stdout=subprocess.PIPE).stdout)
            for _ in range(processes)
        ]
        found[variant] = {key: statistics.median(run[key] for run in runs) for key in runs[0]} | {"runs": runs}
        plain = found["plain"]
        for key in ("allocated", "resident"):
            found[variant][f"{key}_ratio"] = found[variant][f"{key}_mib"] / plain[f"{key}_mib"]
    return found


def environment(threads: int) -> dict[str, Any]:
    def git(*arguments: str) -> str | None:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else None

    cpu = [line.split(":")[1].strip() for line in cpuinfo() if line.startswith("model name")]
    changed = git("status", "--porcelain", "--untracked-files=no")
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": len(cpu),
        "threads": threads,
        "commit": git("rev-parse", "HEAD"),
        "uncommitted_changes": None if changed is None else bool(changed),
    }


def cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--processes", type=int, default=3, help="processes per variant for the memory")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--memory-of", choices=VARIANTS)
    parser.add_argument("--features", type=int, default=2048, help="with --memory-of")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(json.dumps(memory_of(options.memory_of, options.features)))
        return
    result: dict[str, Any] = {
        "setting": {"model": "efficientnet-lite0", "classes": CLASSES, "batch": BATCH, "pixels": PIXELS},
        "repetitions": options.repetitions,
        "environment": environment(options.threads),
        "targets": TARGETS,
    }
    for features in (1280, 2048):
        result[f"{features} features"] = {
            "time": time_steps(features, options.repetitions),
            "alone": time_alone(features, 10 * options.repetitions),
            "memory": memory(features, options.processes, options.threads),
        }
        report(features, result[f"{features} features"])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")


def report(features: int, found: dict[str, Any]) -> None:
    print(f"{features} features")
    for v in VARIANTS:
        time_, memory_ = found["time"][v], found["memory"][v]
        own = 1e-3 * found["alone"][v]["median_ms"] if v in found["alone"] else 0.0
        print(
            f"  {v:14} step {time_['median_s']:.3f} s, ratio {time_['ratio']:.4f}, alone {1e3 * own:.1f} ms "
            f"(ratio {1 + own / found['time']['plain']['median_s']:.4f}); "
            f"allocated {memory_['allocated_mib']:.1f} MiB, ratio {memory_['allocated_ratio']:.4f}; "
            f"resident {memory_['resident_mib']:.0f} MiB, ratio {memory_['resident_ratio']:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
