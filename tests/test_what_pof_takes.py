"""Each row of ``docs/what-pof-takes.md``: what is supported works without a warning, what is refused says why."""

from __future__ import annotations

import io
import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import IterableDataset, TensorDataset

import pof
from pof.app.cards import card_of, load_network
from pof.app.inherit import check_split
from pof.app.options import DataOptions, ModelOptions, TrainOptions, check_numbers
from pof.app.run_folder import write_yaml
from pof.data import eval_loader, load_data, train_loader
from pof.data.mixing import Mixing, class_weights
from pof.models import build_model, preprocessing_of, replace_head
from pof.weights import save_model
from tests.cases import batch, batches, mlp
from tests.models import folders

PAGE = Path(__file__).resolve().parents[1] / "docs" / "what-pof-takes.md"
X, Y = batch(16)
N, CLASSES = Y.shape[0], 4
PIXELS = numpy.random.default_rng(0).integers(0, 256, (N, 8, 8, 3), dtype=numpy.uint8)


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


DIGITS: Any = load_data("digits")


def zoomed(images: Tensor) -> Tensor:
    return images.repeat_interleave(2, -1).repeat_interleave(2, -2)


def of_a_run() -> str:
    """The folder of a run of a small CNN on digits, as far as it is read."""
    folder, model = Path("run"), ModelOptions("small-cnn")
    folder.mkdir()
    save_model(
        load_network(model, DIGITS), folder / "model.safetensors", metadata=card_of(model, DIGITS, "fc").metadata()
    )
    write_yaml(folder / "config.yaml", {"model": vars(model), "data": vars(DataOptions("digits"))})
    return str(folder)


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
    classes = tuple("abcd")

    def __iter__(self) -> Iterator[Any]:
        return zip(*batch(16), strict=True)


def stream() -> Any:
    return Stream(), TensorDataset(*batch(16))


def pairs() -> Any:
    data = TensorDataset(torch.rand(12, 1, 8, 8), torch.arange(12) % 3)
    return data, data


def frozen(*, head: bool) -> nn.Sequential:
    model = mlp().requires_grad_(False)
    model.fc.requires_grad_(head)
    return model


def with_nan() -> nn.Module:
    model = mlp()
    nn.init.constant_(model.fc.bias, float("nan"))
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


def streamed(steps: int | None = None) -> Callable[[], Any]:
    return lambda: list(train_loader(load_data(f"{__name__}:stream"), batch_size=4, seed=0, steps=steps))


def streamed_labels() -> Any:
    return load_data(f"{__name__}:stream").train_labels


def read(data: str, **options: Any) -> None:
    """Read all mini-batches of training and testing."""
    found = load_data(data)
    list(train_loader(found, batch_size=2, seed=0, **options))
    list(eval_loader(found, "test", batch_size=2))


def index(*lines: str) -> Callable[[], Any]:
    def make() -> None:
        images("a", "b")()
        Path("index.csv").write_text("\n".join(["path,label", *lines, ""]))
        read("index.csv")

    return make


def parquet_index() -> None:
    import pyarrow
    from pyarrow import parquet

    images("a", "b")()
    paths = [f"images/{label}/{number}.png" for label in "ab" for number in range(5)]
    parquet.write_table(pyarrow.table({"path": paths, "label": [path[7] for path in paths]}), "index.parquet")
    read("index.parquet")


def arrays(inputs: Any, labels: Any = None) -> Callable[[], Any]:
    def make() -> None:
        numpy.savez("a.npz", x_train=inputs, y_train=(Y.numpy() if labels is None else labels)[: len(inputs)])
        read("a.npz")

    return make


def npy_folder() -> None:
    Path("arrays").mkdir()
    numpy.save("arrays/x_train.npy", X.numpy())
    numpy.save("arrays/y_train.npy", Y.numpy())
    read("arrays")


