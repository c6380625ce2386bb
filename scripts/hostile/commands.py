"""Bad command lines: every command, its numbers, names and paths."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from scripts.hostile import world
from scripts.hostile.trial import ACCEPTED, Child, Try, changed, contents, copied, judged, pof

BASES = {
    "train": world.TRAIN,
    "post-train": world.POST_TRAIN,
    "fine-tune": world.FINE_TUNE,
    "improve": world.IMPROVE,
    "evaluate": world.EVALUATE,
    "flatness": ("flatness", "run", "--batches", "1", "--device", "cpu"),
    "report": ("report", "run", "--batches", "1", "--device", "cpu", "--out", "page.html"),
    "experiment": ("experiment", "recipe.yaml", "--out", "new", "--jobs", "1"),
    "data": ("data", "--data", "digits"),
    "demo": ("demo", "--seeds", "1", "--out", "new"),
    "folder": world.FOLDER,
}
"""Commands that go well as they are; a bad option is put at their end."""
HUGE = "1" + "0" * 30
NUMBERS = {
    "train": {
        "epochs": ("0", "-1", "1.5", "nan", "many", "", HUGE),
        "batch_size": ("0", "-5", "2.5", "none", HUGE),
        "lr": ("0", "-1", "nan", "inf", "fast", "auto", "null"),
        "momentum": ("1", "-0.1", "nan", "2"),
        "weight_decay": ("-1", "nan", "inf"),
        "clip_norm": ("0", "-1", "nan"),
        "checkpoint_every": ("0", "-1", "1.5"),
        "accumulation": ("0", "-2", HUGE),
        "label_smoothing": ("-0.1", "1", "2", "nan"),
        "train_size": ("0", "-1", "5", "1000000"),
        "fraction": ("0", "-1", "1.5", "nan"),
        "validation": ("-0.1", "1.5", "nan", "1000000"),
        "split_seed": ("1.5", HUGE),
        "seed": ("1.5", HUGE),
        "workers": ("-1", "1000000"),
        "mean": ("[nan]", "[1,2]", "x"),
        "std": ("[0]", "[-1]", "[nan]", "[]"),
        "precision": ("fp8", "fp16 "),
        "device": ("cuda:9", "toaster", "meta"),
        "optimizer": ("adam", ""),
        "augment": ("strong",),
        "schedule.kind": ("linear",),
        "schedule.warmup_steps": ("-1", "1.5", HUGE),
        "schedule.milestones": ("[2]", "[nan]"),
        "schedule.decay": ("0", "nan", "2"),
        "method": ("", "magic", "../sam", "lightning"),
        "average.kind": ("mean",),
        "image_size": ("0", "-1", HUGE),
        "freeze_head": ("maybe", "true"),
        "model": (
            "",
            "resnet2000",
            "no.such:module",
            "os:system",
            "wrn-1000000-1",
            "wrn-28-99999999",
            "timm:none",
            ":x",
        ),
        "head": ("", "nothing", "0", "features"),
        "source_classes": ("0", "-1", "ten"),
        "data": ("", "mnist3", "/", "/dev/zero", "no.such:data", "images/train/ape", "run", "recipe.yaml"),
        "data_root": ("recipe.yaml",),
        "weights": ("", "nothing", "recipe.yaml", "/dev/zero", "images", "run/config.yaml"),
        "out": ("", "run", "images", "recipe.yaml", "recipe.yaml/x", "/proc/x", "/dev/null", "a" * 5000, "\0"),
        "resume": ("maybe",),
        "config": ("nothing.yaml", "images", "recipe.yaml"),
    },
    "post-train": {
        "pof.gamma": ("-1", "nan", "inf"),
        "pof.sampling": ("gauss",),
        "pof.features": ("old",),
        "pof.batch_norm": ("none",),
        "pof.reference_size": ("0", "-1", "1.5"),
        "weights": ("images/train/ape/0.png", "run/state"),
        "model": ("resnet20",),
        "source_classes": ("3",),
    },
    "fine-tune": {
        "regularizer.strength": ("-1", "nan", "inf"),
        "regularizer.prior": ("flat",),
        "regularizer.alpha": ("-1", "2", "nan"),
        "regularizer.lr": ("-1", "nan"),
        "freeze_head": ("true",),
        "source_classes": ("11", HUGE),
    },
    "improve": {
        "budget": ("0", "-1", "nan", "inf", "much"),
        "candidates": ("magic", "", "sgd=1"),
        "batch_size": ("0", "-1"),
        "lr": ("0", "-1", "nan", "inf"),
        "seed": ("1.5", HUGE),
        "validation": ("0", "1.5"),
        "validation_data": ("nothing", "recipe.yaml", "images"),
        "weights": ("nothing", "images"),
        "weight_decay": ("-1", "nan"),
        "optimizer": ("lion",),
        "precision": ("int8",),
        "out": ("run", "images", "recipe.yaml"),
    },
    "evaluate": {
        "split": ("dev",),
        "batch_size": ("0", "-1", "1.5"),
        "device": ("toaster",),
        "weights": ("nothing", "images"),
        "data": ("images", "nothing"),
        "head": ("nothing",),
    },
    "flatness": {
        "batches": ("0", "-1", "1.5"),
        "batch_size": ("0", "-1"),
        "runs": ("nothing", "images", "recipe.yaml", "weights.pt"),
        "out": ("run/result.json", "recipe.yaml", "weights.pt/x", "run/model.safetensors"),
        "device": ("toaster",),
    },
    "report": {
        "batches": ("0", "-1"),
        "batch_size": ("0",),
        "runs": ("nothing", "images", "weights.pt"),
        "out": ("run/config.yaml", "recipe.yaml/page.html", "images/train/ape/0.png"),
    },
    "experiment": {
        "jobs": ("0", "-1"),
        "threads": ("0", "-3"),
        "shard": ("2", "2/2", "-1/2", "0/0", "x/y", "1/"),
        "engine": ("slurm",),
        "num_gpus": ("1", "-1"),  # of another engine than the default
        "measure": ("loss",),
        "set": ("train.lr", "=1", "train.lr=fast", "seeds=0", "methods.x={}", "name=../x", "budget=nan", "a.b.c=1"),
        "out": ("recipe.yaml", "/dev/null/x"),
        "recipe": ("nothing.yaml", "images", "weights.pt"),
    },
    "data": {
        "data": ("", "nothing", "recipe.yaml", "/", "run", "images/test/ape"),
        "image_size": ("0", "-1"),
        "mean": ("[1,2,3,4]",),
    },
    "demo": {"seeds": ("0", "-1", "1.5", "x"), "out": ("recipe.yaml/x", "/dev/null/x")},
    "folder": {
        "image_size": ("0", "100000", "1.5"),
        "mean": ("[0.5]",),
        "std": ("[0,0,0]", "[nan,1,1]"),
        "workers": ("-1", "1000000"),
        "batch_size": ("0", "-1"),
        "train_size": ("2",),
        "augment": ("none ",),
    },
}
METHOD_OPTIONS = {
    "sam": {"sam.rho": ("-1", "nan", "inf", "big"), "sam.ascent_share": ("0", "-1", "2", "nan")},
    "late-sam": {"sam.last_epochs": ("0", "-1", "1.5")},
    "asam": {"sam.rho": ("-1", "nan")},
    "msam": {"sam.rho": ("nan", "inf"), "sam.ascent_share": ("0.5",)},
    "head-ascent": {"ascent.level": ("-1", "1", "nan")},
    "ema": {"average.decay": ("1", "-1", "nan")},
    "swa": {"average.start": ("1", "-1", "nan")},
    "lawa": {"average.window": ("0", "-1", "1.5")},
    "bss": {"regularizer.k": ("0", "-1", "1.5")},
    "randreg": {"regularizer.strength": ("-1", "nan")},
}
WHOLE = {
    "no command": (),
    "unknown command": ("fit",),
    "no options": ("train",),
    "flag without value": ("train", "--model"),
    "unknown flag": (*world.TRAIN, "--nothing", "1"),
    "positional": (*world.TRAIN, "stray"),
    "post-train without weights": ("post-train", *world.SMALL, "--out", "new"),
    "fine-tune without weights": ("fine-tune", *world.SMALL, "--out", "new"),
    "evaluate without weights": ("evaluate", "--data", "digits", "--model", "small-cnn"),
    "improve without weights": ("improve", *world.DIGITS, "--out", "new"),
    "freeze_head from scratch": (*world.TRAIN, "--freeze_head"),
    "train_size and fraction": (*world.TRAIN, "--fraction", "0.5"),
    "report of nothing": ("report",),
    "flatness of nothing": ("flatness",),
    "flatness of a file without a model": ("flatness", "weights.pt"),
    "experiment of nothing": ("experiment", "--out", "new"),
    "resume of another run": (*world.TRAIN, "--out", "run", "--resume", "--lr", "0.1"),
    "markup": (*world.TRAIN, "--model", "[red]x[/red]"),
    "terminal": (*world.TRAIN, "--model", "\x1b[2J\x07"),
    "surrogate": (*world.TRAIN, "--model", "\udcff"),
    "long": (*world.TRAIN, "--model", "x" * 100_000),
}


def bad_lines() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names and arguments of all of them."""
    for base, options in NUMBERS.items():
        for option, values in options.items():
            for value in values:
                yield f"{base} --{option} {value[:40]!r}", (*BASES[base], f"--{option}", value)
    for method, options in METHOD_OPTIONS.items():
        for option, values in options.items():
            for value in values:
                yield f"{method} --{option} {value}", (*BASES["train"], "--method", method, f"--{option}", value)
    yield from WHOLE.items()


def tries(folder: Path, made: Path, wanted: str) -> Iterator[Try]:
    """Each must be refused in one line, and change no file that was there."""
    place, before = copied(made, folder / "commands"), contents(made)
    for name, arguments in bad_lines():
        if wanted in name:
            yield refused("command line", name, place, arguments, before)


def refused(kind: str, name: str, place: Path, arguments: tuple[str, ...], before: dict[str, str]) -> Try:
    """A command in a folder with these files; what it makes beside them is removed."""
    since = time.monotonic()
    ended = Child(place, pof, *arguments).ended()
    wrong = changed(before, place) or ("accepted" if ended.code == ACCEPTED else None)
    cleared(place, before)
    return judged(kind, name, since, ended, wrong)


def cleared(place: Path, before: dict[str, str]) -> None:
    """Remove the files that were not there before."""
    for name in contents(place).keys() - before.keys():
        (place / name).unlink()
    for path in sorted(place.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()
