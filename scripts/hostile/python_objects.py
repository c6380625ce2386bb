"""Bad objects in Python: networks, batches, labels, files; beside the numbers of ``python_api``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scripts.hostile.python_api import (
    BAD_X,
    BAD_Y,
    CLASSES,
    ENDLESS,
    INF,
    NAN,
    STD,
    Lying,
    Odd,
    Raising,
    X,
    Y,
    batches,
    evaluate,
    fit,
    net,
    sam,
    sgd,
)
from torch import nn
from torch.nn import functional as F

import pof
from pof import flatness
from pof.data import load_data
from pof.models import build_model, replace_head

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "features and logits": lambda: Odd(lambda z: (z.new_zeros(len(z), 8), 1.01 * z)),
    "temperature": lambda: Odd(lambda z: z / 0.1),
    "returns nothing": lambda: Odd(lambda z: None),
    "returns a list": lambda: Odd(lambda z: z.tolist()),
    "returns class indices": lambda: Odd(lambda z: z.argmax(dim=1)),
    "returns one value": lambda: Odd(lambda z: z.sum()),
    "returns half of the rows": lambda: Odd(lambda z: z[: len(z) // 2]),
    "not a number": lambda: Odd(lambda z: z * NAN),
    "infinite": lambda: Odd(lambda z: z * INF),
    "complex": lambda: Odd(lambda z: z.to(torch.complex64)),
    "another width": lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, CLASSES)),
    "with a bug": Raising,
    "without parameters": lambda: nn.Sequential(nn.Flatten(), nn.ReLU()),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, CLASSES)),
    "two heads": lambda: nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)}),
    "parameters on meta": lambda: net().to("meta"),
    "half precision": lambda: net().half(),
    "two classes only": lambda: net(end=nn.Linear(8, 2)),
    "one logit": lambda: net(end=nn.Linear(8, 1)),
    "frozen": lambda: net().requires_grad_(False),
    "tied": lambda: _tied(),
    "integer": lambda: nn.Embedding(4, 3),
}
"""None of them can be trained on ``batches()`` as a classifier of three classes, or not as it is."""
LEGAL = {
    ("features and logits", "evaluate"),
    ("temperature", "evaluate"),
    ("frozen", "evaluate"),
    ("lazy", "evaluate"),
    ("without parameters", "evaluate"),
}
"""What may go well: evaluation reads the output itself."""
LEGAL |= {("tied", "evaluate"), ("tied", "Finetune"), ("half precision", "Finetune"), ("half precision", "PoF")}
TARGETS: dict[str, Any] = {
    "too large": BAD_Y,
    "negative": Y - 1,
    "floating": Y.float(),
    "texts": ["a"] * 32,
    "rows that do not sum to 1": torch.ones(32, CLASSES),
    "negative probabilities": F.one_hot(Y, CLASSES).float() * 3 - 1,
    "NaN probabilities": torch.full((32, CLASSES), NAN),
    "integers in two columns": torch.zeros(32, 2).long(),
    "several ones": torch.ones(32, CLASSES).long(),
    "another number of rows": Y[:24],
    "complex": Y.to(torch.complex64),
    "scalar": torch.tensor(1),
    "none": None,
    "all ignored but out of range": torch.full((32,), -101),
}
INPUTS: dict[str, Any] = {
    "NaN": BAD_X,
    "infinite": X * INF,
    "integers": X.long(),
    "no rows": X[:0],
    "texts": ["a"] * 32,
    "another width": X[:, :3],
    "float64": X.double(),
    "an array": X.numpy(),
    "none": None,
    "nested": {"a": {"b": X}},
    "another number of rows": X[:20],
}
METHODS: dict[str, Callable[[nn.Module], Any]] = {
    "Finetune": pof.Finetune,
    "PoF": pof.PoF,
    "SharpnessAware": pof.SharpnessAware,
}


def _tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def _trained(name: str, kind: str) -> Callable[[], Any]:
    if kind == "evaluate":
        return lambda: evaluate(NETWORKS[name]())
    return lambda: fit(METHODS[kind](NETWORKS[name]()))


def _file(name: str, content: bytes) -> str:
    Path(name).write_bytes(content)
    return name


def _saved(value: Any, name: str = "x.pt") -> str:
    torch.save(value, name)
    return name


CASES: dict[str, Callable[[], Any]] = {
    **{
        f"{kind} of a network: {name}": _trained(name, kind)
        for name in NETWORKS
        for kind in ("evaluate", "Finetune", "PoF")
        if (name, kind) not in LEGAL
    },
    **{f"fit, targets: {name}": (lambda t=target: fit(loader=[(X, t)])) for name, target in TARGETS.items()},
    **{
        f"PoF, targets: {name}": (lambda t=target: fit(pof.PoF(net()), [(X, t)] * 2))
        for name, target in TARGETS.items()
    },
    **{f"evaluate, targets: {name}": (lambda t=target: evaluate(data=[(X, t)])) for name, target in TARGETS.items()},
    **{f"fit, inputs: {name}": (lambda t=given: fit(loader=[(t, Y)])) for name, given in INPUTS.items()},
    **{f"evaluate, inputs: {name}": (lambda t=given: evaluate(data=[(t, Y)])) for name, given in INPUTS.items()},
    "loader longer than said": lambda: fit(loader=Lying(3)),
    "loader shorter than said": lambda: fit(loader=Lying(5)),
    "loader of negative length": lambda: fit(loader=Lying(-1)),
    "endless loader": lambda: fit(loader=ENDLESS),
    "optimizer of another network": lambda: fit(optimizer=sgd()),
    "optimizer without momentum for msam": lambda: fit(pof.SharpnessAware(net(), kind="msam"), optimizer=sgd()),
    "explodes": lambda: fit(optimizer=lambda p: torch.optim.SGD(p, lr=1e30)),
    "explodes in validation": lambda: fit(optimizer=lambda p: torch.optim.SGD(p, lr=1e30), val_loader=batches()),
    "resume without a folder": lambda: fit(resume=True),
    "checkpoint_dir is a file": lambda: fit(checkpoint_dir=_file("file", b"x")),
    "checkpoint_dir below a file": lambda: fit(checkpoint_dir=_file("file", b"x") + "/state"),
    "checkpoint_dir in use": lambda: [fit(checkpoint_dir="state"), fit(checkpoint_dir="state")],
    "resume with another method": lambda: [
        fit(checkpoint_dir="state"),
        fit(pof.PoF(net()), checkpoint_dir="state", resume=True),
    ],
    "resume with another network": lambda: [
        fit(checkpoint_dir="state"),
        fit(pof.Finetune(net(nn.Linear(8, 8))), checkpoint_dir="state", resume=True),
    ],
    "resume with another length": lambda: [
        fit(checkpoint_dir="state"),
        fit(loader=batches()[:3], checkpoint_dir="state", resume=True),
    ],
    "SAM step without a loss": lambda: sam().step(lambda: None),
    "SAM around an optimizer": lambda: pof.SAM(net().parameters(), sgd(), lr=0.1),
    "MSAM without momentum": lambda: pof.MSAM(net().parameters(), torch.optim.SGD, lr=0.1),
    "SAMON without norms": lambda: pof.SAMON(net().parameters(), torch.optim.SGD, model=net(), lr=0.1),
    "split of no module": lambda: pof.split("net"),
    "find_head of no module": lambda: pof.find_head(None),
    "PoF without a reference": lambda: pof.PoF(net())(X, Y),
    "PoF with half a reference": lambda: pof.PoF(net())(X, Y, X),
    "PoF, weights of other classes": lambda: pof.PoF(net(), class_weights=torch.ones(5))(X, Y, X, Y),
    "Finetune, weights of other classes": lambda: pof.Finetune(net(), class_weights=torch.ones(5))(X, Y),
    "AdaRand of other features": lambda: fit(pof.Regularized(net(), pof.AdaRand(torch.zeros(3, 5), torch.ones(3, 5)))),
    "AdaRand, negative deviations": lambda: pof.AdaRand(torch.zeros(3, 8), -STD),
    "AdaRand, NaN means": lambda: pof.AdaRand(torch.full((3, 8), NAN), STD),
    "BSS, k too large": lambda: fit(pof.Regularized(net(), pof.BSS(k=100))),
    "L2SP of another network": lambda: fit(pof.Regularized(net(), pof.L2SP(net(nn.Linear(8, 8))))),
    "interpolate, share 2": lambda: pof.interpolate(net(), net(), 2),
    "interpolate, share NaN": lambda: pof.interpolate(net(), net(), NAN),
    "interpolate, other networks": lambda: pof.interpolate(net(), net(end=nn.Linear(8, 2)), 0.5),
    "soup of nothing": lambda: pof.soup([]),
    "soup of other networks": lambda: pof.soup([net(), net(nn.Linear(8, 8))]),
    "statistics of nothing": lambda: pof.estimate_statistics(net(nn.BatchNorm1d(8)), []),
    "landscape of nothing": lambda: pof.landscape(net(), []),
    "landscape of NaN": lambda: pof.landscape(net(), batches(BAD_X)),
    "radii of NaN": lambda: pof.radius_distribution(net(), batches(BAD_X)),
    "radii of nothing": lambda: pof.radius_distribution(net(), []),
    "radii of bad labels": lambda: pof.radius_distribution(net(), batches(y=BAD_Y)),
    "eigenvalues of NaN": lambda: pof.top_eigenvalues(net(), F.cross_entropy, batches(BAD_X)),
    "eigenvalues of nothing": lambda: pof.top_eigenvalues(net(), F.cross_entropy, []),
    "eigenvalues of no loss": lambda: pof.top_eigenvalues(net(), lambda a, b: None, batches()),
    "sharpness of NaN": lambda: flatness.sam_sharpness(net(), F.cross_entropy, batches(BAD_X)),
    "features of NaN": lambda: flatness.feature_statistics(net(), batches(BAD_X)),
    "features of nothing": lambda: flatness.feature_statistics(net(), []),
    "temperature of nothing": lambda: flatness.fit_temperature(torch.zeros(0, 3), torch.zeros(0).long()),
    "temperature of NaN": lambda: flatness.fit_temperature(torch.full((4, 3), NAN), Y[:4]),
    "save nothing": lambda: pof.save_model(None, "a.safetensors"),
    "save into a missing folder": lambda: pof.save_model(net(), "none/a.safetensors"),
    "save over a folder": lambda: [Path("d").mkdir(), pof.save_model(net(), "d")],
    "load a text": lambda: pof.load_model(net(), _file("a.safetensors", b"text")),
    "load another network": lambda: [pof.save_model(net(nn.Linear(8, 8)), "a.st"), pof.load_model(net(), "a.st")],
    "load complex numbers": lambda: pof.load_weights(
        net(), _saved({k: v.to(torch.complex64) for k, v in net().state_dict().items()})
    ),
    "load a list": lambda: pof.load_weights(net(), _saved([1, 2])),
    "load a network": lambda: pof.load_weights(net(), _saved(net())),
    "load integers": lambda: pof.load_weights(net(), _saved({k: v.long() for k, v in net().state_dict().items()})),
    "load a folder": lambda: pof.load_weights(net(), "."),
    "load_data of nothing": lambda: load_data(""),
    "model of no classes": lambda: build_model("small-cnn", num_classes=0),
    "model of half a class": lambda: build_model("small-cnn", num_classes=1.5),
    "new head of no classes": lambda: replace_head(net(), 0),
    "new head of one class": lambda: replace_head(net(), -3),
}
