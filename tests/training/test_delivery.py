"""What ``fit`` hands back: everything that the network holds, and the network as the user left it otherwise."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pof
from tests.cases import batch, batches, mlp


def sgd(lr: float = 0.1) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def fit(method: pof.Method, data: Any = None, **options: Any) -> pof.FitResult:
    plain: Any = {"epochs": 1, "optimizer": sgd(), "device": "cpu", **options}
    return pof.fit(method, batches(3) if data is None else data, **plain)


class Counting(nn.Linear):
    """Its extra state is a number that training moves."""

    count = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count += 1
        return super().forward(x)

    def get_extra_state(self) -> Any:
        return {"count": self.count}

    def set_extra_state(self, state: Any) -> None:
        self.count = state["count"]


class Partial(nn.Sequential):
    """Its state dict leaves parameters out and renames others."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {f"renamed.{k}": v for k, v in super().state_dict(*args, **kwargs).items() if "weight" not in k}


class Hidden(nn.Module):
    """A buffer that is in no state dict, one that appears, one that grows, and one that vanishes."""

    seen: Tensor | None
    passing: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.register_buffer("late", None)
        self.register_buffer("growing", torch.zeros(1))
        self.register_buffer("passing", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen = self.seen + 1 if self.seen is not None else None
            self.late = x.detach().mean(dim=0)
            self.growing = torch.zeros(len(self.growing) + 1)
            self.passing = None
            if not hasattr(self, "new"):
                self.register_buffer("new", torch.ones(2))
        return x


def everything(model: nn.Module) -> dict[str, Any]:
    buffers = {f"{n}/{k}": b for n, m in model.named_modules() for k, b in m._buffers.items()}
    extra = {f"{n}/extra": m.count for n, m in model.named_modules() if isinstance(m, Counting)}
    return copy.deepcopy({**dict(model.named_parameters()), **buffers, **extra})


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value) if isinstance(value, Tensor) else found[name] == value, name


def odd_network() -> nn.Module:
    torch.manual_seed(0)
    return Partial(Counting(5, 6), Hidden(), nn.Tanh(), nn.Linear(6, 4)).double()


@pytest.mark.parametrize("average", [None, "swa", "ema", "lawa"])
def test_unchanged_is_unchanged_whatever_the_state_dict_says(average: Any) -> None:
    model = odd_network()
    data = batches(2)
    right = [(x, model.eval()(x).argmax(dim=1)) for x, _ in data]
    model.train()
    before = everything(model)
    method: pof.Method = pof.Finetune(model)
    wrong = [(x, (y + 1) % 4) for x, y in right]
    options: Any = {"val_loader": right, "optimizer": sgd(1e-4)}
    result = fit(method if average is None else pof.Averaged(method, average), wrong, **options)
    assert result.best_epoch == 0
    assert_same(everything(model), before)


@pytest.mark.parametrize("average", [None, "swa", "ema", "lawa"])
def test_the_last_network_is_delivered_whole(average: Any) -> None:
    model = odd_network()
    method: pof.Method = pof.Finetune(model)
    fit(method if average is None else pof.Averaged(method, average), epochs=2)
    hidden: Any = model[1]  # type: ignore[index]
    assert hidden.passing is None and float(hidden.seen) == 6 and len(hidden.growing) == 7
    assert hidden.late is not None and torch.equal(hidden.new, torch.ones(2))


def test_resume_with_an_odd_state_dict_is_exact(tmp_path: Any) -> None:
    whole = odd_network()
    fit(pof.Finetune(whole), epochs=2)

    def die(row: Any) -> None:
        if row["event"] == "step" and row["step"] == 5:
            raise KeyboardInterrupt

    options: Any = {"epochs": 2, "checkpoint_dir": tmp_path, "checkpoint_every": 2}
    with pytest.raises(KeyboardInterrupt):
        fit(pof.Finetune(odd_network()), log=die, **options)
    resumed = odd_network()
    fit(pof.Finetune(resumed), resume=True, **options)
    assert_same(everything(resumed), everything(whole))


@pytest.mark.parametrize("make", [pof.PoF, pof.HeadAscent, lambda m: pof.Averaged(pof.PoF(m), "swa")])
def test_the_head_requires_gradients_as_before(make: Any) -> None:
    model = mlp()
    model.fc.bias.requires_grad_(False)  # type: ignore[union-attr]
    head: Any = model.fc
    before = head.weight.detach().clone()
    method = make(model)
    for _ in range(2):  # a second run holds it fixed again
        fit(method)
        assert head.weight.requires_grad and not head.bias.requires_grad
        assert torch.equal(head.weight, before)
    assert all(p is not head.weight for p in method.trainable_parameters())
    assert not head.weight.requires_grad


