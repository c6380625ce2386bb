"""docs/cli.md is what the parser says."""

from __future__ import annotations

import re
import runpy
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from pof.app.cli import COMMANDS
from tests.test_layers import loaded_by

ROOT = Path(__file__).parents[1]
SCRIPT, PAGE = ROOT / "scripts" / "cli_page.py", ROOT / "docs" / "cli.md"


def names(group: type[Any]) -> set[str]:
    """Flags of a group of options; those of a group inside have its name in front."""
    hints, found = get_type_hints(group), set()
    for field in fields(group):
        kind = hints[field.name]
        found |= {f"{field.name}.{name}" for name in names(kind)} if is_dataclass(kind) else {field.name}
    return found


def test_the_page_is_what_the_parser_says() -> None:
    assert runpy.run_path(str(SCRIPT))["rendered"]() == PAGE.read_text(encoding="utf-8"), "run scripts/cli_page.py"


def test_every_option_of_every_command_is_there_with_words() -> None:
    _, *sections = PAGE.read_text(encoding="utf-8").split("\n## pof ")
    assert [section.split("\n")[0] for section in sections] == list(COMMANDS)
    described: dict[str, set[str]] = {}
    for section, (command, asked) in zip(sections, COMMANDS.items(), strict=True):
        rows = re.findall(r"^\| `(?:--)?([\w.]+)`[^|]* \|.* \| ((?:\\\||[^|])*) \|$", section, flags=re.MULTILINE)
        assert len(rows) == section.count("\n| `")
        assert [name for name, said in rows if len(said.split()) < 2] == []
        described[command] = {name for name, _ in rows}
        there = set(described[command])
        for other, flags in re.findall(r"^As in \[pof ([\w-]+)\]\(#pof-\1\): (.*)\.$", section, flags=re.MULTILINE):
            shared = (
                described[other] if flags == "all its other options" else set(re.findall(r"`(?:--)?([\w.]+)`", flags))
            )
            assert shared <= described[other] and shared, "described where the link leads"
            there |= shared
        assert {name for group in asked.groups for name in names(group)} <= there


def test_defaults_are_those_of_the_command() -> None:
    page = PAGE.read_text(encoding="utf-8")
    methods = re.findall(r"^\| `--method` \| text \| `([\w-]+)`", page, flags=re.MULTILINE)
    assert methods == ["finetune", "pof", "adarand"]
    assert re.findall(r"^\| `--lr` \| number, auto \| `(.*?)`", page, flags=re.MULTILINE) == ["0.1", "0.00016", "0.01"]
    assert page.count("| `--pof.sampling` | uniform, fixed | `uniform` |") == 1


def test_the_page_is_written_without_torch() -> None:
    assert "torch" not in loaded_by(f"import runpy; runpy.run_path({str(SCRIPT)!r})['rendered']()")
