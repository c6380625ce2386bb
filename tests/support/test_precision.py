"""What is computed in float32 at least, and what autocast does in the body of a context."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from typing import Any

import pytest
import torch

from pof._support import precision
from pof._support.precision import (
    at_least_float32,
    autocast,
    find_precision,
    float32_products,
    wide_dtype,
    without_autocast,
    without_cast_cache,
)


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


@pytest.mark.parametrize(("native", "found"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_where_the_hardware_computes_in_it(
    native: bool, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device: native)
    assert find_precision("auto", torch.device("cpu")) == found
    for asked in ("fp32", "fp16"):
        assert find_precision(asked, torch.device("cpu")) == asked


@pytest.mark.parametrize("names", [("_is_avx512_bf16_supported",), ("_is_amx_tile_supported",), ()])
def test_processors_with_bf16_are_those_with_an_instruction_for_it(
    names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in names)
    assert precision.has_bf16(torch.device("cpu")) is bool(names)


def test_emulated_bf16_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    with pytest.warns(UserWarning, match="this processor emulates bf16, .* 14 times slower than fp32: --precision"):
        assert find_precision("bf16", torch.device("cpu")) == "bf16"


def test_precision_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="precision must be one of auto, fp32, bf16, fp16; got 'tf32'"):
        find_precision("tf32", torch.device("cpu"))


def test_products_are_in_tf32_in_the_body_only_and_never_in_head_mathematics() -> None:
    cuda = torch.device("cuda")
    with float32_products(torch.device("cpu"), "high"):
        assert torch.get_float32_matmul_precision() == "highest"
    with suppress(Boom), float32_products(cuda, "high"):
        assert torch.get_float32_matmul_precision() == "high"
        with float32_products(cuda, "highest"):
            assert torch.get_float32_matmul_precision() == "highest"
        with without_autocast(cuda):  # without autocast too
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
        raise Boom
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="this torch has the older name")
@pytest.mark.parametrize("owner", [torch.backends.cuda.matmul, torch.backends])
def test_products_that_were_set_under_the_newer_name(owner: Any) -> None:
    """Torch then refuses to say what they are under the older one."""
    matmul, before = torch.backends.cuda.matmul, owner.fp32_precision
    owner.fp32_precision = "tf32"
    try:
        with pytest.raises(RuntimeError, match="mix of the legacy and new"):
            torch.get_float32_matmul_precision()
        with suppress(Boom), without_autocast(torch.device("cuda")):
            assert matmul.fp32_precision == "ieee"
            raise Boom
        assert matmul.fp32_precision == "tf32"
        with float32_products(torch.device("cuda"), "high"):
            assert matmul.fp32_precision == "tf32"
    finally:
        owner.fp32_precision = before
        matmul.fp32_precision = "none"
    assert torch.get_float32_matmul_precision() == "highest"
