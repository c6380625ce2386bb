"""Situations of a third look: what would be silently wrong is refused in one sentence, or is what it should be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pof
from pof._support import files
from pof._support.files import LOCK, LockedError
from pof.combine import estimate_statistics, interpolate, soup
from pof.training.checkpoint import load_state, save_state
from tests.cases import batch, batches, mlp


def sgd(parameters: Any, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, **options)


def fit(model: Any = None, loader: Any = None, *, die_at: int = 0, make: Any = pof.Finetune, **options: Any) -> Any:
    """One epoch, or until a step before its state is saved."""

    def log(row: Any) -> None:
        if row["event"] == "step" and row["step"] == die_at:
            raise KeyboardInterrupt

    torch.manual_seed(0)
    own = {"epochs": 1, "device": "cpu", "optimizer": sgd, "log": log, **options}
    try:
        return pof.fit(make(mlp() if model is None else model), batches(3) if loader is None else loader, **own)
    except KeyboardInterrupt:
        return None


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


# Resumes

BOTH: Any = {"epochs": 2, "checkpoint_every": 1}


def test_other_validation_data_of_a_resume_are_refused(tmp_path: Path) -> None:
    held = [batch(20, seed=7), batch(20, seed=8)]
    other = "the validation data are not those of the interrupted run"
    whole = fit(val_loader=held, **BOTH)
    fit(val_loader=held, checkpoint_dir=tmp_path, die_at=5, **BOTH)
    for wrong, said in (
        (held[::-1], other),
        ([(held[0][0] + 1, held[0][1]), held[1]], other),
        (None, "run had validation"),
    ):
        with pytest.raises(pof.CheckpointError, match=said):
            fit(val_loader=wrong, checkpoint_dir=tmp_path, resume=True, **BOTH)
    assert torch.equal(
        weights(fit(val_loader=held, checkpoint_dir=tmp_path, resume=True, **BOTH).model), weights(whole.model)
    )
    fit(checkpoint_dir=tmp_path / "none", die_at=5, **BOTH)
    with pytest.raises(pof.CheckpointError, match="the interrupted run had no validation data"):
        fit(val_loader=held, checkpoint_dir=tmp_path / "none", resume=True, **BOTH)


def alike() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 4)).double()


def in_order(*layers: int) -> Any:
    def make(parameters: Any) -> torch.optim.Optimizer:
        found = list(parameters)
        return sgd([{"params": found[2 * layer : 2 * layer + 2]} for layer in layers])

    return make


def test_an_optimizer_with_its_parameters_in_another_order_is_refused(tmp_path: Path) -> None:
    """Their shapes are the same: the momentum of one would go on as that of the other."""
    fit(alike(), optimizer=in_order(0, 1), checkpoint_dir=tmp_path, die_at=2, **BOTH)
    with pytest.raises(pof.CheckpointError, match="the optimizer has other parameters, or in another order"):
        fit(alike(), optimizer=in_order(1, 0), checkpoint_dir=tmp_path, resume=True, **BOTH)
    state = load_state(tmp_path)
    assert state is not None
    for name in ("order", "validated"):  # of an older version
        del state[name]
    save_state(tmp_path, state)
    assert fit(alike(), optimizer=in_order(0, 1), checkpoint_dir=tmp_path, resume=True, **BOTH).steps == 6


def test_one_process_at_a_time_writes_to_a_checkpoint_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[str] = []

    def lock(folder: Path) -> Callable[[], None]:
        if held:
            raise LockedError(f"{folder} is in use by {held[0]}: stop it, or wait")
        return files.lock(folder)

    monkeypatch.setattr("pof.training.loop.lock", lock)
    fit(checkpoint_dir=tmp_path, epochs=2, die_at=5)
    assert not (tmp_path / LOCK).exists()
    before = (tmp_path / "state.pt").read_bytes()
    held.append("process 3")
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(LockedError, match="is in use by process 3"):
            fit(checkpoint_dir=folder, epochs=2, resume=folder == tmp_path)
    assert (tmp_path / "state.pt").read_bytes() == before and not any((tmp_path / "new").iterdir())


# Gradients


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_training_without_gradients_is_named(off: Callable[[], AbstractContextManager[None]]) -> None:
    for start, name in ((fit, "fit"), (lambda: pof.improve(mlp(), batches(3), [batch(40, seed=9)]), "improve")):
        with off(), pytest.raises(ValueError, match=rf"pof.{name} needs gradients: call it outside of torch.no_grad"):
            start()


@pytest.mark.parametrize("make", [pof.Finetune, pof.PoF, pof.HeadAscent])
def test_inputs_of_inference_mode_and_with_a_graph_are_inputs_like_others(make: Any) -> None:
    plain = batches(3)
    with torch.inference_mode():
        inference = [(x.clone(), y.clone()) for x, y in plain]
    leaves = [(x.clone().requires_grad_(), y) for x, y in plain]
    wanted = weights(fit(loader=plain, make=make).model)
    for given in (inference, leaves, [(x * 1.0, y) for x, y in leaves]):
        assert torch.equal(weights(fit(loader=given, make=make).model), wanted)
    assert all(x.grad is None for x, _ in leaves)


def test_weights_that_cannot_be_trained_are_named() -> None:
    with torch.inference_mode():
        model = mlp()
    with pytest.raises(ValueError, match=r"'body.weight' was made in torch.inference_mode and cannot be trained"):
        fit(model)
    model = mlp()
    model.fc.bias.data[1] = float("nan")
    with pytest.raises(ValueError, match=r"'fc.bias' holds NaN or infinity before the first step"):
        fit(model)


def test_an_optimizer_that_raises_the_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="maximize=True and would raise the loss"):
        fit(optimizer=lambda parameters: sgd(parameters, maximize=True))


# Batches and loaders


class Bags(nn.Module):
    """Takes the mean of each sample's rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = mlp()

    def forward(self, bags: Tensor) -> Tensor:
        found: Tensor = self.model(torch.stack([bag.mean(dim=0) for bag in bags.unbind()]))
        return found


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_inputs(layout: torch.layout, tmp_path: Path) -> None:
    plain = [(x[:, None].expand(-1, 3, -1), y) for x, y in batches(3)]
    nested = [(torch.nested.nested_tensor(list(x), layout=layout), y) for x, y in plain]
    options: Any = {"checkpoint_dir": tmp_path, "die_at": 2, "checkpoint_every": 1}
    fit(Bags(), nested, **options)
    gone_on = fit(Bags(), nested, **{**options, "die_at": 0, "resume": True})
    assert torch.equal(weights(gone_on.model), weights(fit(Bags(), plain).model))


