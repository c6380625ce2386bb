"""Bad files: data folders, images, weights, recipes, configuration files and run folders."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scripts.hostile.commands import BASES
from scripts.hostile.trial import ACCEPTED, Child, Try, changed, contents, copied, judged, pof

Breaks = Callable[[Path], Any]
"""Changes a copy of the world."""
IMAGE = "images/train/ape/0.png"
RUN = ("evaluate", "--data", "digits", "--model", "small-cnn", "--device", "cpu", "--weights", "run")


def wrote(name: str, content: bytes | str) -> Breaks:
    """A file with another content."""

    def write(place: Path) -> None:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def cut(name: str, share: float) -> Breaks:
    """The first part of a file."""
    return lambda place: os.truncate(place / name, int((place / name).stat().st_size * share))


def gone(name: str) -> Breaks:
    """A file less."""
    return lambda place: (place / name).unlink()


def fifo(name: str) -> Breaks:
    """A FIFO instead of a file: reading it never ends."""

    def make(place: Path) -> None:
        (place / name).unlink(missing_ok=True)
        os.mkfifo(place / name)

    return make


def link(name: str, target: str) -> Breaks:
    """A link instead of a file."""

    def make(place: Path) -> None:
        (place / name).unlink(missing_ok=True)
        (place / name).symlink_to(target)

    return make


def folder(name: str) -> Breaks:
    """A folder instead of a file."""

    def make(place: Path) -> None:
        (place / name).unlink(missing_ok=True)
        (place / name).mkdir(parents=True)

    return make


def edited(name: str, pattern: str, text: str) -> Breaks:
    """A text file edited by hand, everywhere that a pattern is found."""

    def edit(place: Path) -> None:
        found, count = re.subn(pattern, text, (place / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
        if not count:
            raise LookupError(f"{pattern!r} is not in {name}")
        (place / name).write_text(found, encoding="utf-8")

    return edit


def png(width: int, height: int, depth: int = 8, colour: int = 2, rows: bytes = b"") -> bytes:
    """A PNG that says this size, whatever is in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


