"""A loss that broadcasts its targets is refused, whatever else it does; any other one is called once, and believed."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import pof
from pof.flatness import _measure, sam_sharpness
from pof.perturbation.broadcasting import without_broadcasting

# Torch's own words, at broadcasting, at a mean that is no mathematical one, and at its own deprecated parts.
SAID = ("Using a target size", "To copy construct", "reduction. 'mean'", ".*torch.jit.script")
pytestmark = [pytest.mark.filterwarnings(f"ignore:{words}") for words in SAID]

Function = Callable[[Tensor, Any], Tensor]
N = 16


def weighed(z: Tensor, t: Tensor) -> Tensor:
    weights = torch.ones_like(z)
    weights[t > 0] = 5.0
    weights.masked_fill_((t < 0)[:, None], 2.0)
    return (weights * (z - t[:, None]).square()).mean()


def groups(t: Tensor) -> Tensor:
    return (t > 0).long() + (t > 1).long()


def grouped(z: Tensor, t: Tensor) -> Tensor:
    sums = torch.zeros(3, 1)
    sums[groups(t)] = z
    return sums.index_copy_(0, groups(t), z)


def copied(z: Tensor, t: Tensor) -> Tensor:
    own = torch.empty(N)
    own[:] = t
    return (z - own).square().mean()


def filled(z: Tensor, t: Tensor) -> Tensor:
    places = z.clone().index_fill_(0, t.long().clamp(0, 1), 0.5)
    return (places - t[:, None]).square().mean()


BROADCAST: dict[str, Function] = {
    "mse_loss": F.mse_loss,
    "by keyword": lambda z, t: F.mse_loss(input=z, target=t),
    "L1Loss": nn.L1Loss(),
    "no reduction": nn.HuberLoss(reduction="none"),
    "root": lambda z, t: F.mse_loss(z, t).sqrt(),
    "difference": lambda z, t: (z - t).square().mean(),
    "other way round": lambda z, t: (t - z).abs().mean(),
    "quantile": lambda z, t: torch.maximum(0.9 * (t - z), 0.1 * (z - t)).mean(),
    "log cosh": lambda z, t: (z - t).cosh().log().mean(),
    "exponential": lambda z, t: F.mse_loss(z.exp(), t),
    "poisson": lambda z, t: F.poisson_nll_loss(z, t.abs()),
    "divergence": lambda z, t: F.kl_div(z, t.abs()),
    "of its dtype": lambda z, t: (z - t.to(z)).square().mean(),
    "new of targets": lambda z, t: (z - z.new_tensor(t)).square().mean(),
    "new of outputs": lambda z, t: (t.new_tensor(z) - t).square().mean(),
    "of its type": lambda z, t: (z - t.type_as(z)).square().mean(),
    "of each other's type": lambda z, t: (z.type_as(t) - t.type_as(z)).square().mean(),
    "standardised": lambda z, t: F.mse_loss(z, (t - t.mean()) / t.std()),
    "signs": lambda z, t: ((z > 0) != (t > 0)).double().mean() + z.mean(),
    "weights of targets": lambda z, t: ((1 + t) * (z - t[:, None]) ** 2).mean(),
    "masked": lambda z, t: F.mse_loss(z[t > 0], t[t > 0]),
    "a row of outputs": lambda z, t: F.mse_loss(z[:, 0], t[:, None]),
    "a distance": lambda z, t: F.pairwise_distance(z, t).mean(),
    "kept by a copy": copied,
    "mixed with outputs": lambda z, t: (z - (0.9 * t + 0.1 * z.detach()[:, 0])).square().mean(),
    "clipped by outputs": lambda z, t: F.mse_loss(z, torch.minimum(t, z.detach()[:, 0] + 1)),
    "asked for": lambda z, t: F.mse_loss(*torch.broadcast_tensors(z, t)),
    "dropout": lambda z, t: F.mse_loss(F.dropout(z), t),
    "fused": lambda z, t: torch.addcmul(torch.zeros(1), z, t).mean(),
    "compiled": torch.compile(lambda z, t: (z - t).abs().mean(), backend="eager"),
}
TAKEN: dict[str, Function] = {
    "targets[:, None]": lambda z, t: F.mse_loss(z, t[:, None]),
    "unsqueeze": lambda z, t: F.smooth_l1_loss(z, t.unsqueeze(-1)),
    "view_as": lambda z, t: F.l1_loss(z, t.view_as(z)),
    "reshape": lambda z, t: F.l1_loss(z, t.reshape(z.shape)),
    "outputs[..., 0]": lambda z, t: F.mse_loss(z[..., 0], t),
    "squeeze": lambda z, t: F.mse_loss(z.squeeze(), t),
    "mean": lambda z, t: (z.mean(-1) - t).square().mean(),
    "noise": lambda z, t: F.mse_loss(z.view(-1) + 0.1 * torch.randn(len(t)), t),
    "poisson": lambda z, t: F.poisson_nll_loss(z, 1e4 * t[:, None].abs()),
    "missing": lambda z, t: torch.nanmean((z - torch.where(t > 0, t, torch.nan)[:, None]) ** 2),
    "masked": lambda z, t: F.mse_loss(z[t > 0], t[t > 0][:, None]),
    "groups added": lambda z, t: torch.zeros(3, 1).index_add_(0, groups(t), z).square().mean(),
    "groups of all": lambda z, t: grouped(z, t).var(correction=0) + z.mean(),
    "sorted": lambda z, t: (z[t.argsort()] - t.sort()[0][:, None]).square().mean(),
    "risk": lambda z, t: (z - torch.logcumsumexp(z[t.argsort()], 0)).mean(),
    "product": lambda z, t: torch.matmul(t, z).sum() / N,
    "as many own bins as samples": lambda z, t: (z - torch.linspace(t.min(), t.max() + 1, N)).abs().mean(),
    "as many quantiles as samples": lambda z, t: (z - torch.quantile(t, torch.linspace(0, 1, N))).abs().mean(),
    "named axes": lambda z, t: torch.einsum("ic,j->ij", z, t).mean(),
    "weights written by a mask": weighed,
    "outputs written by an index": filled,
    "balanced": lambda z, t: F.cross_entropy(-(z - t[None]).square(), torch.arange(N)),
    "gamma": lambda z, t: (z + 1e3 * t[:, None].abs() * torch.exp(-z)).mean(),
    "contrast": lambda z, t: torch.where(t[:, None] == t[None], (z - z.T).square(), 1.0).mean() + z.mean(),
    "kept by an index": lambda z, t: z[t > 0].sum() / N + F.mse_loss(z.squeeze(1), t),
    "new bins": lambda z, t: (z - t.new_tensor(range(N))).square().mean() + (t[:, None] - z.new_ones(N)).mean(),
    "bins alike": lambda z, t: (
        (z - torch.ones_like(t)).square().mean() + (t[:, None] - torch.rand_like(z[:, 0])).mean()
    ),
    "no targets": lambda z, t: z.square().mean(),
    "pairs": lambda z, t: ((z - z.T) - (t[:, None] - t)).square().mean(),
    "pairs weighed by targets": lambda z, t: ((z - z.T).square() * (t > 0)).mean(),
    "quantiles of targets": lambda z, t: (z - torch.quantile(t, torch.tensor([0.25, 0.5, 0.75]))).square().mean(),
    "rank": lambda z, t: ((z[:, 0][:, None] - z[:, 0]) * (t[:, None] > t)).mean(),
    "residuals": lambda z, t: ((r := z[:, 0] - t)[:, None] * r).mean(),
    "as many bins as samples": lambda z, t: (z - torch.linspace(0, 1, N)).square().mean() + F.mse_loss(z[:, 0], t),
    "correlation": lambda z, t: 1 - (z.T @ t)[0] / N,
    "a row of an index": lambda z, t: z[t.long().abs()].mean(),
    "one class": lambda z, t: F.multi_margin_loss(z, (t > 99).long()) + z.mean(),
    "two classes": lambda z, t: F.cross_entropy(torch.cat([-z, z], 1), (t > 0).long()),
    "by samples": lambda z, t: torch.func.vmap(lambda a, b: (a[0] - b).square())(z, t).mean(),
    "in halves": lambda z, t: torch.stack(
        [F.mse_loss(a, b[:, None]) for a, b in zip(z.chunk(2), t.chunk(2), strict=True)]
    ).mean(),
}
TARGETS = {"even": torch.arange(float(N)) % 4 // 2, "spread": torch.linspace(-1, 2, N), "equal": torch.ones(N)}


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def inputs() -> Tensor:
    return torch.randn(N, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("loss", BROADCAST.values(), ids=BROADCAST)
def test_a_loss_that_broadcasts_is_refused_whatever_the_targets(loss: Function, targets: Tensor) -> None:
    with pytest.raises(ValueError, match="the loss broadcasts targets"):
        without_broadcasting(loss, mlp()(inputs()), targets)


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("loss", TAKEN.values(), ids=TAKEN)
def test_any_other_loss_is_taken_and_called_once(loss: Function, targets: Tensor) -> None:
    calls = []

    def counting(z: Tensor, t: Tensor) -> Tensor:
        calls.append(1)
        return loss(z, t)

    outputs = mlp()(inputs())
    torch.manual_seed(0)
    found = without_broadcasting(counting, outputs, targets)
    torch.manual_seed(0)
    torch.testing.assert_close(found, loss(outputs, targets), rtol=0, atol=0, equal_nan=True)
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["difference", "a row of outputs"])
def test_the_error_says_what_to_give(name: str) -> None:
    x, t, loss = inputs(), TARGETS["spread"], BROADCAST[name]
    met = r"\(16,\) against outputs \(16, 1\) of the head .*give targets \(N, 1\), or let the loss take outputs\[:, 0\]"
    if name == "a row of outputs":
        met = r"\(16, 1\) against outputs \(16,\): give targets \(16,\), or let the loss bring both to one shape"
    with pytest.raises(ValueError, match=met):
        pof.Finetune(mlp(), loss=loss)(x, t)
    with pytest.raises(ValueError, match=met):
        pof.evaluate(mlp(), [(x, t)], loss=loss)
    with pytest.raises(ValueError, match=met):
        sam_sharpness(mlp(), loss, [(x, t)])


def test_targets_with_more_axes_than_outputs_are_refused(more: Function = BROADCAST["difference"]) -> None:
    """Outputs are (N, C), also of a 1 x 1 convolution."""
    x, y = inputs()[:, :, None, None], torch.randn(N, 1, 1, 1)
    model = nn.Sequential(nn.Conv2d(4, 1, 1))
    for one in (lambda t: pof.Finetune(model, loss=more)(x, t).loss, lambda t: sam_sharpness(model, more, [(x, t)])):
        with pytest.raises(
            ValueError, match=r"targets \(16, 1, 1, 1\) against outputs \(16, 1\): give targets \(16, 1\)"
        ):
            one(y)
        one(y[..., 0, 0])
    wide = torch.randn(N, 3)
    with pytest.raises(ValueError, match=r"targets \(16, 1, 1\) against outputs \(16, 3\)"):
        without_broadcasting(more, wide, wide[:, :1, None])
    assert without_broadcasting(lambda z, t: (z - t[..., 0]).square().mean(), wide, wide[..., None]) == 0
    likelihood = lambda z, t: F.gaussian_nll_loss(z[:, :1], t, z[:, 1:2].exp())  # noqa: E731
    with pytest.raises(ValueError, match="the loss broadcasts targets"):
        without_broadcasting(lambda z, t: ((t - z[:, :1]).square() * (-z[:, 1:2]).exp()).mean(), wide, wide[:, 0])
    assert without_broadcasting(likelihood, wide, wide[:, :1]) == likelihood(wide, wide[:, :1])
    pairs = lambda z, t: (z[:, :, None] - t).square().mean()  # noqa: E731
    assert without_broadcasting(pairs, wide, wide[:, None]) == pairs(wide, wide[:, None])


def test_outputs_that_the_network_squeezes_are_watched_too() -> None:
    squeezed, targets = nn.Sequential(mlp(), nn.Flatten(0)), torch.randn(N, 1)
    loss: Function = BROADCAST["difference"]
    with pytest.raises(ValueError, match=r"targets \(16, 1\) against outputs \(16,\): give targets \(16,\)"):
        sam_sharpness(squeezed, loss, [(inputs(), targets)])
    expected = sam_sharpness(mlp(), loss, [(inputs(), targets)])
    assert sam_sharpness(squeezed, loss, [(inputs(), targets[:, 0])]).loss == pytest.approx(expected.loss)


@pytest.mark.parametrize(("outputs", "targets"), [((N,), (N, 1)), ((N, 1), (N,))])
def test_whole_numbers_are_watched_too(outputs: tuple[int, ...], targets: tuple[int, ...]) -> None:
    loss: Function = BROADCAST["difference"]
    with pytest.raises(ValueError, match="the loss broadcasts targets"):
        without_broadcasting(loss, torch.randn(outputs), torch.arange(N).view(targets))


def test_cosines_of_each_sample_with_all_are_refused() -> None:
    loss: Function = lambda z, t: 1 - F.cosine_similarity(z, t, dim=-1).mean()  # noqa: E731
    wide, targets = torch.randn(N, 5), torch.randn(N, 5)
    assert without_broadcasting(loss, wide, targets) == loss(wide, targets)
    with pytest.raises(ValueError, match=r"targets \(16, 1, 5\) against outputs \(16, 5\)"):
        without_broadcasting(loss, wide, targets[:, None])


def test_columns_that_are_joined_are_not_broadcast_where_there_are_two_samples() -> None:
    outputs, targets = mlp()(inputs())[:2], torch.arange(2.0)
    assert without_broadcasting(lambda z, t: torch.column_stack((z, t)).square().mean(), outputs, targets) > 0


@pytest.mark.parametrize(
    ("outputs", "targets"), [((N, 1, 1), (N, 1)), ((N, N, 1), (N, N)), ((5, 5, 1), (5, 5)), ((N, 3), (N, 1))]
)
@pytest.mark.parametrize("own", [False, True])
def test_outputs_of_sequences_and_means_of_several_are_watched_too(
    outputs: tuple[int, ...], targets: tuple[int, ...], own: bool
) -> None:
    """A second axis may be as long as there are samples, and fit where it is not meant."""
    mean = outputs == (N, 3)
    loss = (lambda z, t: (z - t).square().mean()) if own else nn.MSELoss()
    with pytest.raises(ValueError, match="the loss broadcasts targets"):
        without_broadcasting(lambda z, t: loss(z.mean(1) if mean else z, t), torch.randn(outputs), torch.randn(targets))
    right = torch.randn(targets)
    alike = without_broadcasting(
        lambda z, t: loss(z.mean(1, keepdim=True) if mean else z, t.reshape(t.shape if mean else z.shape)),
        torch.zeros(outputs),
        right,
    )
    assert float(alike) == pytest.approx(float(right.square().mean()))


def test_what_a_loss_makes_is_kept_no_longer_than_the_loss_keeps_it() -> None:
    """A loss that works in chunks needs the memory of one."""
    alive: list[Any] = []

    def in_chunks(z: Tensor, t: Tensor) -> Tensor:
        total = torch.zeros(())
        for rows in torch.arange(N).split(4):
            pairs = (t[rows, None] - t[None]) - (z[rows] - z.T)
            alive.append(weakref.ref(pairs))
            total = total + pairs.square().mean()
            del pairs
            assert sum(each() is not None for each in alive) == 0
        return total

    with torch.no_grad():
        without_broadcasting(in_chunks, mlp()(inputs()), torch.randn(N))
    assert len(alive) == 4


def test_a_measurement_watches_the_loss_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It calls the loss thousands of times; one that broadcasts does so the first time."""
    watched: list[int] = []

    def watching(function: Function, outputs: Tensor, targets: Any) -> Tensor:
        watched.append(len(outputs))
        return without_broadcasting(function, outputs, targets)

    monkeypatch.setattr(_measure, "without_broadcasting", watching)
    x, y, model = inputs(), torch.randn(N), mlp()
    for _ in range(2):
        sam_sharpness(model, TAKEN["squeeze"], [(x[:1], y[:1]), (x[1:9], y[1:9]), (x[9:], y[9:])])
    assert watched == [1, 8, 1, 8]
    with pytest.raises(ValueError, match="the loss broadcasts targets"):
        sam_sharpness(model, F.mse_loss, [(x, y)])