@pytest.mark.parametrize("make", [pof.Finetune, pof.PoF, pof.SharpnessAware])
def test_sparse_tensors_are_inputs(make: Any, tmp_path: Path) -> None:
    rows = [(x * (x > 0), y) for x, y in batches(3)]
    options: Any = {"make": make}
    if make is pof.SharpnessAware:
        options["optimizer"] = lambda parameters: pof.SAM(parameters, torch.optim.SGD, lr=0.1)
    found = fit(loader=[(x.to_sparse(), y) for x, y in rows], checkpoint_dir=tmp_path, **options)
    torch.testing.assert_close(weights(found.model), weights(fit(loader=rows, **options).model), rtol=0, atol=1e-12)


def test_validation_data_that_can_be_read_once_are_refused() -> None:
    def once() -> Iterator[Any]:
        yield batch(20)

    with pytest.raises(ValueError, match="val_loader is an iterator, which gives its mini-batches once"):
        fit(val_loader=once())


# Weights put together


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_network_without_finite_weights_is_named(value: float | None) -> None:
    broken = mlp().to("meta") if value is None else mlp()
    if value is not None:
        broken.fc.weight.data[0, 0] = value
    name = "body" if value is None else "fc"
    for put_together in (lambda: soup([mlp(), broken]), lambda: interpolate(mlp(), broken, 0.5)):
        with pytest.raises(
            ValueError, match=rf"'{name}.weight' of network 1 holds NaN, infinity or \(on meta\) no values"
        ):
            put_together()


def test_statistics_are_not_estimated_of_nan() -> None:
    model = mlp(norm=True)
    with pytest.raises(ValueError, match="inputs hold NaN or infinity"):
        estimate_statistics(model, [(batch()[0] * float("nan"), batch()[1])])


# Improve


def test_improve_does_not_judge_on_the_training_data() -> None:
    data = torch.utils.data.TensorDataset(*batch(40))
    loaders = [torch.utils.data.DataLoader(data, batch_size=10, shuffle=shuffle) for shuffle in (True, False)]
    for given in (loaders, [batches(3)] * 2):
        with pytest.raises(ValueError, match="val_loader gives the data of train_loader"):
            pof.improve(mlp(), *given)


def test_improve_says_that_no_candidate_could_be_trained() -> None:
    frozen = mlp().requires_grad_(False)
    found = pof.improve(frozen, batches(3), [batch(40, seed=9)], budget=3, candidates=["sgd"], lr=0.1, device="cpu")
    assert "no candidate gave a network (sgd, lr 0.05: nothing to train" in found.message
