from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from pof.combine import interpolate
from tests.combine.networks import assert_same, moved, small, values

BEFORE, AFTER = small(), moved(small(), 1)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.7, 1.0])
def test_closed_form_and_both_ends(share):
    kept = values(BEFORE), values(AFTER)
    result = interpolate(BEFORE, AFTER, share)
    for p, a, b in zip(result.parameters(), BEFORE.parameters(), AFTER.parameters(), strict=True):
        # One rounding of each product and of the sum, in float64.
        torch.testing.assert_close(p, (1 - share) * a + share * b, rtol=1e-15, atol=1e-15)
    assert_buffers_of(result, AFTER if share == 1 else BEFORE)
    for before, after in zip(kept, (values(BEFORE), values(AFTER)), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not {p.data_ptr() for p in result.parameters()} & {
        p.data_ptr() for m in (BEFORE, AFTER) for p in m.parameters()
    }


def assert_buffers_of(result: nn.Module, model: nn.Module) -> None:
    for (name, a), (_, b) in zip(result.named_buffers(), model.named_buffers(), strict=True):
        assert torch.equal(a, b), name
        assert a is not b


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_ends_are_bitwise_identical(dtype):
    before, after = small().to(dtype), moved(small(), 1).to(dtype)
    assert_same(interpolate(before, after, 0), before)
    assert_same(interpolate(before, after, 1), after)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_averaged_in_single_precision(dtype):
    torch.manual_seed(0)
    before, after = nn.Linear(50, 50).to(dtype), nn.Linear(50, 50).to(dtype)
    result, (a, b) = interpolate(before, after, 0.3).weight, (before.weight, after.weight)
    assert result.dtype == dtype
    # Rounded once; in half precision each product and the sum would be.
    assert torch.equal(result, (0.7 * a.float() + 0.3 * b.float()).to(dtype))
    assert not torch.equal(result, 0.7 * a + 0.3 * b)


def test_a_parameter_that_is_the_same_in_both_is_not_rounded():
    torch.manual_seed(0)
    before, after = nn.Linear(50, 50), nn.Linear(50, 50)
    after.load_state_dict({"weight": before.weight, "bias": after.bias})
    result = interpolate(before, after, 0.3)
    assert torch.equal(result.weight, before.weight)
    assert not torch.equal(0.7 * before.weight + 0.3 * before.weight, before.weight)


class Tied(nn.Module):
    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
        if tied:
            self.second.weight = self.first.weight


def test_tied_weights_are_averaged_once_and_stay_tied():
    before, after = Tied(), Tied()
    result = interpolate(before, after, 0.5)
    assert result.second.weight is result.first.weight
    torch.testing.assert_close(result.first.weight, (before.first.weight + after.first.weight) / 2)
    with pytest.raises(ValueError, match=r"'second\.weight' differs: network 0 has no such.*network 1 has \(3, 3\)"):
        interpolate(before, Tied(tied=False), 0.5)


def test_parametrised_modules_are_averaged_in_their_own_parameters():
    before, after = (parametrizations.weight_norm(nn.Linear(3, 2).double()) for _ in range(2))
    result = interpolate(before, after, 0.25)
    length, direction = (
        0.75 * getattr(before.parametrizations.weight, name) + 0.25 * getattr(after.parametrizations.weight, name)
        for name in ("original0", "original1")
    )
    expected = length * direction / direction.norm(dim=1, keepdim=True)
    torch.testing.assert_close(result.weight, expected)
    torch.testing.assert_close(interpolate(before, after, 1).weight, after.weight, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("wrap", [torch.nn.utils.weight_norm, lambda m: prune.l1_unstructured(m, "weight", 2)])
def test_weights_that_hooks_compute(wrap):
    before, after, x = wrap(nn.Linear(3, 2)), wrap(nn.Linear(3, 2)), torch.randn(5, 3)
    before(x), after(x)
    assert not before.weight.is_leaf
    assert torch.equal(interpolate(before, after, 0)(x), before(x))
    assert torch.equal(interpolate(before, after, 1)(x), after(x))
    assert interpolate(before, after, 0.5)(x).isfinite().all()


class Stateful(nn.Module):
    def __init__(self, value: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), float(value)))
        self.index = nn.Parameter(torch.tensor([value]), requires_grad=False)
        self.phase = nn.Parameter(torch.tensor([1j * value]))
        self.register_buffer("count", torch.tensor(value))
        self.register_buffer("cache", torch.tensor([value / 2]), persistent=False)
        self.state = {"calls": value}

    def get_extra_state(self) -> dict[str, int]:
        return self.state

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.state = state


def test_what_is_no_floating_point_parameter_is_that_of_the_first():
    result = interpolate(Stateful(2), Stateful(4), 0.5)
    assert result.weight.tolist() == [3.0, 3.0]
    assert result.phase.tolist() == [3j]
    assert (int(result.index), int(result.count), float(result.cache)) == (2, 2, 1.0)
    assert result.state == {"calls": 2}
    assert set(result.state_dict()) == {"weight", "index", "phase", "count", "_extra_state"}
    assert interpolate(Stateful(2), Stateful(4), 1).state == {"calls": 4}


def test_flags_and_modes_are_kept_and_gradients_are_not():
    before = small()
    before[0].weight.requires_grad_(False)
    before[1].eval()
    before(torch.randn(4, 4, dtype=torch.float64)).sum().backward()
    result = interpolate(before, AFTER, 0.5)
    assert [p.requires_grad for p in result.parameters()] == [p.requires_grad for p in before.parameters()]
    assert [m.training for m in result.modules()] == [m.training for m in before.modules()]
    assert all(p.grad is None and p.is_leaf for p in result.parameters())
    assert before[3].weight.grad is not None


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5))


BAD = {
    "shape": (
        wide,
        r"'3\.weight' differs: network 0 has \(3, 6\), network 1 has \(5, 6\); combine networks",
    ),
    "missing": (lambda: small()[:3], r"'3\.weight' differs: network 0 has \(3, 6\), network 1 has no such parameter"),
    "more": (
        lambda: nn.Sequential(*small(), nn.Linear(3, 1)),
        r"'4\.weight' .* no such parameter, network 1 has",
    ),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(6)), r"'0\.weight' of network 1 has no shape yet: run one forward"),
}


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("case", BAD)
def test_networks_that_do_not_belong_together(case, share):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        interpolate(small(), make(), share)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), float("inf")])
def test_shares_off_the_line(share):
    with pytest.raises(ValueError, match=rf"share must be in \[0, 1\].*got {share}"):
        interpolate(BEFORE, AFTER, share)


def test_random_state_is_left_alone():
    state: Tensor = torch.get_rng_state()
    interpolate(BEFORE, AFTER, 0.5)
    assert torch.equal(torch.get_rng_state(), state)