def test_a_function_is_tried_on_few_samples_and_none_that_writes_is_tried() -> None:
    largest = [0]

    class Sizes(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            largest[0] = max(largest[0], result.numel() if isinstance(result, Tensor) else 0)
            return result

    outputs, targets = torch.randn(500, 1), torch.randn(500)
    with Sizes():
        for name in ("kept by an index", "one class", "weights written by a mask", "outputs written by an index"):
            found = without_broadcasting(TAKEN[name], outputs, targets)
            assert found == TAKEN[name](outputs, targets)
    assert largest[0] <= 500


def test_functions_that_index_or_write_are_called_once() -> None:
    """Fewer samples would not do for an index, and on an accelerator such an error cannot be caught."""
    called: list[Any] = []

    class Noted(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(func)
            return func(*args, **(kwargs or {}))

    outputs, targets, known = torch.randn(N, 1), TARGETS["spread"], {torch.Tensor.index_add_, torch.Tensor.index_copy_}
    known |= {torch.Tensor.__getitem__, torch.Tensor.__setitem__, torch.matmul}
    for name in ("groups added", "groups of all", "sorted", "risk", "kept by an index", "product"):
        counts = []
        for compute in (TAKEN[name], lambda z, t, name=name: without_broadcasting(TAKEN[name], z, t)):
            called.clear()
            with Noted():
                compute(outputs, targets)
            counts.append(sum(func in known for func in called))
        assert counts[0] == counts[1] > 0, name


def test_targets_in_a_dict_are_known(loss: Function = F.l1_loss) -> None:
    for make, refused in (
        (lambda z, t: loss(z, t["y"][:, None]), False),
        (lambda z, t: (z - t["y"]).abs().mean(), True),
    ):
        method = pof.Finetune(mlp(), loss=make)
        if refused:
            with pytest.raises(ValueError, match="the loss broadcasts targets"):
                method(inputs(), {"y": TARGETS["spread"]})
        else:
            assert method(inputs(), {"y": TARGETS["spread"]}).loss == loss(mlp()(inputs())[:, 0], TARGETS["spread"])


def test_a_first_mini_batch_of_one_sample_says_nothing_of_the_next() -> None:
    method, x, t = pof.Finetune(mlp(), loss=BROADCAST["difference"]), inputs(), TARGETS["spread"]
    assert method(x[:1], t[:1]).loss == (mlp()(x[:1])[0, 0] - t[0]) ** 2
    with pytest.raises(ValueError, match="the loss broadcasts targets"):
        method(x, t)


def test_a_loss_is_watched_within_transforms() -> None:
    x, t = inputs(), TARGETS["spread"]
    z = mlp()(x).detach()

    def scaled(loss: Function) -> Callable[[Tensor], Tensor]:
        return lambda w: without_broadcasting(loss, z * w, t)

    one = torch.tensor(1.0)
    slope = (2 * (z[:, 0] - t) * z[:, 0]).mean()
    torch.testing.assert_close(torch.func.grad(scaled(TAKEN["targets[:, None]"]))(one), slope)
    torch.testing.assert_close(torch.func.jvp(scaled(TAKEN["squeeze"]), (one,), (one,))[1], slope)
    with pytest.raises(ValueError, match="the loss broadcasts targets"):
        torch.func.grad(scaled(BROADCAST["difference"]))(one)


def test_nothing_is_warned_of_by_watching() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pof.Finetune(mlp(), loss=lambda z, t: z.mean() + 0 * F.mse_loss(z, t[:, None]))(inputs(), TARGETS["spread"])
        assert not said
        with pytest.raises(ValueError, match="the loss broadcasts targets"):
            without_broadcasting(F.mse_loss, torch.randn(N, 1), TARGETS["spread"])
    assert ["(torch.Size([16]))" in str(each.message) for each in said] == [True]  # torch's own, of the loss itself
