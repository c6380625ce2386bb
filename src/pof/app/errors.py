"""Errors of any kind, and texts of users, as one printable line."""

from __future__ import annotations

import re
import sysconfig
import traceback
from pathlib import Path

LONGEST = 500
"""Characters of a message; its middle is left out of a longer one."""
HINT = " (POF_TRACEBACK=1 shows where)"
UNFIT = re.compile(
    r"to have \d+ channels, but got|shapes cannot be multiplied|Given normalized_shape=|input to conv\dd"
)
BY_NAME = re.compile(r"forward\(\) got an unexpected keyword argument '\w+'")
NAMES = (
    "; a dict of inputs goes to the network by its keys: name them as its forward does, or give (inputs, targets) pairs"
)
INPUTS = (
    "; the inputs do not fit the network: a factory gets in_channels, image_size or in_features where it names them"
)
OURS = str(Path(__file__).resolve().parents[1])
INSTALLED = tuple({*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), OURS, "<"})
IN_WORKER = re.compile(r"Caught (\w+) in DataLoader worker process \d+\.\s+Original Traceback .*", re.DOTALL)


def one_line(error: BaseException) -> str:
    """Say what an error is about, and where, if it comes out of a user's code; at most about 500 characters."""
    if isinstance(error, OSError) and error.strerror:
        return shortened(f"{error.strerror}: {error.filename}" if error.filename else error.strerror)
    said, place = str(error), _place(error)
    if IN_WORKER.search(said):
        said, place = _in_worker(said)
    elif not isinstance(error, (ValueError, OSError, ImportError, RuntimeError)) or not said:
        said = f"{type(error).__name__}: {said}".removesuffix(": ")
    if isinstance(error, RuntimeError) and UNFIT.search(said):
        said = shortened(said) + INPUTS
    if isinstance(error, TypeError) and BY_NAME.search(said):
        said = shortened(said) + NAMES
    if isinstance(error, MemoryError):
        said = f"not enough memory ({said})"
    known = isinstance(error, (ValueError, OSError, ImportError))
    return shortened(said) + (f" [{place}]" if place else "" if known else HINT)


def shortened(text: str) -> str:
    """Text in one line without control characters, its middle left out if it is long."""
    line = visible(" ".join(text.split()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST * 2 // 3]} [...] {line[-LONGEST // 4 :]}"


def visible(text: str) -> str:
    """Text with the terminal's control characters written out; lines and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def cell(value: object) -> object:
    """A value of a table; a text that a spreadsheet would take for a formula, and is no number, gets an apostrophe."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula and not re.fullmatch(r"[+-]\d+(\.\d+)?", str(value)) else value


def _place(error: BaseException) -> str:
    """The innermost line of code that is neither ours nor installed, of the error or of what caused it; or ''."""
    cause = error.__cause__ or error.__context__
    frames = [] if error.__traceback__ is None else traceback.extract_tb(error.__traceback__)
    places = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if not f.filename.startswith(INSTALLED)]
    return (_place(cause) if cause is not None else "") or (places[-1] if places else "")


def _in_worker(text: str) -> tuple[str, str]:
    """What a worker process raised, and the innermost place of a user's in its traceback."""
    found = re.findall(r'File "([^"]+)", line (\d+)', text)
    places = [f"{Path(file).name}:{line}" for file, line in found if not file.startswith(INSTALLED)]
    return text.strip().splitlines()[-1], (places or [""])[-1]
