"""Several targets per sample, in a mapping or the list that torch's collate makes of a tuple, for a custom loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import pof
from pof._support.batches import rows_of, samples_of, unpack
from tests.processes import ranks

N, C = 11, 3
GENERATOR = torch.Generator().manual_seed(0)
X, Y, SHARE = torch.randn(N, 4, generator=GENERATOR), torch.arange(N) % C, torch.rand(N, generator=GENERATOR)


class Pairs(Dataset[Any]):
    def __init__(self, named: bool) -> None:
        self.named = named

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        return X[i], {"y": Y[i], "share": SHARE[i]} if self.named else (Y[i], SHARE[i])


def parts(targets: Any) -> tuple[Tensor, Tensor]:
    y, share = targets.values() if isinstance(targets, dict) else targets
    return y, share


def loss(outputs: Tensor, targets: Any) -> Tensor:
    y, share = parts(targets)
    return share * F.cross_entropy(outputs, y, reduction="none")


def wrong(outputs: Tensor, targets: Any) -> Tensor:
    y, share = parts(targets)
    assert torch.equal(y, Y) and torch.equal(share, SHARE)
    return (outputs.argmax(dim=1) != y).float().mean()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, C))


METHODS: dict[str, Callable[[nn.Module], pof.Method]] = {
    "finetune": lambda m: pof.Finetune(m, loss=loss),
    "pof": lambda m: pof.PoF(m, loss=loss, reference_size=2),
    "previous": lambda m: pof.PoF(m, loss=loss, features="previous", reference_size=2),
    "head ascent": lambda m: pof.HeadAscent(m, loss=loss),
    "sam": lambda m: pof.SharpnessAware(m, loss=loss, ascent_share=0.5),
    "l2-sp": lambda m: pof.Regularized(m, pof.L2SP(m), loss=loss),
}


def run(name: str, named: bool, accumulation: int, **options: Any) -> Any:
    loader = DataLoader(Pairs(named), 2)  # the last one has one sample
    return pof.fit(
        METHODS[name](net()), loader, epochs=2, val_loader=loader, metric=wrong, accumulation=accumulation, **options
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_list_and_a_mapping_are_the_same(name: str, tmp_path: Path) -> None:
    for accumulation in (1, 2):
        runs = [run(name, named, accumulation) for named in (False, True)]
        rows = [[row["val_wrong"], row["val_loss"]] for row in runs[1].history]
        assert rows == [[row["val_wrong"], row["val_loss"]] for row in runs[0].history] and runs[0].stopped is None
    with torch.no_grad():
        assert rows[0][1] == pytest.approx(float(loss(net()(X), (Y, SHARE)).mean()), rel=1e-6)
    run(name, True, 1, checkpoint_dir=tmp_path)
    assert run(name, True, 1, checkpoint_dir=tmp_path, resume=True).epochs == 2


def test_lists_of_numbers_are_one_tensor_and_lists_of_tensors_several() -> None:
    assert torch.equal(unpack((X, [[0.5], [1.0]]))[1], torch.tensor([[0.5], [1.0]]))
    assert torch.equal(unpack((X, list(SHARE)))[1], SHARE)
    several = [torch.tensor([1]), torch.tensor([0.5])]  # a mini-batch of one sample
    assert unpack((X[:1], several))[1] is several and samples_of(several) == 1
    ragged = [[1, 2], [3]]
    assert unpack((X[:2], ragged))[1] is ragged


@pytest.mark.parametrize("asked", [None, "bce", "mse", "ordinal"])
def test_other_losses_take_one_tensor(asked: Any) -> None:
    for targets, kind in (([Y, SHARE], "list of length 2"), ({"a": Y}, "dict")):
        with pytest.raises(
            ValueError, match=f"takes targets in one tensor; got {kind}: that is for a loss of your own"
        ):
            pof.fit(pof.Finetune(net(), loss=asked), [(X, targets)], epochs=1)
    with pytest.raises(ValueError, match=r"a row for each sample; got a tensor of shape \(\): of a Dataset"):
        pof.fit(pof.Finetune(net(), loss=lambda z, t: z.mean()), [(X, 3)], epochs=1)
    with pytest.raises(ValueError, match="takes targets in one tensor; got dict"):
        pof.evaluate(net(), [(X, {"a": Y})])


def test_the_share_of_an_ascent_is_one_of_the_samples() -> None:
    """Eleven samples in two targets are eleven, not two."""
    method = pof.SharpnessAware(net(), loss=loss, ascent_share=0.5)
    optimizer = method.build_optimizer(torch.optim.SGD, lr=0.1)
    assert len(method(X, [Y, SHARE]).logits) == 6
    with optimizer.perturbed():
        assert len(method(X, [Y, SHARE]).logits) == N


PARTS = (slice(0, 7), slice(7, N))
"""Of two processes, unequal."""
SHARED = ("pof", "previous", "head ascent")


def texts(outputs: Tensor, targets: Any) -> Tensor:
    """A loss that reads Python strings: one list, and tensors, per mini-batch."""
    assert len(targets["words"]) == len(outputs)
    wanted = torch.tensor([["a", "b", "c"].index(word) for word in targets["words"]])
    return targets["share"] * F.cross_entropy(outputs, wanted, reduction="none")


def step(name: str, rows: slice) -> list[Tensor]:
    """Radius and gradient of the second of two steps, of some rows of a mini-batch and its reference."""
    inputs = X[rows]
    fitted = name == "head ascent"  # which trains plainly where the loss is above its level
    y = net()(X).argmax(dim=1) if fitted else Y
    targets = rows_of({"y": y, "share": SHARE}, rows, N)
    if name == "texts":
        targets = {"words": ["abc"[int(y)] for y in targets["y"]], "share": targets["share"]}
        method: Any = pof.PoF(net(), loss=texts)
    else:
        method = pof.HeadAscent(net(), loss=loss, level=0.99) if fitted else METHODS[name](net())
        method.reference_size = None
    for _ in range(2):
        out = method(inputs, targets, -inputs, targets)
    out.loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in method.trainable_parameters()])
    return [out.metrics["radius"], gradient * len(inputs)]


def steps_of(rank: int) -> list[list[Tensor]]:
    return [step(name, PARTS[rank]) for name in (*SHARED, "texts")]


def test_several_processes_gather_several_targets(tmp_path: Path) -> None:
    """The reference mini-batches of all act as one; a mapping ended in "'dict' object has no attribute 'dtype'"."""
    first, second = ranks(steps_of, 2, tmp_path)
    for number, name in enumerate((*SHARED, "texts")):
        radius, gradient = step(name, slice(N))
        for each in (first[number], second[number]):
            assert float(each[0]) == pytest.approx(float(radius), rel=1e-4) and float(radius) > 0, name
        found = first[number][1] + second[number][1]
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_regularisers_of_classes_refuse_several_targets_in_a_sentence() -> None:
    mean = torch.zeros(C, 5)
    for targets in ([Y, SHARE], {"y": Y}):
        method = pof.Regularized(net(), pof.AdaRand(mean, mean + 1), loss=lambda z, t: z.square().mean())
        with pytest.raises(ValueError, match=r"targets must be class indices of shape \(11,\), .* got several targets"):
            method(X, targets)
        with pytest.raises(ValueError, match="got several targets"):
            pof.RandReg.from_loader(pof.split(net()), [(X, targets)], num_classes=C)
        found = pof.RandReg.from_loader(pof.split(net()), [(X, targets)], num_classes=1, prior="features")
        assert found.mean.shape == (5,)
