"""A recipe: which networks, data, methods and seeds an experiment compares; YAML, read into the typed options.

Sections are merged before they are read: ``train``, then the setting's ``train``, then the method's own entries.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from pof._support.checks import MOST_EPOCHS, MOST_SEEDS
from pof.app.budget import epochs_within
from pof.app.documents import read_yaml, text_of
from pof.app.experiment.checks import check_training
from pof.app.methods import average_of, users_of
from pof.app.options import DataOptions, ModelOptions, TrainOptions, check_data, read_section

T = TypeVar("T", DataOptions, ModelOptions, TrainOptions)
KEYS = ("name", "seeds", "data", "model", "pretrain", "settings", "train", "budget", "methods", "control")
SECTIONS = ("data", "model", "pretrain", "train", "budget")
"""What a setting can override."""


LONGEST = 100
"""Characters of a name."""


class RecipeError(ValueError):
    """A recipe that cannot be run; the message names the key."""


@dataclass(frozen=True)
class Setting:
    """One setting, with its overrides merged in."""

    name: str
    model: ModelOptions
    data: DataOptions
    split_by_seed: bool
    """Whether the seed also chooses the validation split and the part of the data; not if the recipe says how."""
    pretrain: TrainOptions | None
    methods: Mapping[str, TrainOptions]


@dataclass(frozen=True)
class Recipe:
    """An experiment: every method, in every setting, with every seed."""

    name: str
    seeds: tuple[int, ...]
    settings: tuple[Setting, ...]
    control: str | None
    """The method that the others are compared with."""
    source: Mapping[str, Any]
    """As it was read, overrides applied; plain values."""


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe."""
    import yaml

    try:
        source: Any = read_yaml(text_of(path), path)
        values = [(*_assignment(text), text) for text in overrides]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is no YAML: {error}") from error
    if not isinstance(source, dict):
        raise RecipeError(f"{path} is not a recipe: it needs the keys {', '.join(KEYS)}")
    for key, value, text in values:
        _set(source, key, value, text)
    return parse_recipe(source)


def parse_recipe(source: Mapping[str, Any]) -> Recipe:
    """Make a recipe of plain values."""
    _check_keys(source, KEYS, "the recipe")
    missing = [key for key in ("name", "seeds", "data", "model", "methods") if source.get(key) is None]
    if missing:
        raise RecipeError(f"the recipe lacks {missing[0]!r}")
    name = source["name"]
    if (
        not isinstance(name, str)
        or len(name) > LONGEST
        or not re.fullmatch(r"\w[\w.+-]*", name)
        or name in {"runs", "failed"}
    ):
        raise RecipeError(
            f"name: it becomes a folder beside 'runs' and 'failed', so give at most {LONGEST} letters, digits,"
            f" . + - _; got {name!r}"
        )
    methods = _mapping(source["methods"], "methods")
    if not methods:
        raise RecipeError("methods: give at least one")
    control = source.get("control")
    if control is not None and not (isinstance(control, str) and control in methods):
        raise RecipeError(f"control: {control!r} is none of the methods {', '.join(map(str, methods))}")
    parts = _mapping(source.get("settings") or {name: {}}, "settings")
    settings = tuple(_setting(_check_name(label, "settings"), source, part) for label, part in parts.items())
    return Recipe(name, _seeds(source["seeds"]), settings, control, dict(source))


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let modules beside a recipe be imported, here and in processes started meanwhile; none of them hides another."""
    entry = str(folder.resolve())
    sys.path.append(entry)
    try:
        yield
    finally:
        sys.path.remove(entry)


def _setting(name: str, source: Mapping[str, Any], overrides: Any) -> Setting:
    where = f"settings.{name}"
    part = _mapping(overrides or {}, where)
    _check_keys(part, SECTIONS, where)
    merged = {key: _merged(source.get(key), part[key]) if key in part else source.get(key) for key in SECTIONS}
    data = _mapping(merged["data"], "data")
    pretrain, train = merged["pretrain"], _mapping(merged["train"] or {}, "train")
    first = None if pretrain is None else {"method": "finetune", **_mapping(pretrain, "pretrain")}
    model = parse_section(ModelOptions, _mapping(merged["model"], "model"), "model")
    new_head = model.source_classes is not None
    pretraining = None
    if first is not None:
        own, said = part.get("pretrain", first), f"{where}.pretrain" if "pretrain" in part else "pretrain"
        pretraining = _training(first, said, own=own, from_scratch=not model.is_trained, new_head=new_head)
    return Setting(
        name,
        model,
        _data(data),
        "split_seed" not in data,
        pretraining,
        {
            _check_name(label, "methods"): _method(
                train, own, merged["budget"], f"methods.{label}", new_head=new_head and first is None
            )
            for label, own in source["methods"].items()
        },
    )


def _data(values: Mapping[str, Any]) -> DataOptions:
    found = parse_section(DataOptions, values, "data")
    try:
        check_data(found)
    except ValueError as error:
        raise RecipeError(f"data: {error}") from error
    return found


def _method(train: Mapping[str, Any], own: Any, budget: Any, where: str, *, new_head: bool) -> TrainOptions:
    mine = _mapping(own or {}, where)
    training = _training(_merged(train, mine), where, own=mine, from_scratch=False, new_head=new_head)
    if budget is None or "epochs" in mine:
        return training
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget <= MOST_EPOCHS:
        raise RecipeError(f"budget: give a number of epochs of plain training, at most {MOST_EPOCHS}; got {budget!r}")
    if "epochs" in train:
        raise RecipeError("train.epochs and budget are both given: leave out one (a method may have its own epochs)")
    try:
        return replace(training, epochs=epochs_within(budget, training))
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from error


def _check_own(values: Mapping[str, Any], training: TrainOptions, where: str) -> None:
    """Refuse options of other methods than the training's, which would do nothing; those of all are under 'train'."""
    kinds = {training.method, average_of(training)}
    for group, own in values.items():
        for name in [f"{group}.{key}" for key in own] if isinstance(own, Mapping) else [group]:
            users = users_of(name)
            if users and kinds.isdisjoint(users):
                raise RecipeError(
                    f"{where}.{name} is an option of {', '.join(users)}, and its method is {training.method}: leave it"
                    " out, or choose one of them"
                )


