"""The pages of the gallery: their commands are ones that the parser takes, and the page links what they make."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from pof.app.cli import parse

ROOT = Path(__file__).parents[1]
GALLERY: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "gallery.py"))


@pytest.mark.parametrize("words", GALLERY["COMMANDS"], ids=lambda words: " ".join(words[:2]))
def test_the_command_parses(words: list[str]) -> None:
    assert parse(words).options


def test_the_page_links_every_page_that_is_made() -> None:
    linked = re.findall(r'href="(\w+)\.html"', (ROOT / "docs" / "gallery.md").read_text())
    assert sorted(linked) == sorted(GALLERY["PAGES"])


def test_pages_that_were_made_are_put_into_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = GALLERY["on_post_build"]
    hook({"site_dir": str(tmp_path / "site")})
    assert (tmp_path / "site").exists() == GALLERY["KEPT"].exists()
    monkeypatch.setitem(hook.__globals__, "KEPT", tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "report.html").write_text("<html>")
    hook({"site_dir": str(tmp_path / "site")})
    assert (tmp_path / "site" / "gallery" / "report.html").read_text() == "<html>"