def test_all_is_put_back_where_the_loader_raises() -> None:
    model = mlp(norm=True).eval()

    class Broken(list):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            yield from batches(1)
            raise KeyError("label")

    method = pof.PoF(model)
    with pytest.raises(KeyError):
        fit(method, Broken(batches(3)))
    assert not any(m.training for m in model.modules()) and all(p.requires_grad for p in model.parameters())


def test_delta_leaves_no_hook() -> None:
    model = mlp()

    def hooks() -> int:
        return sum(len(m._forward_hooks) for m in model.modules())

    before = hooks()
    method = pof.Regularized(model, pof.DELTA(model, ["body"]))
    for _ in range(2):
        fit(method)
        assert hooks() == before
    method.train()(*batch()).loss.backward()  # training by hand goes on as well
    assert hooks() == before + 1


@pytest.mark.parametrize("lr", [1e30, 1e38])
@pytest.mark.parametrize("average", [None, "ema"])
def test_a_network_that_the_last_step_destroys_is_rolled_back(lr: float, average: Any) -> None:
    model = mlp(norm=True).float()
    before = everything(model)
    method: pof.Method = pof.Finetune(model)
    method = method if average is None else pof.Averaged(method, average)
    with pytest.warns(
        pof.DivergenceWarning, match=r"no finite outputs after step 1, .*network of epoch 0 was put back"
    ):
        result = fit(method, [(x.float() * 1e10, y) for x, y in batches(1)], optimizer=sgd(lr))
    assert (result.stopped, result.best_epoch) == ("diverged", 0)
    assert_same(everything(model), before)


class ScheduleFree(torch.optim.SGD):
    """Trains at other weights than those to be evaluated: one more, in training mode."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        self.training, self.calls = False, []

    def _move(self, amount: float) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(amount)

    def train(self) -> None:
        if not self.training:
            self._move(1.0)
        self.training = True

    def eval(self) -> None:
        if self.training:
            self._move(-1.0)
        self.training = False

    def step(self, closure: Any = None) -> Any:
        assert self.training, "step() outside of train()"
        return super().step(closure)


@pytest.mark.parametrize("wrapped", [False, True])
def test_optimizers_with_two_modes_are_told_which(wrapped: bool) -> None:
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    method = pof.SharpnessAware(model, rho=0.1) if wrapped else pof.Finetune(model)
    optimizer: Any = method.build_optimizer(ScheduleFree, lr=0.0)
    result = fit(method, epochs=2, val_loader=batches(2), optimizer=optimizer)
    assert result.history[2]["val_nll"] == pytest.approx(result.history[0]["val_nll"])
    for name, value in before.items():
        torch.testing.assert_close(model.state_dict()[name], value)


@pytest.mark.parametrize("closure", [lambda: None, lambda: 1.0])
@pytest.mark.parametrize("make", [pof.SAM, pof.optim.MSAM])
def test_a_closure_without_backward_is_refused(make: Any, closure: Any) -> None:
    model = mlp()
    optimizer = make(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    for _ in range(2):
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(RuntimeError, match=r"closure changed no gradient: it must .* call backward"):
            optimizer.step(closure)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

        def real() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(batch()[0]), batch()[1])
            loss.backward()
            return loss

        optimizer.step(real)  # type: ignore[arg-type]


def test_an_optimizer_over_another_network_is_refused() -> None:
    model = mlp()
    other = torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="4 parameters of the optimizer are not those of the method's network"):
        fit(pof.Finetune(model), optimizer=other)


def test_a_network_with_nothing_to_train_is_named() -> None:
    model = mlp()
    model.body.requires_grad_(False)  # type: ignore[union-attr,operator]
    with pytest.raises(ValueError, match="nothing to train: no parameter outside of what PoF holds fixed"):
        fit(pof.PoF(model), optimizer=sgd())


def test_a_lazy_network_is_named() -> None:
    model = nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 4)).double()
    with pytest.raises(ValueError, match=r"'0.weight' has no shape yet: run the model once on a mini-batch"):
        fit(pof.Finetune(model))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("average", ["swa", "ema", "lawa"])
def test_hook_based_weight_norm_and_pruning_are_averaged(average: Any) -> None:
    from torch.nn.utils import prune

    model = mlp().float()
    torch.nn.utils.weight_norm(model.body)  # type: ignore[arg-type]
    prune.l1_unstructured(model.fc, "weight", amount=2)  # type: ignore[no-untyped-call]
    data = [(x.float(), y) for x, y in batches(3)]
    model(data[0][0]).sum().backward()
    fit(pof.Averaged(pof.Finetune(model), average), data)
    pof.DELTA(model, ["body"])
