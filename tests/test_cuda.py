"""What needs a GPU, which all other tests hide from torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import GPUS
from tests.on_gpu import METHODS, compare


def test_methods_on_a_gpu() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    environment |= {} if GPUS is None else {"CUDA_VISIBLE_DEVICES": GPUS}
    command = [sys.executable, "-m", "tests.on_gpu"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("this machine has no GPU that torch can use")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_comparison_itself(capsys: pytest.CaptureFixture[str]) -> None:
    compare("cpu")
    assert capsys.readouterr().out.count("[[") == len(METHODS)