def bomb() -> None:
    header = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (10**9, 1000, 1000)}
    numpy.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile("a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(10**6))
        archive.writestr("y.npy", b"")
    read("a.npz")


def hub(*, parquet: bool = False, text: list[str] | None = None) -> Callable[[], Any]:
    def make() -> None:
        import datasets

        if text is not None:
            datasets.Dataset.from_dict({"text": text, "label": [0, 1] * 4}).save_to_disk("set")
        images("a", "b")()
        stored = [{"bytes": Path(f"images/a/{number}.png").read_bytes(), "path": None} for number in range(4)] * 2
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})
        table = datasets.Dataset.from_dict({"image": stored, "label": [0, 1] * 4}, features=features)
        if parquet:
            Path("set").mkdir()
            datasets.config.HF_DATASETS_CACHE = Path("cache")
            table.to_parquet("set/train-00000-of-00001.parquet")
        elif text is None:
            table.save_to_disk("set")
        read("hf:set")

    return make


def shards(*ends: str) -> Callable[[], Any]:
    def make() -> None:
        images("a", "b")()
        with tarfile.open("a-0.tar", "w") as archive:
            for number in range(8):
                Path(f"{number}.cls").write_text(str(number % 2))
                archive.add(f"images/a/{number % 5}.png", f"{number}{ends[0]}")
                for end in ends[1:]:
                    archive.add(f"{number}{end}")
        read("a-{0..0}.tar")

    return make


def mixed(inputs: Any, **alphas: float) -> Callable[[], Any]:
    def make() -> None:
        numpy.savez("a.npz", x=inputs, y=Y.numpy())
        augment: Any = "randaugment" if inputs.ndim == 4 else "default"
        list(train_loader(load_data("a.npz", augment=augment), batch_size=4, seed=0, mixing=Mixing(CLASSES, **alphas)))

    return make


def balanced() -> None:
    numpy.savez("a.npz", x=X.numpy(), y=Y.numpy())
    data = load_data("a.npz")
    list(train_loader(data, batch_size=4, seed=0, balanced=True))
    fit(pof.Finetune(mlp(), class_weights=class_weights(data.train_labels, CLASSES)))


def few() -> None:
    numpy.savez("a.npz", x=X.numpy(), y=Y.numpy())
    with pytest.warns(UserWarning, match="batch_size 100 is larger than the training data"):
        train_loader(load_data("a.npz"), batch_size=100, seed=0)


def of_transformers(save: Callable[[Path], Any], classes: tuple[str, ...] = ()) -> None:
    save(Path("network"))
    build_model("hf:network", num_classes=3, weights="pretrained", classes=classes)


def processed(**options: Any) -> None:
    folders.vit(Path("network"), **options)
    preprocessing_of("hf:network")


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
    with pytest.warns(UserWarning, match=r"other outputs of the network \(aux_logits\) are not trained") as told:
        fit(pof.PoF(model, "inner.fc"))
    assert len(told) == 1
    assert model.aux.weight.grad is None


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other = mlp(), nn.Linear(6, 2).double()

    def forward(self, x: Tensor) -> Any:
        return self.inner(x), self.other(self.inner.body(x)), x


