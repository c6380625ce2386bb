"""Bad calls in Python: each must raise an error of pof's own, or say a warning; torch's words count as unexplained."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import pof
from pof import flatness
from pof.data import load_data, split_validation, train_loader

N, CLASSES = 32, 3
NAN, INF = float("nan"), float("inf")


def net(*middle: nn.Module, end: nn.Module | None = None) -> nn.Sequential:
    """Four inputs, three classes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), *middle, nn.ReLU(), end or nn.Linear(8, CLASSES))


def samples(n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels."""
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(0)), torch.arange(n) % CLASSES


def batches(x: Any = None, y: Any = None) -> list[Any]:
    """Four mini-batches, of other inputs or labels if given."""
    own_x, own_y = samples()
    x, y = own_x if x is None else x, own_y if y is None else y
    return list(zip(x.split(8), y.split(8), strict=True))


def fit(method: Any = None, loader: Any = None, **options: Any) -> Any:
    """One epoch, with something bad in it."""
    given = {"epochs": 1, "device": "cpu", **options}
    return pof.fit(method or pof.Finetune(net()), batches() if loader is None else loader, **given)


class Odd(nn.Module):
    """A network whose output is made by a function of the logits."""

    def __init__(self, change: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.change = net(), change

    def forward(self, x: torch.Tensor) -> Any:
        """Change the logits."""
        return self.change(self.inner(x))


class Lying(list[Any]):
    """A loader whose length is another one."""

    def __init__(self, said: int) -> None:
        super().__init__(batches())
        self.said = said

    def __len__(self) -> int:
        return self.said


class Raising(nn.Module):
    """A network with a bug."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Trip over itself."""
        return self.fc(x) * {}["depth"]


def sam(**options: Any) -> Any:
    return pof.SAM(net().parameters(), torch.optim.SGD, **{"lr": 0.1, **options})


def sgd(model: nn.Module | None = None, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD((model or net()).parameters(), **{"lr": 0.1, **options})


def numbers(call: Callable[..., Any], name: str, *values: Any) -> dict[str, Callable[[], Any]]:
    """A call with each of some bad values of an option."""
    return {f"{call.__name__}({name}={_shown(v, n)})": (lambda v=v: call(**{name: v})) for n, v in enumerate(values)}


def _shown(value: Any, number: int) -> str:
    """The value, or where that is long or no plain one its kind and number."""
    plain = isinstance(value, (int, float, str, tuple)) or value is None
    return repr(value) if plain else f"<{type(value).__name__} {number}>"


def method(kind: Any) -> Callable[..., Any]:
    def make(**options: Any) -> Any:
        return kind(net(), **options)

    make.__name__ = kind.__name__
    return make


def regularizer(kind: Any, *arguments: Any) -> Callable[..., Any]:
    def make(**options: Any) -> Any:
        return kind(*arguments, **options)

    make.__name__ = kind.__name__
    return make


def averaged(**options: Any) -> Any:
    return pof.Averaged(pof.Finetune(net()), **{"average": "ema", **options})


def improve(**options: Any) -> Any:
    given = {"budget": 2.0, "candidates": ["sgd"], "lr": 0.1, "device": "cpu", **options}
    model, train, val = (
        given.pop(key, default) for key, default in (("model", net()), ("train", batches()), ("val", batches()))
    )
    result = pof.improve(model, train, val, **given)
    for said in (
        *result.notes,
        *(row.note for row in result.table),
    ):  # of candidates that were dropped, with the reason
        if said and not said.startswith(("handed back", "place", "best in choosing")):
            warnings.warn(said, stacklevel=2)
    return result


def landscape(**options: Any) -> Any:
    return pof.landscape(net(), batches(), **options)


def radii(**options: Any) -> Any:
    return pof.radius_distribution(net(), batches(), **options)


def eigenvalues(**options: Any) -> Any:
    return pof.top_eigenvalues(net(), F.cross_entropy, batches(), **options)


def sharpness(**options: Any) -> Any:
    return flatness.sam_sharpness(net(), F.cross_entropy, batches(), **options)


def m_sharpness(**options: Any) -> Any:
    return flatness.m_sharpness(net(), F.cross_entropy, batches(), **{"m": 4, **options})


def line_search(**options: Any) -> Any:
    given = {
        "logits": torch.randn(4, 3),
        "response": torch.randn(4, 3),
        "targets": torch.tensor([0, 1, 2, 0]),
        **options,
    }
    return pof.line_search(given.pop("logits"), given.pop("response"), given.pop("targets"), **given)


def head_gradient(**options: Any) -> Any:
    given = {
        "features": torch.randn(4, 5),
        "targets": torch.tensor([0, 1, 2, 0]),
        "weight": torch.randn(3, 5),
        "bias": None,
    }
    return pof.head_gradient(**{**given, **options})


def validation(**options: Any) -> Any:
    given = {"labels": samples()[1], "size": 0.25, "seed": 0, **options}
    return split_validation(given.pop("labels"), given.pop("size"), **given)


def loader(**options: Any) -> Any:
    return train_loader(load_data("digits"), **{"batch_size": 20, "seed": 0, **options})


def schedule(**options: Any) -> Any:
    return pof.Schedule(**options)


def soup(**options: Any) -> Any:
    return pof.soup([net(), net()], **options)


def evaluate(model: nn.Module | None = None, data: Any = None, **options: Any) -> Any:
    return pof.evaluate(model or net(), batches() if data is None else data, **options)


X, Y = samples()
BAD_X, BAD_Y = X.clone(), Y.clone()
BAD_X[3, 2] = NAN
BAD_Y[5] = CLASSES
ENDLESS = (batch for batch in itertools.cycle(batches()))
MEAN, STD = torch.zeros(CLASSES, 8), torch.ones(CLASSES, 8)

CASES: dict[str, Callable[[], Any]] = {
    **numbers(fit, "epochs", 0, -1, 2.5, NAN, INF, "3", None, True),
    **numbers(fit, "accumulation", 0, -1, 1.5, "2"),
    **numbers(fit, "checkpoint_every", 0, NAN, -3, 1.5),
    **numbers(fit, "clip_norm", 0, -1, NAN, "1"),
    **numbers(fit, "precision", "fp8", 16, None),
    **numbers(fit, "device", "toaster", "cuda:99", 3.5),
    **numbers(fit, "schedule", "cosine", None),
    **numbers(fit, "optimizer", "sgd", None, lambda p: None),
    **numbers(fit, "val_loader", [], 3, [(X, Y, Y)], [(BAD_X, Y)], [(X, BAD_Y)]),
    **numbers(fit, "log", 3),
    **numbers(fit, "loader", [], 3, None or iter(batches()), [None], [(X,)], [X], [(X, Y, X)], [{"x": X}], "abc"),
    **numbers(fit, "method", net(), "pof", 3),
    **numbers(method(pof.PoF), "gamma", -1, NAN, INF, "2"),
    **numbers(method(pof.PoF), "sampling", "normal", None),
    **numbers(method(pof.PoF), "reference_size", 0, -1, 1.5),
    **numbers(method(pof.PoF), "seed", -1, 1.5, 2**70),
    **numbers(method(pof.PoF), "label_smoothing", -0.1, 1, NAN),
    **numbers(method(pof.PoF), "head", "none", "0.weight", 3, "1"),
    **numbers(method(pof.PoF), "loss", "mean", 3),
    **numbers(method(pof.HeadAscent), "level", -0.1, 1, NAN, "a"),
    **numbers(
        method(pof.Finetune),
        "class_weights",
        torch.zeros(3),
        torch.tensor([1.0, NAN, 1]),
        torch.ones(3, 1),
        -torch.ones(3),
        "balanced",
    ),
    **numbers(method(pof.SharpnessAware), "rho", -1, NAN, INF, "big"),
    **numbers(method(pof.SharpnessAware), "ascent_share", 0, -1, 1.5, NAN),
    **numbers(method(pof.SharpnessAware), "last_epochs", 0, 1.5, -1),
    **numbers(method(pof.SharpnessAware), "kind", "gsam", None),
    **numbers(averaged, "decay", 1, -0.1, NAN),
    **numbers(averaged, "start", 1, NAN),
    **numbers(averaged, "window", 0, 1.5),
    **numbers(averaged, "average", "mean"),
    **numbers(sam, "rho", -1, NAN, INF, "0.05"),
    **numbers(regularizer(pof.FNP), "strength", -1, NAN, INF),
    **numbers(regularizer(pof.BSS), "k", 0, 1.5),
    **numbers(regularizer(pof.RandReg), "prior", "flat", "class"),
    **numbers(regularizer(pof.AdaRand, MEAN, STD), "alpha", -1, 2, NAN),
    **numbers(regularizer(pof.AdaRand, MEAN, STD), "lr", -1, NAN),
    **numbers(regularizer(pof.L2SP, net()), "strength", -1, NAN),
    **numbers(regularizer(pof.DELTA, net()), "layers", [], ["nothing"]),
    **numbers(schedule, "kind", "linear"),
    **numbers(schedule, "warmup_steps", -1, NAN, 1.5),
    **numbers(schedule, "milestones", (2.0,), (NAN,)),
    **numbers(schedule, "decay", 0, NAN, 2),
    **numbers(improve, "budget", 0, NAN, INF, "many"),
    **numbers(
        improve, "candidates", ["magic"], [], {"x": {"method": "none"}}, {"x": {"method": "finetune", "lr": -1}}, 3
    ),
    **numbers(improve, "lr", 0, -1, NAN, "fast"),
    **numbers(improve, "seed", 1.5, "x"),
    **numbers(improve, "val", [], [(X[:1], Y[:1])], [(BAD_X, Y)], [(X, BAD_Y)], iter(batches())),
    **numbers(improve, "train", [], iter(batches()), [(BAD_X, Y)], [(X, BAD_Y)]),
    **numbers(improve, "head", "nothing"),
    **numbers(landscape, "points", 0, -1, 1.5, 1),
    **numbers(landscape, "reach", -1, NAN, INF, 0),
    **numbers(landscape, "batches", 0, -1, 1.5),
    **numbers(radii, "direction", "sideways"),
    **numbers(radii, "batches", 0, -1),
    **numbers(radii, "class_weights", torch.zeros(3), torch.ones(2)),
    **numbers(eigenvalues, "k", 0, -1, 10**6, 1.5),
    **numbers(eigenvalues, "tolerance", 0, -1, NAN),
    **numbers(eigenvalues, "parameters", "body", "nothing"),
    **numbers(sharpness, "rho", -1, NAN, INF),
    **numbers(m_sharpness, "m", 0, -1, 1.5),
    **numbers(line_search, "logits", torch.randn(4), torch.randn(5, 3)),
    **numbers(line_search, "targets", torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1]), torch.tensor([0.5, 1, 0, 2])),
    **numbers(line_search, "label_smoothing", -1, 2, NAN),
    **numbers(head_gradient, "weight", torch.randn(3, 4), torch.randn(5)),
    **numbers(head_gradient, "bias", torch.zeros(4)),
    **numbers(head_gradient, "targets", torch.tensor([-1, 0, 1, 2]), torch.tensor([0, 1, 2, 3])),
    **numbers(validation, "size", 0, -1, NAN, 1.5, 100),
    **numbers(validation, "labels", torch.tensor([])),
    **numbers(loader, "batch_size", 0, -1, 1.5, 10**9),
    **numbers(loader, "rank", 1, -1),
    **numbers(loader, "indices", torch.tensor([10**6]), torch.tensor([]), torch.tensor([0.5])),
    **numbers(soup, "weights", [1.0], [-1.0, 2.0], [0.0, 0.0], [NAN, 1.0]),
}
