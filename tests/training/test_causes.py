"""One line where torch, or a trainer, would end in words of its own though the cause is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import pof
from tests.cases import batch, batches, mlp
from tests.integrations.trainers import QUIET
from tests.processes import ranks

pytestmark = [pytest.mark.filterwarnings(line) for line in QUIET]


def test_half_precision_weights_with_a_scaled_loss() -> None:
    with pytest.raises(ValueError, match=r"precision='fp16' casts float32 weights .* use model.float\(\)"):
        pof.fit(pof.Finetune(mlp().half()), batches(1), epochs=1, precision="fp16", device="cpu")


@pytest.mark.parametrize("make", [pof.PoF, pof.HeadAscent])
def test_a_frozen_backbone(make: Any) -> None:
    model = mlp()
    model.body.requires_grad_(False)
    with pytest.raises(ValueError, match=r"nothing to train: no parameter outside of what \w+ holds fixed"):
        make(model).build_optimizer(torch.optim.SGD, lr=0.1)


MAKES: list[Any] = [
    pof.PoF,
    pof.HeadAscent,
    lambda m: pof.Averaged(pof.Finetune(m), "ema"),
    pof.L2SP,
    lambda m: pof.DELTA(m, ["0"]),
]


@pytest.mark.parametrize("make", MAKES)
def test_lazy_layers_that_have_not_run(make: Any) -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.LazyLinear(4))
    with pytest.raises(ValueError, match=r"'2.weight' has no shape yet: run the model once on a mini-batch"):
        make(model)


class Checkpointed(nn.Module):
    """All of it, the head too, is computed anew in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = mlp(), reentrant

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = checkpoint(self.inner, x.requires_grad_(), use_reentrant=self.reentrant)
        return logits


@pytest.mark.parametrize("make", [pof.PoF, pof.Finetune])
def test_a_head_inside_of_a_checkpoint(make: Any) -> None:
    inputs, targets = batch()
    given = (inputs, targets, *batch(seed=1))
    with pytest.raises(ValueError, match=r"head 'inner.fc' runs without a graph .* use_reentrant=False"):
        make(Checkpointed(True), "inner.fc")(*given)
    make(Checkpointed(False), "inner.fc")(*given).loss.backward()


def test_one_logit_is_validated_by_its_own_loss() -> None:
    inputs, targets = batch(classes=2)
    method = pof.PoF(mlp(classes=1), loss=lambda z, y: nn.functional.binary_cross_entropy_with_logits(z[:, 0], y))
    loader = [(inputs, targets.double()), (inputs.flip(0), targets.flip(0).double())]
    result = pof.fit(method, loader, epochs=1, val_loader=loader[:1], device="cpu")
    by_hand = nn.functional.binary_cross_entropy_with_logits(result.model(inputs)[:, 0], targets.double())
    assert result.history[result.best_epoch]["val_loss"] == pytest.approx(float(by_hand.detach()))
    with pytest.raises(ValueError, match=r"the network returns one logit, as for a binary loss"):
        pof.evaluate(result.model, [(inputs, targets)])


class Auxiliary(nn.Module):
    """A second head that the loss does not reach."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.aux = mlp(), nn.Linear(5, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        self.aux(x)
        logits: Tensor = self.inner(x)
        return logits


def with_auxiliary_head(rank: int) -> str:
    x, y = batch(16, seed=rank)
    half = [(x[rank::2], y[rank::2])] * 3
    try:
        pof.fit(pof.Finetune(Auxiliary(), "inner.fc"), half, epochs=1, device="cpu")
    except ValueError as error:
        return str(error)
    assert dist.get_world_size() == 2
    return ""


def test_an_auxiliary_head_under_two_processes(tmp_path: Path) -> None:
    for message in ranks(with_auxiliary_head, 2, tmp_path):
        assert "step 2: the loss does not reach 'aux.weight' (an auxiliary head?)" in message


def test_persistent_workers_are_warned_of_where_a_resume_is_possible(tmp_path: Path) -> None:
    data: Any = TensorDataset(*batch(32))
    loader = DataLoader(data, batch_size=8, num_workers=1, persistent_workers=True)
    with pytest.warns(UserWarning, match=r"persistent_workers=True: workers keep generators that no checkpoint holds"):
        pof.fit(pof.Finetune(mlp()), loader, epochs=1, checkpoint_dir=tmp_path, device="cpu")


class Endless(IterableDataset[Any]):
    """It has no length."""

    def __iter__(self) -> Any:
        from tests.integrations.trainers import samples

        return iter(samples())


@pytest.mark.parametrize("make", [pof.PoF, pof.SharpnessAware])
def test_lightning_without_a_length(make: Any) -> None:
    pytest.importorskip("lightning", reason="lightning is not installed")
    from tests.integrations import trainers

    module = trainers.lightning_module(make(trainers.net()))
    trainer = trainers.lightning_trainer(max_epochs=-1, max_steps=5)
    trainer.fit(module, DataLoader(Endless(), batch_size=8))
    assert trainer.global_step == 5


@pytest.mark.parametrize("accumulation", [1, 2])
def test_training_inputs_that_are_not_finite_are_named(accumulation: int) -> None:
    data = batches(4)
    data[2][0][3, 1] = float("nan")
    step = 3 if accumulation == 1 else 2
    said = rf"became nan at step {step} .*Remedy: its inputs hold NaN or infinity \(1 of 80 values\): mend the data"
    with pytest.warns(pof.DivergenceWarning, match=said):
        found = pof.fit(pof.Finetune(mlp()), data, epochs=1, device="cpu", accumulation=accumulation)
    assert found.stopped == "diverged" and "learning rate" in found.message
