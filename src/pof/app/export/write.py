"""A network as a file or folder for other programs, checked by running it there.

Whatever is written is loaded again, and its logits are compared with the network's before it takes its place.  Formats
of one network alone are torch.onnx's, torch.export's and safetensors; ``hf`` and ``timm`` are folders as these
libraries write them themselves.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from pof._support.files import PARTIAL, naming
from pof._support.random import seeded
from pof._support.text import reason
from pof.app.export.folders import ExportError, of_transformers, to_hf, to_timm
from pof.head.reading import Reading
from pof.models.card import NetworkCard
from pof.weights import load_model, save_model

FILES = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors"}
"""Formats that are one file, and how its name ends."""
FOLDERS = ("hf", "timm")
TOLERANCE = 1e-4
"""Of a logit; of logits beyond 1 a share of the largest one."""
SIZES = (1, 5)
"""Samples in the random mini-batches of the check; the export itself sees two."""
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """What was written."""

    paths: tuple[Path, ...]
    """The file and what stands beside it, or the folder."""
    difference: float
    """Largest difference of a logit from the network's own, over all inputs of the check."""
    samples: int
    """Number of real inputs in the check, beside random ones."""


class Logits(nn.Module):
    """A network that gives logits (N, C) alone, in eval mode, as :func:`pof.evaluate` reads them.

    Args:
        network: any classifier; a copy of it is used, in float32 on the CPU.
        card: of the network.
    """

    def __init__(self, network: nn.Module, card: NetworkCard) -> None:
        super().__init__()
        self.network = copy.deepcopy(_bare(network)).cpu().float().to(memory_format=torch.contiguous_format)
        self.reading = Reading(self.network, card.head)
        self.eval()
        self(random_inputs(self.network, card, 2))  # how its output is read is decided once

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (N, C) of inputs (N, ...)."""
        return self.reading(self.network(inputs), inputs)


def export(
    network: nn.Module, card: NetworkCard, path: str | Path, *, format: str, samples: Tensor | None = None
) -> Exported:
    """Write a network for other programs.

    Args:
        network: the trained network; unchanged.
        card: its classes, its input and its preprocessing.
        path: the file, or for the formats ``hf`` and ``timm`` the folder; nothing that is there is replaced.
        format: one of ``FILES`` and ``FOLDERS``.
        samples: real inputs (N, ...) for the check, beside random ones.

    Returns:
        What was written, and how far its logits are from the network's.

    Raises:
        ExportError: if the format cannot hold the network, or gives other logits; nothing is left behind.
        ImportError: if a library is missing.
    """
    target = Path(path)
    check_target(target, format)
    subject = Logits(network, card)
    with _staged(target) as folder, torch.no_grad():
        made = folder / target.name
        difference = _check(WRITERS[format](subject, card, made), subject, card, samples)
        if format in {"onnx", "torch-export"}:
            beside = target.with_suffix(".preprocessing.json")
            text = json.dumps(asdict(card), indent=2) + "\n"
            if beside.exists() and beside.read_text(encoding="utf-8") != text:
                raise ExportError(f"{beside} is there, and of another network: give --out another name")
            (folder / beside.name).write_text(text, encoding="utf-8")
        paths = tuple(target.parent / part.name for part in sorted(folder.iterdir()))
        for each in paths:
            (folder / each.name).replace(each)
    return Exported(paths, difference, 0 if samples is None else len(samples))


def random_inputs(network: nn.Module, card: NetworkCard, count: int) -> Tensor:
    """Inputs (count, ...) for a network, from the standard normal distribution; token numbers for one of texts."""
    if takes_tokens(network):
        words: Any = of_transformers(network).config
        return torch.randint(words.vocab_size, (count, 16), generator=seeded(count))
    return torch.randn(count, *card.input_shape, generator=seeded(count))


def takes_tokens(network: nn.Module) -> bool:
    """Whether a network of Transformers takes texts."""
    return getattr(of_transformers(network), "main_input_name", None) == "input_ids"


def _bare(network: nn.Module) -> nn.Module:
    """The network inside of torch.compile and of parallel wrappers."""
    while True:
        if isinstance(network, DataParallel | DistributedDataParallel):
            network = network.module
        elif hasattr(network, "_orig_mod"):
            network = network._orig_mod  # type: ignore[assignment]
        else:
            return network


def check_target(target: Path, format: str) -> None:
    """Refuse a format that is none, and a file or folder that cannot be written, or is there."""
    if format not in WRITERS:
        raise ExportError(f"format is one of {', '.join(WRITERS)}; got {format!r}")
    if not target.parent.is_dir():
        raise ExportError(f"no such folder: {target.parent}")
    ending = FILES.get(format)
    if ending is not None and target.suffix != ending:
        raise ExportError(f"a file of the format {format} ends in {ending}; got {target}")
    if target.is_symlink() or (target.exists() and (ending or not target.is_dir() or any(target.iterdir()))):
        raise ExportError(f"{target} is there already: give --out another name, or remove it")


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A folder beside the target, for what is not checked yet; it goes in any case."""
    with naming(target):
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=PARTIAL, dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check(run: Run, subject: Logits, card: NetworkCard, samples: Tensor | None) -> float:
    """The largest difference of a logit; an ExportError if it is too large."""
    probes = [random_inputs(subject.network, card, count) for count in SIZES]
    probes += [] if samples is None else [samples.cpu().float()]
    largest = 0.0
    for inputs in probes:
        expected = subject(inputs)
        try:
            found = run(inputs)
        except Exception as error:  # such as that of another size than the format's own network takes
            raise ExportError(
                f"what was exported does not take inputs {tuple(inputs.shape)}, as the network does ({reason(error)});"
                f" nothing was written: another format ({', '.join(WRITERS)}) may hold it"
            ) from error
        if found.shape != expected.shape:
            raise ExportError(f"what was exported gives {tuple(found.shape)}, the network {tuple(expected.shape)}")
        difference = float((found - expected).abs().max())
        allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
        if not difference <= allowed:
            raise ExportError(
                f"what was exported gives other logits: they differ by {difference:.2g}, and {allowed:.2g} is allowed;"
                " nothing was written"
            )
        largest = max(largest, difference)
    return largest


