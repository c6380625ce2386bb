"""Image folders: one subfolder per class, read from disk by the loader's workers (torchvision's conventions).

Folders for training, validation and testing are known by their usual names (``pof.data.parts.SPLITS``), in any case.
Training images: random resized crop and flip; evaluation: as the network's preprocessing says, by default a resize to
8/7 of 224 pixels and the central crop.
"""

from __future__ import annotations

import os
from pathlib import Path

from pof._support.text import first_of
from pof.data.checks import DataError
from pof.data.description import DataSplit, LazyData
from pof.data.images import is_image
from pof.data.parts import SPLITS, Preparation, Sample, image_data, role_of
from pof.data.walk import Walk, listed


def folder_data(root: Path, preparation: Preparation) -> LazyData:
    """Describe an image folder by the names of its files."""
    if not os.path.isdir(root):
        raise DataError(f"no such folder: {root}")
    if root.resolve() == Path(root.resolve().anchor):
        raise DataError(f"{root}: the root of the file system; give the folder that holds the class folders")
    places, notes = _splits(root)
    walk = Walk(root, is_image)
    classes, train = _classes(places.get("train", root), walk)
    parts: dict[DataSplit, list[Sample]] = {"train": train}
    for split in set(places) - {"train"}:
        parts[split] = _samples_of(places[split], classes, walk)
    names = {split: place.name for split, place in places.items()}
    notes += [walk.without_class(), walk.left_out()]
    return image_data(root.resolve().name, str(root), classes, parts, preparation, notes=notes, names=names)


def _splits(root: Path) -> tuple[dict[DataSplit, Path], list[str]]:
    """The folders of the splits, none if the root holds the classes, and what is to be said about the others."""
    names = [entry.name for entry in listed(root)[0]]
    roles = {name: role for name in names if (role := role_of(name)) is not None}
    # A class may be called "test" too: its folder has images in it, no folders.
    found = {name: role for name, role in roles.items() if listed(root / name)[0]}
    if not found:
        if len(roles) == len(names) > 1:
            raise DataError(f"{root}: {' and '.join(roles)} have no class folders in them, one per class")
        return {}, []
    for role, known in SPLITS.items():
        same = [name for name in found if found[name] == role]
        if len(same) > 1:
            raise DataError(f"{root}: {' and '.join(same)} are both for {role}: keep one of them")
        if role == "train" and not same:
            raise DataError(
                f"{root}: {next(iter(found))} has class folders, but there is no folder for training beside it:"
                f" call one {' or '.join(known)}"
            )
    unused = [name for name in names if name not in found and _has_images(root / name)]
    notes = [f"not used: {', '.join(unused)} (no class folders, or no usual name of a split)"] if unused else []
    return {role: root / name for name, role in found.items()}, notes


def _has_images(folder: Path) -> bool:
    folders, files = listed(folder)
    return any(is_image(file.name) for file in (*files, *(file for below in folders for file in listed(below)[1])))


def _classes(root: Path, walk: Walk) -> tuple[list[str], list[Sample]]:
    """Names of the class folders, and their samples."""
    names = [entry.name for entry in listed(root)[0]]
    if not names:
        raise DataError(f"{root}: no subfolders in it; an image folder has one subfolder of images per class")
    if len(names) == 1:
        inner = root / names[0]
        hint = f"; if {inner} is the data set, give that" if listed(inner)[0] else ""
        raise DataError(f"{root}: only one class ({names[0]}); a classifier needs at least two subfolders{hint}")
    samples = _samples_of(root, names, walk)
    if empty := sorted(set(range(len(names))) - {label for _, label in samples}):
        shown = first_of([names[label] for label in empty])
        raise DataError(f"{root}: no image in the folders {shown}; add images to these folders, or remove them")
    return names, samples


def _samples_of(root: Path, classes: list[str], walk: Walk) -> list[Sample]:
    # Labels of a test folder are those of the training folder, whichever classes it has.
    folders, files = listed(root)
    own = [entry.name for entry in folders]
    if unknown := sorted(set(own) - set(classes)):
        raise DataError(f"{root}: the class {unknown[0]!r} has no training images; there are {', '.join(classes)}")
    labels = {name: label for label, name in enumerate(classes)}
    samples: list[Sample] = [
        (path, labels[name]) for name in own for path in walk.images_below(os.path.join(root, name))
    ]
    if not samples:
        raise DataError(f"{root}: no image in it that can be read")
    walk.classless += [file.path for file in files if is_image(file.name)]
    return samples