def two_heads() -> None:
    for kind in LOSS_TAKERS:
        with pytest.warns(UserWarning, match=r"other outputs of the network \(1\) are not trained") as told:
            fit(kind(TwoHeads(), "inner.fc"))
        assert len(told) == 1


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
    "several heads: one is trained, named by `head`": lambda: two_heads(),
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
    "NaN or infinity in its weights": lambda: fit(pof.Finetune(with_nan())),
    "built in `torch.inference_mode`": lambda: fit(pof.Finetune(torch.inference_mode()(mlp)())),
    'weights in float16 with `precision="fp16"`': lambda: fit(pof.Finetune(mlp().half()), precision="fp16"),
    "head tied to another layer": lambda: fit(pof.Finetune(tied())),
    "extra state that is no tensor, with `checkpoint_dir`": lambda: fit(
        pof.Finetune(ended_by(Noted(6, CLASSES))), checkpoint_dir="state"
    ),
    "a network instead of a method": lambda: fit(mlp()),
    "`timm:NAME`, `torchvision:NAME`, and names that one of them knows": all_of(
        *(lambda n=n: build_model(n, num_classes=3) for n in ("timm:test_resnet", "torchvision:resnet18", "test_vit"))
    ),
    "`hf:FOLDER` of Transformers, of images": lambda: of_transformers(folders.vit),
    "`hf:FOLDER` of Transformers, of texts": lambda: of_transformers(folders.bert),
    "`hf:FOLDER` of CLIP, with names of classes": lambda: of_transformers(folders.clip, folders.NAMES),
    "a name that timm and torchvision know": lambda: build_model("resnet50", num_classes=3),
    "a name that nobody knows": lambda: build_model("resnett50", num_classes=3),
    "arguments that the network does not know": lambda: build_model("small-cnn", num_classes=3, args={"x": 1}),
    "an image processor that does more than resize, crop and normalise": lambda: processed(do_rescale=False),
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
    "a new head instead of one that is not linear": lambda: replace_head(
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
    "inputs that are sparse or nested tensors, of `torch.inference_mode`, or with a graph": all_of(
        lambda: fit(pof.PoF(mlp()), [(X.to_sparse(), Y)] * 2),
        lambda: fit(pof.PoF(mlp()), [(torch.inference_mode()(X.clone)(), Y)] * 2),
        lambda: fit(pof.PoF(mlp()), [(X.clone().requires_grad_(), Y)] * 2),
    ),
    "validation loader that can be read once": lambda: fit(val_loader=iter([(X, Y)])),
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
    "`IterableDataset` from a factory, with `--steps_per_epoch`": streamed(steps=2),
    "CSV index": index("images/a/0.png,a", "images/a/1.png,a", "images/b/0.png,b", "images/b/1.png,b"),
    "Parquet index": parquet_index,
    "`.npz` of images": arrays(PIXELS),
    "`.npz` of feature vectors": arrays(X.numpy()),
    "folder of `.npy`": npy_folder,
    "folder of Hugging Face `datasets` (`save_to_disk`)": hub(),
    "folder of Parquet shards with images": hub(parquet=True),
    "WebDataset shards": shards(".png", ".cls"),
    "mixup, CutMix and RandAugment": mixed(PIXELS, mixup=0.2, cutmix=1.0),
    "classes balanced by weights or by the sampler": balanced,
    "`batch_size` above the number of samples": few,
    "one class folder only": images("a"),
    "images without class folders": images("."),
    "damaged image": images("a", "b", content=b"no image"),
    "FIFO instead of an image": with_fifo,
    "`IterableDataset` from a factory, without `--steps_per_epoch`": streamed(),
    "a share held out of a stream": lambda: streamed_labels(),
    "index without a row": index(),
    "index with a label missing": index("images/a/0.png,"),
    "index with images missing": index("images/c/0.png,a"),
    "image with two labels": index("images/a/0.png,a", "images/a/0.png,b"),
    "array of objects": arrays(numpy.array([{}, []], dtype=object)),
    "array larger than memory, by its header": bomb,
    "labels of another length": arrays(X.numpy(), Y.numpy()[:9]),
    "`datasets` of texts": hub(text=["a"] * 8),
    "shard with a label missing": shards(".png"),
    "mixup of feature vectors": mixed(X.numpy(), mixup=0.2),
    "mixup with AdaRand": lambda: check_numbers(TrainOptions("adarand", mixup=0.2)),
    "balanced weights and sampler at once": lambda: check_numbers(
        TrainOptions("finetune", class_weights="balanced", sampler="balanced")
    ),
    "weights: `.safetensors`": safetensors,
    "weights: a run folder": lambda: load_network(ModelOptions("small-cnn", of_a_run()), DIGITS),
    "weights: a run folder, for images of another size": lambda: load_network(
        ModelOptions("small-cnn", of_a_run()), replace(DIGITS, train_images=zoomed(DIGITS.train_images))
    ),
    "weights: a run folder, for classes in another order": lambda: load_network(
        ModelOptions("small-cnn", of_a_run()), replace(DIGITS, classes=DIGITS.classes[::-1])
    ),
    "weights: a run folder, for another validation split": lambda: check_split(
        ModelOptions("small-cnn", of_a_run()), DataOptions("digits", split_seed=1)
    ),
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
    "`maximize=True`": lambda: fit(optimizer=lambda p: torch.optim.SGD(p, lr=0.1, maximize=True)),
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
