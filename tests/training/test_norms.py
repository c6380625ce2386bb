"""Statistics of batch norms: those of the weights that are evaluated, of every kind of norm; frozen ones stay."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

import pof
from pof._support.modules import in_training
from pof.combine import estimate_statistics
from tests.cases import batch, batches, mlp
from tests.integrations.trainers import QUIET
from tests.processes import ranks

pytestmark = [pytest.mark.filterwarnings(line) for line in QUIET]


class Ghost(nn.Module):
    """A norm that runs once for each chunk of 8 samples."""

    def __init__(self, features: int = 6) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(features)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.norm(chunk) for chunk in x.split(8)])


class Headstrong(nn.BatchNorm1d):
    """Tracks whatever it is told."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, 0.1, self.eps)


def network(norm: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), norm, nn.Tanh(), nn.Linear(6, 4)).double()


def fit(method: pof.Method, data: Any = None, **options: Any) -> pof.FitResult:
    plain: Any = {"epochs": 1, "device": "cpu", **options}
    return pof.fit(method, batches(3) if data is None else data, **plain)


def statistics(norm: Any) -> tuple[Tensor, Tensor]:
    return norm.running_mean.clone(), norm.running_var.clone()


def test_a_norm_that_runs_several_times_takes_the_mean_over_its_calls() -> None:
    z = torch.arange(20.0, dtype=torch.float64)[:, None].expand(20, 4)
    model = Ghost(4).double()
    estimate_statistics(model, [z[:12], z[12:]])
    chunks = [z[0:8], z[8:12], z[12:20]]
    mean = sum(len(c) * c.mean(dim=0) for c in chunks) / 20
    variance = sum(len(c) * c.var(dim=0) for c in chunks) / 20
    torch.testing.assert_close(statistics(model.norm), (mean, variance))
    assert float(mean[0]) == 9.5 and not model.norm._forward_pre_hooks and model.norm.momentum == 0.1


def estimated(rank: int) -> tuple[Tensor, Tensor]:
    model = nn.BatchNorm1d(5).double()
    inputs = batch(20)[0]
    estimate_statistics(model, [inputs[:4]] if rank == 0 else [inputs[4:12], inputs[12:]])
    assert dist.get_world_size() == 2
    return statistics(model)


def test_processes_count_by_their_samples(tmp_path: Path) -> None:
    model = nn.BatchNorm1d(5).double()
    inputs = batch(20)[0]
    estimate_statistics(model, [inputs[:4], inputs[4:12], inputs[12:]])
    for found in ranks(estimated, 2, tmp_path):
        torch.testing.assert_close(found, statistics(model))


def frozen_network(by: str) -> tuple[nn.Module, Any]:
    model = network(nn.BatchNorm1d(6))
    norm: Any = model[1]
    if by == "part":
        model = nn.Sequential(model[:3], model[3])
        model[0].eval()
    else:
        norm.eval()
    norm.running_mean += 0.5
    return model, norm


METHODS: dict[str, Any] = {
    "finetune": pof.Finetune,
    "sam": pof.SharpnessAware,
    "msam": lambda model: pof.SharpnessAware(model, kind="msam"),
    "pof": pof.PoF,
    "swa": lambda model: pof.Averaged(pof.Finetune(model), "swa"),
    "ema": lambda model: pof.Averaged(pof.Finetune(model), "ema"),
}


def sgd(method: pof.Method) -> torch.optim.Optimizer:
    return method.build_optimizer(torch.optim.SGD, lr=0.1, momentum=0.9)


@pytest.mark.parametrize("by", ["norm", "part"])
@pytest.mark.parametrize("name", METHODS)
def test_frozen_norms_stay_frozen(name: str, by: str) -> None:
    model, norm = frozen_network(by)
    before = statistics(norm)
    method = METHODS[name](model)
    fit(method, epochs=2, optimizer=sgd(method), val_loader=batches(1))
    assert not norm.training and model.training
    assert all(torch.equal(a, b) for a, b in zip(statistics(norm), before, strict=True))


def test_a_network_in_eval_mode_is_trained_whole() -> None:
    model = network(nn.BatchNorm1d(6)).eval()
    norm: Any = model[1]
    fit(pof.Finetune(model))
    assert int(norm.num_batches_tracked) == 3 and not model.training


@pytest.mark.parametrize("by", ["norm", "part"])
def test_frozen_norms_stay_frozen_where_a_method_measures_in_training_mode(by: str) -> None:
    model, norm = frozen_network(by)
    with in_training(model):
        assert not norm.training and model.training
    with in_training(model.eval()):
        assert norm.training


