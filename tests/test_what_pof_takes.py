"""Each row of ``docs/what-pof-takes.md``: what is supported works without a warning, what is refused says why."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import IterableDataset, TensorDataset

import pof
from pof.data import load_data, train_loader
from pof.models import replace_head
from tests.cases import batch, batches, mlp

PAGE = Path(__file__).resolve().parents[1] / "docs" / "what-pof-takes.md"
X, Y = batch(16)
N, CLASSES = Y.shape[0], 4


def rows() -> dict[str, str]:
    """What -> "supported" or "refused: ..."."""
    found = re.findall(
        r"^\| (?!---)(.+?) \| (supported|refused: .+?) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(dict(found)) == len(found), "a row is there twice"
    return dict(found)


def fit(method: Any = None, loader: Any = None, **options: Any) -> pof.FitResult:
    given = {"epochs": 1, "device": "cpu", **options}
    return pof.fit(method or pof.Finetune(mlp()), [(X, Y)] * 2 if loader is None else loader, **given)


class Around(nn.Module):
    """A network whose output is changed."""

    def __init__(self, change: Callable[..., Any]) -> None:
        super().__init__()
        self.body, self.fc, self.change = nn.Linear(5, 6).double(), nn.Linear(6, CLASSES).double(), change

    def forward(self, x: Tensor) -> Any:
        features = self.body(x).tanh()
        return self.change(features, self.fc(features))


class Two(nn.Module):
    """Of its layers either could be the head; ``times`` it runs the first."""

    def __init__(self, times: int = 0) -> None:
        super().__init__()
        self.left, self.right, self.times = nn.Linear(5, 4).double(), nn.Linear(5, 4).double(), times

    def forward(self, *inputs: Tensor) -> Tensor:
        total: Tensor = self.left(inputs[0]) + (self.left if self.times else self.right)(inputs[-1])
        return total


class Pairs(nn.Module):
    """Takes two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, a: Tensor, b: Tensor) -> Any:
        return self.inner(a + b)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x[:, None].expand(-1, 3, -1)).mean(dim=1)  # type: ignore[no-any-return]


class Adapted(nn.Module):
    """As peft does it."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer, self.lora = nn.Linear(6, CLASSES).double(), nn.Linear(6, CLASSES, bias=False).double()

    def forward(self, x: Tensor) -> Any:
        return self.base_layer(x) + self.lora(x)


class Noted(nn.Linear):
    """Its extra state is no tensor."""

    def get_extra_state(self) -> Any:
        return SimpleNamespace(note="x")

    def set_extra_state(self, state: Any) -> None:
        """Nothing is needed."""


class Free(torch.optim.SGD):
    """Has the two modes of schedule-free optimizers."""

    def train(self) -> None:
        self.mode = "train"

    def eval(self) -> None:
        self.mode = "eval"


class Named(NamedTuple):
    inputs: Tensor
    targets: Tensor


@dataclass
class Data:
    inputs: Tensor
    targets: Tensor


class Recycling:
    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Any]:
        memory = X.clone(), Y.clone()
        for x, y in batches(3):
            memory[0].copy_(x)
            memory[1].copy_(y)
            yield memory


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(batches(2))


def stream() -> Any:
    return Stream(), Stream()


def pairs() -> Any:
    data = TensorDataset(torch.rand(12, 1, 8, 8), torch.arange(12) % 3)
    return data, data


def frozen(*, head: bool) -> nn.Sequential:
    model = mlp().requires_grad_(False)
    model.fc.requires_grad_(head)
    return model


def with_frozen_norm() -> nn.Module:
    model = mlp(norm=True)
    model.norm.eval()
    return model


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5)).double()
    model[2].weight = model[0].weight
    return model


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (5, 1, 1)), nn.Conv2d(5, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten()
    ).double()


def ended_by(end: nn.Module) -> nn.Sequential:
    model = mlp()
    model.fc = end.double()
    return model


def binary(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits[:, 0], targets.double())


def multilabel(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets)


def all_of(*calls: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: [call() for call in calls]


def labels(*targets: Any) -> Callable[[], Any]:
    return all_of(*(lambda t=t: fit(loader=[(X, t)]) for t in targets))


def batch_of(*given: Any) -> Callable[[], Any]:
    return all_of(*(lambda g=g: fit(loader=[g]) for g in given))


def saved(values: Any, name: str = "w.pt") -> str:
    torch.save(values, name)
    return name


def loaded(change: Callable[[Tensor], Tensor], model: nn.Module | None = None) -> Callable[[], Any]:
    source = model or mlp()
    return lambda: pof.load_weights(mlp(), saved({k: change(v) for k, v in source.state_dict().items()}))


def safetensors() -> None:
    pof.save_model(mlp(), "w.safetensors")
    pof.load_weights(mlp(), "w.safetensors")


def images(*places: str, content: bytes | None = None) -> Callable[[], Any]:
    """A folder with an image in each place, the first one with another content; all are read."""

    def make() -> None:
        from PIL import Image

        for place in places:
            for number in range(5):
                path = Path("images", place, f"{number}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8)).save(path)
        if content is not None:
            Path("images", places[0], "0.png").write_bytes(content)
        list(train_loader(load_data("images", image_size=8), batch_size=2, seed=0))

    return make


def with_fifo() -> None:
    Path("images/a").mkdir(parents=True)
    os.mkfifo("images/a/fifo.png")
    images("b", "a")()


def factory(name: str) -> Callable[[], Any]:
    return lambda: load_data(f"{__name__}:{name}")


def destroyed() -> None:
    torch.manual_seed(0)
    with pytest.warns(pof.DivergenceWarning, match=r"put back\. Remedy: lower the learning rate"):
        result = fit(optimizer=lambda p: torch.optim.SGD(p, lr=1e308))
    assert result.stopped == "diverged"


def evaluated_softmax() -> None:
    result = fit(pof.Finetune(nn.Sequential(*mlp(), nn.Softmax(1))))
    assert result.stopped is None


class WithAuxiliary(nn.Module):
    """Returns what GoogLeNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.aux = mlp(), nn.Linear(5, CLASSES).double()

    def forward(self, x: Tensor) -> Any:
        return Outputs(self.inner(x), self.aux(x)) if self.training else self.inner(x)


