"""The environment of all tests: one thread per process, no GPU, and no process group or cache of who runs them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

# Before torch and NumPy are imported: threads of several test processes would fight for the cores.
for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"
for variable in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "POF_TRACEBACK"):
    os.environ.pop(variable, None)
# The values are those of a processor, and two processes cannot share a GPU by NCCL; tests/test_cuda.py takes it.
GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")
os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps the precision and the processes of the first Accelerator for the life of the process."""
    yield
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
