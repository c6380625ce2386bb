"""Errors of any kind in one printable line, and texts of users that are no markup and no commands to the terminal."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from pof.app.cli import main
from pof.app.cli._display import PlainConsole
from pof.app.errors import LONGEST, cell, one_line, visible
from tests import strangers


def caught(function: Any, *arguments: Any) -> BaseException:
    with pytest.raises(BaseException) as found:
        function(*arguments)
    return found.value


def test_what_a_user_s_code_raises_has_its_kind_and_its_place() -> None:
    said = one_line(caught(nn.Sequential(strangers.Tripping()), torch.ones(1, 64)))
    assert said.startswith("KeyError: 'depth' [strangers.py:") and said.endswith("]")


def test_what_has_no_place_of_a_user_has_the_way_to_one() -> None:
    assert one_line(TypeError("x")) == "TypeError: x (POF_TRACEBACK=1 shows where)"
    assert one_line(RuntimeError("x")) == "x (POF_TRACEBACK=1 shows where)"
    assert one_line(ValueError("x")) == "x"
    assert one_line(AssertionError()) == "AssertionError (POF_TRACEBACK=1 shows where)"
    assert one_line(MemoryError()).startswith("not enough memory (MemoryError)")


@pytest.mark.parametrize("kind", [KeyError, ValueError, AssertionError])
def test_a_worker_s_traceback_is_shortened_to_its_last_line(kind: type[Exception]) -> None:
    loader = DataLoader(strangers.Unreadable(kind), num_workers=1)
    said = one_line(caught(list, loader))
    assert said.startswith(f"{kind.__name__}: ") and "sample 3" in said
    assert "Traceback" not in said and "[strangers.py:" in said


@pytest.mark.parametrize(
    ("network", "shape"), [(nn.Conv2d(3, 4, 3), (1, 1, 8, 8)), (nn.Linear(5, 2), (1, 4)), (nn.LayerNorm(5), (1, 4))]
)
def test_inputs_that_do_not_fit_come_with_the_remedy(network: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError) as found:
        network(torch.zeros(shape))
    assert "; the inputs do not fit the network: a factory gets in_channels" in one_line(found.value)


def test_long_messages_lose_their_middle_and_control_characters_their_effect() -> None:
    said = one_line(ValueError("begin " + "x" * 10**6 + " end"))
    assert said.startswith("begin x") and said.endswith("x end") and "[...]" in said and len(said) <= LONGEST
    assert one_line(FileNotFoundError(2, "none", "a" * 10**5)).count("a") < LONGEST
    assert one_line(ValueError("a\n\x1b[31mred\x07\u202e")) == r"a \x1b[31mred\x07\u202e"
    assert visible("grün\t\n[b]") == "grün\t\n[b]"


def test_texts_are_no_markup_and_no_commands_to_the_terminal() -> None:
    out = io.StringIO()
    PlainConsole(file=out, markup=False, emoji=False).print("runs/[bold]x[/] :smile: \x1b[2J", soft_wrap=True)
    assert out.getvalue() == "runs/[bold]x[/] :smile: \\x1b[2J\n"


RUN = ["train", "--model", "small-cnn", "--epochs", "1", "--batch_size", "20", "--lr", "0.05", "--out", "new"]
CASES = {
    "model": (["--data", "digits", "--model", "tests.strangers:tripping"], "KeyError: 'depth' [strangers.py:"),
    "data": (["--data", "tests.strangers:unreadable", "--workers", "0"], "KeyError: 'sample 3' [strangers.py:"),
    "worker": (["--data", "tests.strangers:unreadable", "--workers", "1"], "KeyError: 'sample 3' [strangers.py:"),
    "key twice": (["--data", "digits", "--config", "twice.yaml"], "twice.yaml, line 1: the key 'lr' is given twice"),
}


def pipe(path: Path) -> None:
    os.mkfifo(path)


def large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10**8)


@pytest.mark.parametrize(
    ("make", "message"),
    [(pipe, "is no file"), (large, "has 100000000 bytes; a file of options has at most"), (Path.mkdir, "is no file")],
)
@pytest.mark.parametrize("arguments", [["experiment", "--out", "new"], [*RUN, "--data", "digits", "--config"]])
def test_a_file_of_options_that_never_ends_is_refused(
    make: Any, message: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "options.yaml"
    make(file)
    assert main([*arguments, str(file)]) == 2
    assert capsys.readouterr().err.startswith(f"pof: error: {file} {message}")


@pytest.mark.parametrize("case", CASES)
def test_exceptions_of_any_kind_are_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = CASES[case]
    monkeypatch.chdir(tmp_path)
    Path("twice.yaml").write_text("lr: 0.1\nlr: 0.2\n")
    assert main([*RUN, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Traceback" not in error
    monkeypatch.setenv("POF_TRACEBACK", "1")
    with pytest.raises((KeyError, ValueError)):
        main([*RUN, *arguments])


def test_a_number_in_a_table_is_no_formula() -> None:
    """A class that is called -1 stays that."""
    texts = ("-1", "+2.5", "=1", "-1+1", "@x", "-", "cat")
    assert [cell(text) for text in texts] == ["-1", "+2.5", "'=1", "'-1+1", "'@x", "'-", "cat"]


def test_a_dict_of_inputs_by_other_names_than_the_networks() -> None:
    said = one_line(caught(lambda: nn.Linear(2, 2)(image=torch.zeros(1, 2))))
    assert "a dict of inputs goes to the network by its keys: name them as its forward does" in said