class Outputs(NamedTuple):
    logits: Tensor
    aux_logits: Tensor


def auxiliary() -> None:
    model = WithAuxiliary()
    with pytest.warns(UserWarning, match=r"auxiliary outputs of the network \(aux_logits\) are not trained") as told:
        fit(pof.PoF(model, "inner.fc"))
    assert len(told) == 1
    assert model.aux.weight.grad is None


def adarand() -> Any:
    return pof.AdaRand.from_loader(pof.split(mlp()), [(X, Y)], num_classes=CLASSES)


LOSS_TAKERS = (pof.Finetune, pof.PoF, pof.HeadAscent, pof.SharpnessAware)
SOFT = torch.softmax(torch.randn(N, CLASSES, dtype=torch.float64), dim=1)
ONES = torch.ones(N, CLASSES)
LBFGS: Any = torch.optim.LBFGS
CASES: dict[str, Callable[[], Any]] = {
    "any `nn.Module` that returns logits (N, C)": fit,
    "returns `(features, logits)`": lambda: fit(pof.PoF(Around(lambda f, z: (f, z)))),
    "returns an object or mapping with `logits`": all_of(
        lambda: fit(pof.PoF(Around(lambda f, z: {"logits": z, "features": f}))),
        lambda: fit(pof.PoF(Around(lambda f, z: SimpleNamespace(logits=z)))),
    ),
    "ends in softmax": evaluated_softmax,
    'ends in a sigmoid, with `loss="bce"`': lambda: fit(
        pof.PoF(nn.Sequential(*mlp(), nn.Sigmoid()), loss="bce"), [(X, ONES)] * 2
    ),
    "ends in a sigmoid, with the cross-entropy": lambda: fit(pof.PoF(nn.Sequential(*mlp(), nn.Sigmoid()))),
    "auxiliary logits in training (GoogLeNet, Inception v3)": lambda: auxiliary(),
    "wrapped by `torch.compile`": lambda: fit(pof.Finetune(torch.compile(mlp(), backend="eager"))),
    "weights in bfloat16": lambda: fit(pof.Finetune(mlp().bfloat16()), [(X.bfloat16(), Y)]),
    "batch norms frozen by `eval()`": lambda: fit(pof.PoF(with_frozen_norm())),
    "dropout, and statistics of batch norms": lambda: fit(pof.PoF(mlp(norm=True, dropout=0.1))),
    "frozen backbone, `Finetune`": lambda: fit(pof.Finetune(frozen(head=True))),
    "frozen backbone, `PoF`": lambda: fit(pof.PoF(frozen(head=True))),
    "nothing requires a gradient": lambda: fit(pof.Finetune(frozen(head=False))),
    "a temperature or scale after the head": lambda: fit(pof.PoF(Around(lambda f, z: z / 0.1))),
    "lazy layers that have not run yet": lambda: fit(pof.Finetune(nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 4)))),
    "on the meta device": lambda: fit(pof.Finetune(mlp().to("meta"))),
    'weights in float16 with `precision="fp16"`': lambda: fit(pof.Finetune(mlp().half()), precision="fp16"),
    "head tied to another layer": lambda: fit(pof.Finetune(tied())),
    "extra state that is no tensor, with `checkpoint_dir`": lambda: fit(
        pof.Finetune(ended_by(Noted(6, CLASSES))), checkpoint_dir="state"
    ),
    "a network in the place of a method": lambda: fit(mlp()),
    "`nn.Linear`, with or without bias": all_of(lambda: fit(pof.PoF(mlp())), lambda: fit(pof.PoF(mlp(bias=False)))),
    "1x1 convolution on a 1x1 map": lambda: fit(pof.PoF(convolutional())),
    "a module with parameters that you name": lambda: fit(
        pof.PoF(ended_by(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, CLASSES))), "fc")
    ),
    "an adapter around the last layer (`base_layer`)": lambda: fit(pof.PoF(ended_by(Adapted()))),
    "weight normalisation": lambda: fit(pof.PoF(ended_by(weight_norm(nn.Linear(6, CLASSES))))),
    "one logit, with a loss of your own": lambda: fit(pof.PoF(mlp(1), loss=binary), [(X, Y % 2)]),
    "two that could be meant": lambda: pof.find_head(Two()),
    "none": lambda: pof.find_head(nn.Sequential(nn.Flatten(), nn.LayerNorm(5))),
    "a name that is not there": lambda: pof.PoF(mlp(), "nothing"),
    "applied to tokens or map positions": lambda: fit(pof.Finetune(Tokens())),
    "runs twice in a forward": lambda: fit(pof.PoF(Two(2), "left")),
    "a new head in the place of one that is not linear": lambda: replace_head(
        ended_by(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4))), 3, "fc"
    ),
    "`(inputs, targets)`, also as a list": batch_of((X, Y), [X, Y]),
    "mapping with `labels`, `label`, `targets` or `target`": batch_of(
        *({"input": X, key: Y} for key in ("labels", "label", "targets", "target"))
    ),
    "named tuple or dataclass": batch_of(Named(X, Y), Data(X, Y)),
    "several inputs `((a, b), targets)`": lambda: fit(pof.PoF(Pairs()), [((X, X), Y)] * 2),
    "mini-batches of different sizes": lambda: fit(loader=batches(4, last=9)),
    "`None`": batch_of(None),
    "three items": batch_of((X, Y, X)),
    "mapping without targets": batch_of({"input": X}),
    "inputs and targets of different length": batch_of((X, Y[:9])),
    "one sample, with batch norm": lambda: fit(pof.Finetune(mlp(norm=True)), [(X, Y), (X[:1], Y[:1])]),
    "loader without a length": lambda: fit(loader=iter(batches())),
    "loader without a batch": lambda: fit(loader=[]),
    "loader that writes into the memory of a mini-batch before": lambda: fit(pof.PoF(mlp()), Recycling()),
    "class indices of any integer type, bool": labels(Y.byte(), Y.int(), Y.short(), Y > 1),
    "column (N, 1)": labels(Y[:, None]),
    "one-hot rows of integers": labels(F.one_hot(Y, CLASSES)),
    "probabilities (N, C)": labels(SOFT),
    "array or list": labels(Y.numpy(), Y.tolist()),
    "-100, to be left out": labels(torch.where(Y == 1, -100, Y)),
    "out of range": labels(Y + 1),
    "floating-point indices": labels(Y.double()),
    "floating-point rows that do not sum to 1": labels(ONES.double()),
    "integer rows with several ones": labels(ONES.long()),
    "texts": labels(["a"] * N),
    "folder of class folders": images("a", "b"),
    "Dataset with a length, from a factory": factory("pairs"),
    "one class folder only": images("a"),
    "images without class folders": images("."),
    "damaged image": images("a", "b", content=b"no image"),
    "FIFO in the place of an image": with_fifo,
    "`IterableDataset` from a factory": factory("stream"),
    "weights: `.safetensors`": safetensors,
    "weights: state_dict of `torch.save`": loaded(lambda v: v),
    "weights: a whole network of `torch.save`": lambda: pof.load_weights(mlp(), saved(mlp())),
    "weights of another architecture": loaded(lambda v: v, mlp(7)),
    "weights of integers (quantised)": loaded(Tensor.long),
    "complex weights": loaded(lambda v: v.to(torch.complex128)),
    "cross-entropy, with label smoothing": lambda: fit(pof.PoF(mlp(), label_smoothing=0.1)),
    "class weights as tensor, list or integers": all_of(
        *(lambda w=w: fit(pof.Finetune(mlp(), class_weights=w)) for w in (torch.ones(4), [0.5, 1, 2, 1], [1, 2, 3, 4]))
    ),
    "`bce`: one logit, or several labels per sample": all_of(
        lambda: fit(pof.PoF(mlp(1), loss="bce"), [(X, Y % 2)] * 2), lambda: fit(pof.PoF(mlp(), loss="bce"), [(X, ONES)])
    ),
    "`mse`: numbers": lambda: fit(pof.HeadAscent(mlp(1), loss="mse"), [(X, X[:, 0])]),
    "`ordinal`: ordered classes": lambda: fit(pof.SharpnessAware(mlp(3), loss="ordinal")),
    "a function of outputs and targets, with every method": all_of(
        *(lambda m=m: fit(m(mlp(), loss=multilabel), [(X, ONES.double())] * 2) for m in LOSS_TAKERS),
        lambda: fit(pof.Regularized(mlp(), pof.FNP(), loss=multilabel), [(X, ONES.double())]),
    ),
    "one value per sample, (N,)": lambda: fit(pof.PoF(mlp(), loss=nn.CrossEntropyLoss(reduction="none"))),
    "another name": lambda: pof.PoF(mlp(), loss="hinge"),
    "one that sums": lambda: pof.Finetune(mlp(), loss=nn.MSELoss(reduction="sum")),
    "one that broadcasts targets (N,) against outputs (N, 1)": lambda: fit(
        pof.Finetune(mlp(1), loss=lambda z, t: (z - t).abs().mean()), [(X, Y.double())]
    ),
    "`bce` with one class out of several": lambda: fit(pof.Finetune(mlp(), loss="bce")),
    "AdaRand with targets that are no classes": lambda: fit(
        pof.Regularized(mlp(), adarand(), loss="bce"), [(X, ONES.double())]
    ),
    "a loss of your own with label smoothing": lambda: pof.PoF(mlp(), loss=multilabel, label_smoothing=0.1),
    "class weights that are negative, NaN or all 0": lambda: pof.Finetune(mlp(), class_weights=[1.0, -1.0, 1.0, 1.0]),
    "class weights of another number of classes": lambda: fit(pof.Finetune(mlp(), class_weights=torch.ones(5))),
    "label smoothing of 1": lambda: pof.Finetune(mlp(), label_smoothing=1.0),
    "a function of the parameters": lambda: fit(optimizer=torch.optim.AdamW),
    "one that is made already": lambda: _made(),
    "SAM and its relatives (`SharpnessAware`)": lambda: fit(pof.SharpnessAware(mlp())),
    "one with `train()` and `eval()` (schedule-free)": lambda: fit(optimizer=lambda p: Free(p, lr=0.1)),
    "of another network": lambda: fit(optimizer=torch.optim.SGD(mlp().parameters(), lr=0.1)),
    "momentum of 0 around `MSAM`": lambda: pof.MSAM(mlp().parameters(), torch.optim.SGD, lr=0.1),
    "`LBFGS`": lambda: fit(optimizer=LBFGS),
    "a learning rate that destroys the network": destroyed,
}  # fmt: skip


def _made() -> pof.FitResult:
    model = mlp()
    return fit(pof.Finetune(model), optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


def test_every_row_has_a_case_and_every_case_a_row() -> None:
    assert list(CASES) == list(rows())


@pytest.mark.parametrize("what", rows())
def test_row(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result, _, sentence = rows()[what].partition(": ")
    if result == "supported":
        CASES[what]()
        return
    with pytest.raises(ValueError, match=re.escape(sentence)):
        CASES[what]()
