"""``pof demo``: twice the same bits, and the same after it was killed."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pof.app import demo
from tests.processes import Process, Stop, _arm


def small(out: str, resume: bool = False, stop: tuple[str, int] | None = None) -> int:
    """A demonstration of a few seconds; it kills itself at the n-th row of the training, or of the search."""
    from pof.app.cli import _progress, main

    demo.TRAINING, demo.BUDGET = replace(demo.TRAINING, epochs=3), 4.0
    if stop is not None and stop[0] == "training":
        _arm(Stop(signal.SIGKILL, "step", stop[1]))
    elif stop is not None:
        show, seen = _progress.SearchProgress.__call__, itertools.count(1)

        def showing(self: Any, row: Any) -> None:
            show(self, row)
            if row["event"] == stop[0] and next(seen) == stop[1]:
                os.kill(os.getpid(), signal.SIGKILL)

        _progress.SearchProgress.__call__ = showing  # type: ignore[method-assign]
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


@pytest.mark.parametrize("stop", [("training", 7), ("step", 1), ("rung", 1), ("rung", 2)], ids=str)
def test_killed_and_resumed_it_ends_the_same(stop: tuple[str, int], whole: tuple[Path, str], tmp_path: Path) -> None:
    out = tmp_path / "demo"
    assert Process(small, str(out), False, stop).wait().code == -signal.SIGKILL
    assert not (out / "better" / "result.json").exists()
    done: Any = Process(small, str(out), True).wait()
    assert done.code == 0, done.err
    assert bits(out) == bits(whole[0])


def test_a_second_demonstration_takes_another_folder_and_has_the_same_bits(whole: tuple[Path, str]) -> None:
    out, _ = whole
    assert Process(small, str(out)).wait().code == 0
    assert bits(out.with_name("whole-2")) == bits(out)
