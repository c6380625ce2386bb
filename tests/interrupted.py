"""A run of the command line that is stopped on its way and goes on must end as one that was not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pof.app.cli import main
from pof.training.step import Stepper


def resumes_bitwise(arguments: Sequence[str], folder: Path, patch: pytest.MonkeyPatch, *, step: int) -> bool:
    """Whether the run in ``folder / "whole"`` and one stopped in a step and resumed deliver the same file."""
    steps, inner = 0, Stepper.step

    def interrupted(self: Stepper, window: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == step:
            raise KeyboardInterrupt
        return inner(self, window)

    command = [*arguments, "--out", str(folder / "part")]
    with patch.context() as patched:
        patched.setattr(Stepper, "step", interrupted)
        assert main(command) == 130
    assert main([*command, "--resume"]) == 0
    whole, part = ((folder / name / "model.safetensors").read_bytes() for name in ("whole", "part"))
    return whole == part