def _program(subject: Logits, card: NetworkCard, format: str, make: Callable[..., Any]) -> Any:
    """What torch makes of the network for a batch of any size."""
    if takes_tokens(subject.network):
        raise ExportError(f"{format} is written of networks for images and features, {card.model} takes texts: use hf")
    example = random_inputs(subject.network, card, 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own parts; the result is checked
            return make(subject, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # a trace fails with almost anything
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ExportError(f"torch cannot export {card.model} for a batch of any size as {format}: {said}") from error


def _onnx(subject: Logits, card: NetworkCard, file: Path) -> Run:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("the format onnx needs other packages: pip install 'pof[export]'") from error

    def make(module: nn.Module, inputs: tuple[Tensor, ...], **options: Any) -> Any:
        options |= {"input_names": ["input"], "output_names": ["logits"], "verbose": False}
        return torch.onnx.export(module, inputs, dynamo=True, **options)

    program = _program(subject, card, "onnx", make)
    program.model.metadata_props.update(card.metadata())
    program.save(str(file))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run(["logits"], {"input": inputs.numpy()})[0])


def _torch_export(subject: Logits, card: NetworkCard, file: Path) -> Run:
    program = _program(subject, card, "torch-export", torch.export.export)
    torch.export.save(program, file, extra_files={f"{key}.json": text for key, text in card.metadata().items()})
    loaded: Run = torch.export.load(file).module()
    return loaded


def _safetensors(subject: Logits, card: NetworkCard, file: Path) -> Run:
    save_model(subject.network, file, metadata=card.metadata())
    again = copy.deepcopy(subject)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.fill_(math.nan)
    load_model(again.network, file)
    return again


def _of_folder(write: Callable[..., Callable[[Tensor], Any]]) -> Callable[[Logits, NetworkCard, Path], Run]:
    def writer(subject: Logits, card: NetworkCard, folder: Path) -> Run:
        run = write(subject.network, card, folder)
        return lambda inputs: subject.reading(run(inputs), inputs)

    return writer


WRITERS: dict[str, Callable[[Logits, NetworkCard, Path], Run]] = {
    "onnx": _onnx,
    "torch-export": _torch_export,
    "safetensors": _safetensors,
    "hf": _of_folder(to_hf),
    "timm": _of_folder(to_timm),
}
