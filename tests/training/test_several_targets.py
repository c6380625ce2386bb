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
from pof._support.batches import samples_of, unpack

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
    with pytest.raises(ValueError, match=r"a row for each sample, or hold one; got a tensor of shape \(\)"):
        pof.fit(pof.Finetune(net(), loss=lambda z, t: z.mean()), [(X, 3)], epochs=1)
    with pytest.raises(ValueError, match="takes targets in one tensor; got dict"):
        pof.evaluate(net(), [(X, {"a": Y})])
