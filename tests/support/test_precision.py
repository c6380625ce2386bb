"""What is computed in float32 at least, and what autocast does in the body of a context."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress

import pytest
import torch

from pof._support.precision import at_least_float32, autocast, wide_dtype, without_autocast, without_cast_cache


class Boom(Exception):
    pass


@pytest.mark.parametrize(
    ("dtypes", "wide"),
    [
        ((torch.float16,), torch.float32),
        ((torch.float16, torch.bfloat16), torch.float32),
        ((torch.bfloat16, torch.float32), torch.float32),
        ((torch.float16, torch.float64), torch.float64),
        ((), torch.float32),
    ],
)
def test_wide_dtype_holds_all_and_is_float32_at_least(dtypes: tuple[torch.dtype, ...], wide: torch.dtype) -> None:
    assert wide_dtype(*(torch.ones(1, dtype=dtype) for dtype in dtypes)) == wide


def test_at_least_float32_keeps_the_graph_and_copies_nothing_that_is_wide() -> None:
    half = torch.ones(2, dtype=torch.float16, requires_grad=True)
    at_least_float32(half).sum().backward()
    assert half.grad is not None and half.grad.dtype == torch.float16
    for dtype in (torch.float32, torch.float64):
        wide = torch.ones(2, dtype=dtype)
        assert at_least_float32(wide) is wide


def test_autocast_to_a_dtype_or_to_none() -> None:
    weight = torch.randn(4, 4)
    with autocast(torch.device("cpu"), torch.bfloat16):
        assert (weight @ weight).dtype == torch.bfloat16
    with autocast(torch.device("cpu"), None):
        assert (weight @ weight).dtype == torch.float32


def test_without_autocast_computes_in_the_dtype_of_the_tensors() -> None:
    weight = torch.randn(4, 4)
    device = torch.device("cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (weight @ weight).dtype == torch.bfloat16
        with suppress(Boom), without_autocast(device):
            assert (weight @ weight).dtype == torch.float32
            raise Boom
        assert (weight @ weight).dtype == torch.bfloat16


def test_without_autocast_where_there_is_none() -> None:
    context: AbstractContextManager[None] = without_autocast(torch.device("meta"))
    with context:
        pass


def test_without_cast_cache_keeps_the_dtype_and_forgets_the_casts() -> None:
    device, weight = torch.device("cpu"), torch.eye(2)
    with without_cast_cache(device):
        assert (weight @ weight).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with suppress(Boom), without_cast_cache(device):
            assert (weight @ weight).dtype == torch.bfloat16 and not torch.is_autocast_cache_enabled()
            raise Boom
        assert (weight @ weight).dtype == torch.bfloat16 and torch.is_autocast_cache_enabled()
