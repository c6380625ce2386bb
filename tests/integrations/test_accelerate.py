"""Accelerate saves and loads a method as it does a model, with its random state, in the format of its choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import pof
from tests.integrations.test_same_steps import adarand, co_tuning, ema, sam
from tests.integrations.trainers import loader, make_optimizer, net

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")


def lawa(model: Any) -> pof.Method:
    return pof.Averaged(pof.PoF(model, features="previous"), "lawa")


def steps(method: pof.Method, prepared: Any, optimizer: Any, number: int) -> None:
    for count, ((inputs, targets), reference) in enumerate(pof.with_reference(prepared)):
        if count == number:
            break
        method(inputs, targets, *reference).loss.backward()
        optimizer.step()
        method.after_step()
        optimizer.zero_grad()
    method.after_epoch(0, 2, list)


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "pickle"])
@pytest.mark.parametrize("make", [pof.PoF, adarand, co_tuning, ema, lawa, sam])
def test_save_state_and_load_state(make: Any, safe: bool, tmp_path: Path) -> None:
    """Safetensors are its default, and hold tensors alone: a method's state was none."""
    accelerator = accelerate.Accelerator(cpu=True)
    method = make(net())
    _, optimizer, data = accelerator.prepare(method, make_optimizer(method), loader())
    if make is not sam:
        steps(method, data, optimizer, 3)
    accelerator.save_state(str(tmp_path), safe_serialization=safe)
    saved = method.state_dict()
    accelerator = accelerate.Accelerator(cpu=True)
    other = make(net())
    accelerator.prepare(other, make_optimizer(other))
    accelerator.load_state(str(tmp_path))
    for name, value in other.state_dict().items():
        assert torch.equal(value, saved[name]), name
    if make is pof.PoF:
        network = net()
        pof.load_weights(network, tmp_path / ("model.safetensors" if safe else "pytorch_model.bin"))
        assert torch.equal(network.body.weight, method.model.body.weight)
