"""Every example runs as a person would run it, says what it does, and is short."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))
PACKAGE = Path(__file__).resolve().parents[1] / "src"
MAX_LINES = 80
# Lightning and torch disagree about a name; a prefix of the message, as -W wants it.
FRAMEWORKS = ("`isinstance(treespec, LeafSpec)` is deprecated",)
PATIENCE = 300.0
"""Seconds; many times what any of them takes."""


def run(example: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    paths = os.pathsep.join([str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])])
    warnings = ["-Werror", *(f"-Wignore:{message}:FutureWarning" for message in FRAMEWORKS)]
    return subprocess.run(
        [sys.executable, *warnings, str(example)],
        cwd=folder,
        env=os.environ | threads | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_and_prints(example: Path, tmp_path: Path) -> None:
    done = run(example, tmp_path)
    if missing := re.search(r"^(?:ModuleNotFound|Import)Error: (.*)$", done.stderr, flags=re.MULTILINE):
        assert "pof" not in missing[1].split("pip install")[0], done.stderr
        pytest.skip(f"{example.name}: {missing[1]}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert not list(tmp_path.iterdir()), "an example leaves nothing behind"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_says_what_it_does(example: Path) -> None:
    text = example.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    described = ast.get_docstring(ast.parse(text))
    assert described and example.name in described, "the docstring shows the command line"


def test_every_example_is_named_in_the_documentation() -> None:
    page = (PACKAGE.parent / "docs" / "index.md").read_text(encoding="utf-8")
    assert {example.name for example in EXAMPLES} == set(re.findall(r"`(\w+\.py)`", page))