class Payload:
    """Executed where a pickle is read."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def _bomb(place: Path) -> None:
    with zipfile.ZipFile(place / "weights.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("archive/data/0", bytes(2**28))


def _each(name: str) -> dict[str, Breaks]:
    """What can be instead of any file."""
    return {
        f"{name}: empty": wrote(name, ""),
        f"{name}: cut": cut(name, 0.5),
        f"{name}: binary": wrote(name, bytes(range(256)) * 8),
        f"{name}: FIFO": fifo(name),
        f"{name}: a link to itself": link(name, Path(name).name),
        f"{name}: a device": link(name, "/dev/zero"),
        f"{name}: a folder": folder(name),
    }


IMAGES: dict[str, Breaks] = {
    **{name: breaks for name, breaks in _each(IMAGE).items() if not name.endswith("folder")},
    "PNG of 100,000 x 100,000 pixels": wrote(IMAGE, png(100_000, 100_000)),
    "PNG of 1 x 60,000,000 pixels": wrote(IMAGE, png(1, 60_000_000)),
    "PNG of no pixels": wrote(IMAGE, png(0, 0)),
    "PNG without data": wrote(IMAGE, png(8, 8)),
    "PPM of huge size": wrote("images/train/ape/0.ppm", b"P6 99999999 99999999 255\n"),
    "PPM header": wrote("images/train/ape/0.ppm", b"P6 8 x 255\n"),
    "EPS as PNG": wrote(IMAGE, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"),
    "float TIFF": lambda place: _float_tiff(place / "images/train/ape/0.tiff"),
    "text as JPEG": wrote("images/train/ape/0.jpg", "hello"),
    "class without images": lambda place: [path.unlink() for path in (place / "images/train/ape").iterdir()],
    "one class": lambda place: _only_one_class(place),
    "class of the test set only": wrote("images/test/dog/0.png", png(8, 8)),
    "two training folders": wrote("images/training/ape/0.png", png(8, 8)),
    "no training folder": lambda place: (place / "images/train").rename(place / "images/other"),
    "folder without images": lambda place: [path.unlink() for path in (place / "images").rglob("*.png")],
}
WEIGHTS: dict[str, Breaks] = {
    **_each("weights.pt"),
    "pickle that executes": wrote("weights.pt", pickle.dumps(Payload())),
    "pickle of a list": wrote("weights.pt", pickle.dumps([1, 2])),
    "zip bomb": _bomb,
    "text": wrote("weights.pt", "weights"),
    "html": wrote("weights.pt", "<!DOCTYPE html><html>404</html>"),
    "flipped": lambda place: _flip(place / "weights.pt", 8),
    "last byte gone": lambda place: os.truncate(place / "weights.pt", (place / "weights.pt").stat().st_size - 1),
}
SAFETENSORS: dict[str, Breaks] = {
    **_each("run/model.safetensors"),
    "header of 2**63 bytes": wrote("run/model.safetensors", struct.pack("<Q", 2**63) + b"{}"),
    "header is no JSON": wrote("run/model.safetensors", struct.pack("<Q", 8) + b"not json"),
    "header of nothing": wrote("run/model.safetensors", struct.pack("<Q", 2) + b"{}"),
}
CONFIGS: dict[str, Breaks] = {
    **_each("run/config.yaml"),
    "config: a list": wrote("run/config.yaml", "- 1\n"),
    "config: no model": edited("run/config.yaml", r"^model:\n(  .*\n)*", ""),
    "config: no data": edited("run/config.yaml", r"^data:\n(  .*\n)*", ""),
    "config: no training": edited("run/config.yaml", r"^training:\n(  .*\n)*", ""),
    "config: model is a number": edited("run/config.yaml", r"^  model: .*", "  model: 3"),
    "config: model is code": edited("run/config.yaml", r"^  model: .*", "  model: os:getcwd"),
    "config: data is code": edited("run/config.yaml", r"^  data: .*", "  data: os:getcwd"),
    "config: data is a list": edited("run/config.yaml", r"^  data: .*", "  data: [1, 2]"),
    "config: batch size": edited("run/config.yaml", r"^  batch_size: .*", "  batch_size: -7"),
    "config: batch size is a text": edited("run/config.yaml", r"^  batch_size: .*", "  batch_size: many"),
    "config: validation": edited("run/config.yaml", r"^  validation: .*", "  validation: .nan"),
    "config: unknown key": edited("run/config.yaml", r"^model:", "model:\n  colour: red"),
    "config: said twice": edited("run/config.yaml", r"^model:", "model:\n  model: resnet20"),
    "config: aliases": edited("run/config.yaml", r"\Z", "x: &a [1,1,1,1,1,1,1,1,1]\ny: &b [*a,*a,*a,*a,*a,*a,*a,*a]\n"
                              "z: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nu: &d [*c,*c,*c,*c,*c,*c,*c,*c]\n"
                              "v: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nw: [*e,*e,*e,*e,*e,*e,*e,*e]\n"),
    "config: a tag": edited("run/config.yaml", r"^  model: .*", "  model: !!python/object/apply:os.getcwd []"),
}  # fmt: skip
RESULTS: dict[str, Breaks] = {
    **_each("run/result.json"),
    "result: a list": wrote("run/result.json", "[]"),
    "result: nothing": wrote("run/result.json", "{}"),
    "result: NaN": edited("run/result.json", r'"error": [\d.e-]+', '"error": NaN'),
    "result: a text": edited("run/result.json", r'"error": [\d.e-]+', '"error": "x"'),
    "result: best epoch": edited("run/result.json", r'"best_epoch": \d+', '"best_epoch": 99'),
    "result: stopped": edited("run/result.json", r'"steps": \d+', '"steps": null'),
}
LOGS: dict[str, Breaks] = {
    **_each("run/metrics.jsonl"),
    "log: a row that is a number": wrote("run/metrics.jsonl", "3}\n"),
    "log: no step": edited("run/metrics.jsonl", r'"step": \d+', '"stop": 1'),
    "log: step is a text": edited("run/metrics.jsonl", r'"step": \d+', '"step": "one"'),
    "log: epoch is null": edited("run/metrics.jsonl", r'"epoch": \d+', '"epoch": null'),
    "log: loss is a text": edited("run/metrics.jsonl", r'"loss": [\d.e-]+', '"loss": "low"'),
    "log: figures are lists": edited("run/metrics.jsonl", r'"val_nll": [\d.e-]+', '"val_nll": [1]'),
}
SURROUNDINGS: dict[str, Breaks] = {
    **_each("run/environment.json"),
    "environment: a list": wrote("run/environment.json", "[]"),
    "environment: packages": edited("run/environment.json", r'"packages": \{[^}]*\}', '"packages": 3'),
}
RECIPES: dict[str, Breaks] = {
    **_each("recipe.yaml"),
    **{
        f"recipe: {pattern} -> {text}": edited("recipe.yaml", pattern, text)
        for pattern, text in (
            (r"^name: .*", "name: ../out"),
            (r"^name: .*", "name: runs"),
            (r"^name: .*", "name: [a]"),
            (r"^name: .*", "name: " + "x" * 300),
            (r"^seeds: .*", "seeds: 0"),
            (r"^seeds: .*", "seeds: many"),
            (r"^seeds: .*", "seeds: [1, 1]"),
            (r"^seeds: .*", "seeds: [-1]"),
            (r"^seeds: .*", "seeds: 1000000000"),
            (r"^seeds: .*", "seeds: {a: 1}"),
            (r"^control: .*", "control: [sgd]"),
            (r"^control: .*", "control: {sgd: 1}"),
            (r"^control: .*", "control: none"),
            (r"^budget: .*", "budget: .inf"),
            (r"^budget: .*", "budget: -1"),
            (r"^budget: .*", "budget: yes"),
            (r"^methods: .*", "methods: {}"),
            (r"^methods: .*", "methods: [sgd]"),
            (r"^methods: .*", "methods: {sgd: {method: magic}}"),
            (r"^methods: .*", "methods: {sgd: {method: finetune, lr: -1}}"),
            (r"^methods: .*", "methods: {sgd: {method: finetune, lrr: 1}}"),
            (r"^methods: .*", "methods: {sgd: {method: finetune, epochs: null}}"),
            (r"^methods: .*", "methods: {sgd: {method: sam, sam: {ascent_share: .inf}}}"),
            (r"^methods: .*", "methods: {sgd: {method: finetune, seed: 3}}"),
            (r"^methods: .*", "methods: {'a|b': {method: finetune}}"),
            (r"^methods: .*", "methods: {3: {method: finetune}}"),
            (r"^methods: .*", "methods: {sgd: {method: finetune}, sgd: {method: pof}}"),
            (r"^data: .*", "data: digits"),
            (r"^data: .*", "data: {data: nothing}"),
            (r"^data: .*", "data: {data: digits, train_size: -1}"),
            (r"^data: .*", "data: {data: digits, fraction: .nan}"),
            (r"^model: .*", "model: {model: none}"),
            (r"^model: .*", "model: null"),
            (r"^model: .*", "model: {model: small-cnn, weights: nothing}"),
            (r"^pretrain: .*", "pretrain: {epochs: 0}"),
            (r"^pretrain: .*", "pretrain: [1]"),
            (r"^train: .*", "train: {lr: fast}"),
            (r"^train: .*", "train: {method: finetune, epochs: 1, budget: 3}"),
            (r"^control: .*", "colour: red"),
            (r"^control: .*", "settings: {a: {methods: {}}}"),
            (r"^control: .*", "settings: {a: {data: 3}}"),
            (r"^control: .*", "settings: {'../x': {}, '': {}}"),
            (r"\Z", "name: again\n"),
            (r"\Z", "x: !!python/object/apply:os.getcwd []\n"),
        )
    },
}
KINDS: dict[str, tuple[dict[str, Breaks], tuple[tuple[str, ...], ...]]] = {
    "images": (IMAGES, (BASES["folder"],)),
    "weights": (WEIGHTS, (("evaluate", "--data", "digits", "--model", "small-cnn", "--weights", "weights.pt"),)),
    "safetensors": (SAFETENSORS, (RUN,)),
    "config": (CONFIGS, (BASES["report"], BASES["flatness"])),
    "result": (RESULTS, (BASES["report"],)),
    "log": (LOGS, (BASES["report"],)),
    "environment": (SURROUNDINGS, (BASES["report"],)),
    "recipe": (RECIPES, (BASES["experiment"],)),
}
"""What is broken, and the commands that then read it."""
PASSED_OVER = {"environment"}
"""What a command may do without."""


def _float_tiff(path: Path) -> None:
    from PIL import Image

    Image.new("F", (8, 8)).save(path)


def _only_one_class(place: Path) -> None:
    for path in [*place.glob("images/*/bee"), *place.glob("images/*/cow")]:
        path.rename(place / f"{path.parent.name}-{path.name}")


def _flip(path: Path, every: int) -> None:
    content = bytearray(path.read_bytes())
    content[::every] = bytes(255 - byte for byte in content[::every])
    path.write_bytes(content)


def tries(where: Path, made: Path, wanted: str) -> Iterator[Try]:
    """Each must be refused in one line and change no file; what no command needs may be passed over with a word."""
    for kind, (cases, commands) in KINDS.items():
        for name, breaks in cases.items():
            for arguments in commands:
                label = f"{arguments[0]}, {name}"
                if wanted in label:
                    yield _tried(where / "files", made, kind, label, breaks, arguments)


def _tried(where: Path, made: Path, kind: str, label: str, breaks: Breaks, arguments: tuple[str, ...]) -> Try:
    place = copied(made, where)
    breaks(place)
    before, since = contents(place), time.monotonic()
    ended = Child(place, pof, *arguments).ended()
    wrong = changed(before, place)
    if (place / "executed").exists():
        wrong = "code was executed"
    shutil.rmtree(place)
    if ended.code == ACCEPTED and wrong is None and not _said(kind, ended.out):
        wrong = "accepted"
    return judged("file", label, since, ended, wrong)


def _said(kind: str, text: str) -> bool:
    return "warning" in text or kind in PASSED_OVER
