"""``pof demo``: twice the same bits, and the same after it was killed."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pof.app import demo
from tests.processes import Process


def small(out: str, resume: bool = False) -> int:
    """A demonstration of a few seconds."""
    from dataclasses import replace

    from pof.app.cli import main

    demo.TRAINING, demo.BUDGET = replace(demo.TRAINING, epochs=3), 4.0
    return main(["demo", "--out", out, *(["--resume"] if resume else [])])


def bits(out: Path) -> dict[str, str]:
    names = ("base/model.safetensors", "better/model.safetensors", "better/result.json", "better/test.json")
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("demo") / "whole"
    done = Process(small, str(out)).wait()
    assert done.code == 0, done.err
    return out, done.out


def test_it_opens_with_what_was_handed_back_and_ends_with_the_report(whole: tuple[Path, str]) -> None:
    out, text = whole
    result = json.loads((out / "better" / "result.json").read_text())
    lines = text.splitlines()
    first = lines.index(f"handed back: {result['chosen']}")
    assert not any("error" in line for line in lines[:first])
    assert result["message"] in lines[first + 1]
    assert all(row["name"] in text for row in result["table"])
    assert lines[-1] == f"report: {out / 'better' / 'report.html'}"
    assert (out / "better" / "report.html").exists()


def lines_in(file: Path) -> int:
    return len(file.read_bytes().splitlines()) if file.exists() else 0


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "in training": lambda out: lines_in(out / "base" / "metrics.jsonl") >= 5,
    "in the first rung": lambda out: lines_in(out / "better" / "journal.jsonl") >= 1,
    "at the end of the race": lambda out: lines_in(out / "better" / "journal.jsonl") >= 3,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_it_ends_the_same(moment: str, whole: tuple[Path, str], tmp_path: Path) -> None:
    out = tmp_path / "demo"
    running = Process(small, str(out))
    while running.process.is_alive() and not MOMENTS[moment](out):
        time.sleep(0.001)
    running.process.kill()
    assert running.wait().code == -signal.SIGKILL
    assert not (out / "better" / "result.json").exists()
    done: Any = Process(small, str(out), True).wait()
    assert done.code == 0, done.err
    assert bits(out) == bits(whole[0])


def test_a_second_demonstration_takes_another_folder_and_has_the_same_bits(whole: tuple[Path, str]) -> None:
    out, _ = whole
    assert Process(small, str(out)).wait().code == 0
    assert bits(out.with_name("whole-2")) == bits(out)