@pytest.mark.filterwarnings("ignore:Found 1 module.* in eval mode at the start of training")
def test_frozen_norms_stay_frozen_in_lightning() -> None:
    pytest.importorskip("lightning", reason="lightning is not installed")
    from tests.integrations import trainers

    model = trainers.net(norm=True)
    model.norm.eval()
    before = statistics(model.norm)
    module = trainers.lightning_module(pof.PoF(model))
    trainers.lightning_trainer(max_epochs=1).fit(module, trainers.loader())
    assert all(torch.equal(a, b) for a, b in zip(statistics(model.norm), before, strict=True))


def test_frozen_norms_stay_frozen_in_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from tests.integrations import trainers

    model = trainers.net(norm=True)
    model.norm.eval()
    before = statistics(model.norm)
    trainers.hugging_face_trainer(pof.PoF, model, tmp_path, num_train_epochs=1).train()
    assert all(torch.equal(a, b) for a, b in zip(statistics(model.norm), before, strict=True))


def passes(name: str, method: Any, optimizer: Any) -> Iterator[None]:
    """What may not move statistics: the reference pass of PoF, the second pass of SAM."""
    (x, y), reference = batch(), batch(seed=1)
    if name == "pof":
        method(x, y, *reference).loss.backward()
        yield
        return
    method(x, y).loss.backward()
    with optimizer.perturbed(method):
        method(*reference)
    yield


@pytest.mark.parametrize("name", ["pof", "sam"])
def test_norms_that_track_whatever_they_are_told_see_the_training_pass_alone(name: str) -> None:
    model = network(Headstrong(6))
    plain: Any = copy.deepcopy(model)
    plain(batch()[0])
    method = METHODS[name](model)
    next(passes(name, method, method.build_optimizer(torch.optim.SGD, lr=0.1)))
    norm: Any = model[1]
    assert all(torch.equal(a, b) for a, b in zip(statistics(norm), statistics(plain[1]), strict=True))


def test_msam_is_evaluated_with_the_statistics_of_its_weights() -> None:
    model, data = network(nn.BatchNorm1d(6)), batches(4)
    method = pof.SharpnessAware(model, kind="msam", rho=20.0)
    fit(method, data, epochs=2, optimizer=sgd(method))
    anew = copy.deepcopy(model)
    estimate_statistics(anew, data)
    norms: Any = (model[1], anew[1])
    for found, wanted in zip(*(statistics(norm) for norm in norms), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("kind", "options"), [("ema", {"decay": 0.999}), ("swa", {}), ("lawa", {"window": 3})])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_averages_in_half_precision_move_by_their_definition(kind: Any, options: Any, dtype: torch.dtype) -> None:
    model = mlp().to(dtype)
    method = pof.Averaged(pof.Finetune(model), kind, **options)
    start = model.body.weight.detach().clone()  # type: ignore[union-attr,operator]
    seen: list[Tensor] = []
    for step in range(300):
        model.body.weight.data.copy_(start * (1 + step / 1500))  # type: ignore[union-attr,arg-type]
        seen.append(model.body.weight.detach().double())  # type: ignore[union-attr,operator]
        method.after_step()
        if kind != "ema":
            method.after_epoch(step, 300, lambda: [])
    wanted = torch.stack(seen[-3:]).mean(dim=0) if kind == "lawa" else torch.stack(seen).mean(dim=0)
    if kind == "ema":
        wanted = seen[0]
        for value in seen[1:]:
            wanted = 0.999 * wanted + 0.001 * value
    found: Any = method.candidate()
    assert found.body.weight.dtype == dtype
    torch.testing.assert_close(
        found.body.weight.double(), wanted, rtol=2e-2 if dtype == torch.bfloat16 else 2e-3, atol=0
    )
    assert not torch.equal(found.body.weight, start)


def test_an_average_in_half_precision_resumes_exactly(tmp_path: Path) -> None:
    data = [(x.bfloat16(), y) for x, y in batches(3)]

    def run(folder: Path | None, die_at: int = 0, resume: bool = False) -> Any:
        def log(row: Any) -> None:
            if row["event"] == "step" and row["step"] == die_at:
                raise KeyboardInterrupt

        torch.manual_seed(0)
        method = pof.Averaged(pof.Finetune(mlp().bfloat16()), "ema", decay=0.99)
        options: Any = {"epochs": 2, "checkpoint_dir": folder, "checkpoint_every": 2, "resume": resume, "log": log}
        return fit(method, data, **options).model.state_dict()

    whole = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, die_at=5)
    resumed = run(tmp_path, resume=True)
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "the loader gave no batch"),
        ([torch.randn(4, 3), torch.full((4, 3), torch.nan)], "inputs hold NaN"),
        ([torch.randn(4, 3), torch.randn(1, 3)], "one sample has no variance: give the loader drop_last=True"),
    ],
)
def test_an_estimate_that_fails_leaves_the_statistics_as_they_were(loader: list[Tensor], message: str) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3, momentum=None))
    model(torch.randn(8, 3))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        estimate_statistics(model, loader)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and model[2].momentum is None  # type: ignore[union-attr]