def _training(
    values: Mapping[str, Any], where: str, *, own: Mapping[str, Any], from_scratch: bool, new_head: bool
) -> TrainOptions:
    if "seed" in values:
        raise RecipeError(f"{where}.seed: the seeds of an experiment are under the recipe's key 'seeds'")
    training = checked(parse_section(TrainOptions, values, where), where, from_scratch=from_scratch, new_head=new_head)
    _check_own(own, training, where)
    return training


def checked(training: TrainOptions, where: str, *, from_scratch: bool = False, new_head: bool = False) -> TrainOptions:
    """The options of a training, if a run would take them."""
    try:
        check_training(training, from_scratch=from_scratch, new_head=new_head)
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        raise RecipeError(f"{where}: {' '.join(str(error).split())}") from error
    return training


def parse_section(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """Read a section by the types of its dataclass."""
    first = fields(kind)[0].name
    if values.get(first) is None:
        remedy = "" if kind is TrainOptions else f", or add --set {where}.{first}=..."
        raise RecipeError(f"{where}.{first} is not given: name it in the recipe{remedy}")
    try:
        return read_section(kind, values, where)
    except ValueError as error:
        raise RecipeError(str(error)) from error


def _seeds(value: Any) -> tuple[int, ...]:
    number = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_SEEDS
    seeds = list(range(value)) if number else value
    whole = isinstance(seeds, list) and all(type(s) is int and 0 <= s < 2**63 for s in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise RecipeError(
            f"seeds: give a number >= 1 and <= {MOST_SEEDS}, or a list of different numbers >= 0 and < 2**63; got"
            f" {value!r}"
        )
    return tuple(seeds)


def _check_keys(values: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in values:
        if key not in known:
            raise RecipeError(f"{where} has an unknown key {key!r}; known are {', '.join(known)}")


def _check_name(value: Any, where: str) -> str:
    """What stands in tables of several formats."""
    if isinstance(value, str) and len(value) > LONGEST:
        raise RecipeError(f"{where}: a name has at most {LONGEST} characters; got one of {len(value)}")
    if not isinstance(value, str) or not re.fullmatch(r"[^|\\{}$^~\s]([^|\\{}$^~\n\t]*[^|\\{}$^~\s])?", value):
        raise RecipeError(f"{where}: a name is a text without | \\ {{ }} $ ^ ~ and blanks at its ends; got {value!r}")
    return value


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RecipeError(f"{where}: give keys and values; got {value!r}")
    return value


def _merged(base: Any, over: Any) -> Any:
    """``over`` on top of ``base``: key by key where both are mappings."""
    if not isinstance(base, Mapping) or not isinstance(over, Mapping):
        return over
    return {**base, **{key: _merged(base.get(key), value) for key, value in over.items()}}


def _assignment(text: str) -> tuple[str, Any]:
    import yaml

    key, equals, value = text.partition("=")
    if not key or not equals:
        raise RecipeError(f"--set takes KEY=VALUE, such as train.lr=0.01; got {text!r}")
    return key, yaml.safe_load(value)


def _set(tree: dict[str, Any], key: str, value: Any, text: str) -> None:
    """Set a value by its dotted key; names that are there may have dots of their own."""
    if key in tree or "." not in key:
        tree[key] = value
        return
    known = [name for name in tree if isinstance(name, str) and key.startswith(f"{name}.")]
    name = max(known, key=len, default=key.partition(".")[0])
    if tree.get(name) is None:
        tree[name] = {}
    if not isinstance(tree[name], dict):
        raise RecipeError(f"--set {text}: {name!r} is {tree[name]!r} and has no keys")
    _set(tree[name], key.removeprefix(f"{name}."), value, text)
