"""Every example runs as a program, in a process of its own, says what it does, and is short."""

from __future__ import annotations

import ast
import os
import re
import runpy
import sys
import warnings
from pathlib import Path

import pytest

from tests.processes import Process

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))
PACKAGE = Path(__file__).resolve().parents[1] / "src"
MAX_LINES = 80
# Lightning and torch disagree about a name; a prefix of the message.
FRAMEWORKS = ("`isinstance(treespec, LeafSpec)` is deprecated",)


def warm(example: str) -> int:
    """In a process that has torch already, which is most of what an example takes."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("error")
    for message in FRAMEWORKS:
        warnings.filterwarnings("ignore", re.escape(message), FutureWarning)
    sys.argv = [example]
    runpy.run_path(example, run_name="__main__")
    return 0


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_and_prints(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = Process(warm, str(example)).wait()
    if missing := re.search(r"^(?:ModuleNotFound|Import)Error: (.*)$", done.err, flags=re.MULTILINE):
        assert "pof" not in missing[1].split("pip install")[0], done.err
        pytest.skip(f"{example.name}: {missing[1]}")
    assert done.code == 0, done.err
    assert done.out.strip()
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
