"""The card of a network: written where it is trained, and compared with what the network is given later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from pof._support.checks import MOST_CLASSES, whole_number
from pof._support.factory import is_factory
from pof._support.modules import convolutions_channels_last
from pof._support.preprocessing import Preprocessing
from pof.app.options import DataOptions, ModelOptions
from pof.app.places import FOLDERS, located_model
from pof.app.run_files import RunError, no_run, read_config, section_of
from pof.data import Data, ImageData, outputs_of
from pof.data.arrays import image_shape
from pof.data.npy import is_arrays
from pof.data.registry import KNOWN
from pof.head.search import find_head
from pof.head.split import split as split_at_head
from pof.models import PRETRAINED, build_model, replace_head
from pof.models.build import input_arguments, published_arguments, published_classes
from pof.models.card import NetworkCard
from pof.models.sources.huggingface import saved_by_transformers
from pof.weights import NETWORK_FILE, WeightsError, load_weights, read_metadata, read_weights

COMPARED = ("mean", "std")
"""Parts of the preprocessing of images in memory; the size is part of the inputs' shape."""


def weights_file(weights: str | Path) -> Path:
    """The file of weights: of a run folder its network."""
    path = Path(weights)
    if not path.is_dir() or saved_by_transformers(str(weights)):
        return path
    if not (path / NETWORK_FILE).exists():
        if (path / "config.yaml").exists():
            raise RunError(f"{weights} has no {NETWORK_FILE}: has that run ended? Go on with it by --resume")
        raise no_run(path, NETWORK_FILE)
    return path / NETWORK_FILE


def card_in(weights: str | Path | None) -> NetworkCard | None:
    """The card in the header of weights; None where there is none: foreign weights, and those of older versions."""
    if weights is None or weights == PRETRAINED:
        return None
    try:
        card = NetworkCard.read(read_metadata(file := weights_file(weights)))
        if card is None or not card.model.startswith(FOLDERS):
            return card
        config: dict[str, Any] = {}
        if (file.parent / "config.yaml").exists():
            with suppress(RunError):  # that of others
                config = read_config(file.parent)
        return replace(card, model=located_model(card.model, config, file.parent))
    except (FileNotFoundError, IsADirectoryError):
        return None  # said where it is read


def known_card(model: ModelOptions, loaded: Data) -> NetworkCard | None:
    """The card in the header of weights, or what the config.yaml of a run folder without one says of the network."""
    found = card_in(model.weights)
    folder = Path(model.weights or "")
    if found is not None or model.weights is None or not (folder / "config.yaml").exists():
        return found
    classes = loaded.classes if model.source_classes is None else tuple(map(str, range(model.source_classes)))
    return replace(_card(section_of(read_config(folder), folder, "model"), loaded, None), classes=classes)


def card_of(model: ModelOptions, loaded: Data, head: str | None, loss: str = "cross-entropy") -> NetworkCard:
    """The card of a network that was trained on these data with a loss, by the qualified name of its head."""
    outputs = outputs_of(loaded, loss)
    others = None if outputs == loaded.num_classes else outputs
    return replace(_card(model, loaded, known_card(model, loaded)), head=head, outputs=others)


def _card(model: ModelOptions, loaded: Data, before: NetworkCard | None) -> NetworkCard:
    """``before`` is that of the incoming network, which says how to build it."""
    how = preprocessing_of(loaded)
    apart = how is None and isinstance(loaded, ImageData)
    return NetworkCard(
        model=model.model if before is None else before.model,
        classes=loaded.classes,
        input_shape=loaded.image_shape,
        model_args=_arguments(model) if before is None else before.model_args,
        head=model.head or (None if before is None else before.head),
        preprocessing=how,
        source_classes=model.source_classes if before is None else _source(before, model),
        mean=loaded.mean if apart else None,
        std=loaded.std if apart else None,
    )


def _arguments(model: ModelOptions) -> Mapping[str, Any]:
    """What the network is built with again, without its published weights."""
    published = model.weights == PRETRAINED and not model.is_factory
    return published_arguments(model.model, model.model_args) if published else model.model_args


def _source(before: NetworkCard, model: ModelOptions) -> int | None:
    """Classes to build the network for, before it gets the head that it has now."""
    return model.source_classes if before.source_classes is None else before.source_classes


def preprocessing_of(loaded: Data) -> Preprocessing | None:
    """How image files become inputs like these; None if the data do not say, or are no square images."""
    if isinstance(loaded, ImageData):
        square = loaded.image_shape[1] == loaded.image_shape[2]
        return Preprocessing(loaded.image_shape[1], loaded.mean, loaded.std, crop=1.0) if square else None
    how = getattr(getattr(loaded.test_set, "transform", None), "how", None)
    return how if isinstance(how, Preprocessing) else None


def as_trained(data: DataOptions, card: NetworkCard | None) -> DataOptions:
    """The options of data with the preprocessing of the network, where they say nothing else."""
    if card is None or is_factory(data.data):
        return data
    own = card.preprocessing or card
    wanted: dict[str, Any] = {"mean": own.mean, "std": own.std}
    if isinstance(own, Preprocessing) and data.data not in KNOWN and not _fit_as_they_are(data, card):
        wanted |= {"image_size": own.size, "interpolation": own.interpolation, "crop": own.crop}
    return replace(data, **{name: value for name, value in wanted.items() if getattr(data, name) is None})


def _fit_as_they_are(data: DataOptions, card: NetworkCard) -> bool:
    """Whether the images are arrays of the size that the network was trained on, which nothing resized."""
    place = Path(data.data_root or "") / data.data
    if not is_arrays(place) or {data.image_size, data.interpolation, data.crop} != {None}:
        return False
    return card.preprocessing is not None and card.preprocessing.crop == 1 and image_shape(place) == card.input_shape


def load_network(
    model: ModelOptions, loaded: Data, loss: str = "cross-entropy", *, purpose: str | None = None
) -> nn.Module:
    """Build the network for a data set and a loss, with its weights; refused if trained on other classes or inputs.

    ``purpose`` names the command that needs a trained head.
    """
    if purpose is not None:
        refuse_new_head(model, loaded, loss, purpose)
    return load_with_source_head(model, loaded, loss)[0]


def refuse_new_head(model: ModelOptions, loaded: Data, loss: str, purpose: str) -> None:
    """Refuse published weights without a head for these data, for what is named ``purpose``."""
    if (why := new_head_of(model, loaded, loss)) is not None:
        raise ValueError(
            f"{why}, so it gets a new head, and {purpose} needs a trained one: train it first (pof fine-tune --model"
            f" {model.model} --weights {model.weights})"
        )


def new_head_of(model: ModelOptions, loaded: Data, loss: str) -> str | None:
    """Say why published weights come with a head of no use for a data set; None where they do not."""
    found, outputs = _published(model), outputs_of(loaded, loss)
    if model.source_classes is not None or found in {None, outputs}:
        return None
    head = f"a head of {found} classes" if found else "no head"
    return f"{model.model} with the weights {model.weights} has {head}, and {loaded.name} needs {outputs} outputs"


def _published(model: ModelOptions) -> int | None:
    """Classes of the published head, 0 where there is none; None of weights from elsewhere."""
    return None if model.is_factory else published_classes(model.model, model.model_args, model.weights)


def load_with_source_head(model: ModelOptions, loaded: Data, loss: str) -> tuple[nn.Module, nn.Module | None]:
    """As :func:`load_network`; and the head that a new one has taken the place of, if one has."""
    if model.source_classes is not None:
        whole_number("source_classes", model.source_classes, 2, MOST_CLASSES)
    own = model.is_factory and model.weights == PRETRAINED
    file = None if own or model.weights in {None, PRETRAINED} else weights_file(str(model.weights))
    card = None if file is None else known_card(model, loaded)
    if card is not None:
        check_fits(card, model, loaded)
    outputs = outputs_of(loaded, loss)
    if card is not None and model.source_classes is None:
        _check_outputs(card, outputs, loss, str(model.weights))
    weights = PRETRAINED if model.weights == PRETRAINED and not own else file
    names = loaded.classes if model.source_classes is None and outputs == loaded.num_classes else ()
    try:
        if card is not None and file is not None and same_model(model.model, card.model):
            network = card.build()
            load_weights(network, file)
        else:
            network = _build(model, loaded, model.source_classes or outputs, weights, names)
    except WeightsError:
        _refuse_other_classes(model, loaded, outputs, file)
        raise
    source_head = None
    if model.source_classes is not None:
        if _published(model) in {None, model.source_classes}:
            source_head = split_at_head(network, model.head).head
        replace_head(network, outputs, model.head)
    return convolutions_channels_last(network), source_head


def _build(
    model: ModelOptions, loaded: Data, outputs: int, weights: Path | str | None = None, classes: Sequence[str] = ()
) -> nn.Module:
    """Build the network for the inputs of a data set."""
    return build_model(
        model.model,
        num_classes=outputs,
        weights=weights,
        args=model.model_args,
        classes=classes,
        **input_arguments(loaded.image_shape),
    )


def _refuse_other_classes(model: ModelOptions, loaded: Data, outputs: int, file: Path | None) -> None:
    """Say of weights that do not fit, and have no card, for how many classes they do, if for any."""
    tensors = {} if file is None else read_weights(file)
    try:
        head = model.head or find_head(_build(model, loaded, 2))
        found = next((len(tensor) for name, tensor in tensors.items() if f".{name}".endswith(f".{head}.weight")), 0)
        _build(model, loaded, found, file)
    except ValueError:
        return
    if model.source_classes is None:
        raise ValueError(
            f"{model.weights} has {found} outputs, and {loaded.name} needs {outputs}: give data with the classes of the"
            f" network, or, for a new head, --source_classes {found} (pof fine-tune)"
        )
    raise ValueError(
        f"--source_classes {model.source_classes}: the network in {model.weights} has {found}: give --source_classes"
        f" {found}"
    )


def same_model(name: str, other: str) -> bool:
    """Whether two names are of one network; folders may be written in several ways."""
    return _plain(name) == _plain(other)


def _plain(name: str) -> str:
    prefix = next((prefix for prefix in FOLDERS if name.startswith(prefix)), "")
    folder = Path(name.removeprefix(prefix))
    return str(folder.resolve()) if prefix and folder.exists() else name.removeprefix("timm:")


def check_fits(card: NetworkCard, model: ModelOptions, loaded: Data) -> None:
    """Refuse another model, and data of other classes or inputs than the network was trained with.

    A new head (``source_classes``) may have other classes, and is trained on whatever inputs are asked for.  A file in
    the place of a run folder may be read into another model that its weights fit.
    """
    where = str(model.weights)
    if Path(where).is_dir() and not same_model(model.model, card.model):
        raise ValueError(f"--model {model.model}: the network in {where} is {card.model}: leave out --model")
    was, now = dict(card.model_args), dict(model.model_args)
    if now != {name: was[name] for name in now if name in was}:
        raise ValueError(f"--model_args {now}: the network in {where} was built with {was}: leave out --model_args")
    if model.source_classes is None:
        _check_classes(card, loaded, where)
        _check_inputs(card, loaded, where)
    elif model.source_classes != len(card.classes):
        raise ValueError(
            f"--source_classes {model.source_classes}: the network in {where} has {len(card.classes)} classes: leave"
            " out --source_classes"
        )


def _check_classes(card: NetworkCard, loaded: Data, where: str) -> None:
    own, given = card.classes, loaded.classes
    if own == given:
        return
    if len(own) != len(given):
        what = f"the classes: the network in {where} has {len(own)}, and {loaded.name} has {len(given)}"
    elif set(own) != set(given):
        what = f"the classes: {min(set(own) - set(given))!r} of the network in {where} is not in {loaded.name}"
    else:
        number = next(n for n, pair in enumerate(zip(own, given, strict=True)) if pair[0] != pair[1])
        pair = f"{own[number]!r} in {where} and {given[number]!r} in {loaded.name}"
        what = f"the order of the classes: class {number} is {pair}"
    raise ValueError(
        f"{what}: give data with the classes of the network, or train a new head (pof fine-tune --weights {where})"
    )


def _check_outputs(card: NetworkCard, outputs: int, loss: str, where: str) -> None:
    if (own := card.outputs or len(card.classes)) != outputs:
        raise ValueError(
            f"the loss {loss} needs {outputs} outputs for these data, and the network in {where} has {own}: give the"
            f" --loss that it was trained with, or train a new head (pof fine-tune --weights {where})"
        )


def _check_inputs(card: NetworkCard, loaded: Data, where: str) -> None:
    own, given = card.preprocessing, preprocessing_of(loaded)
    if loaded.image_shape != card.input_shape:
        was, now = (" x ".join(map(str, shape)) for shape in (card.input_shape, loaded.image_shape))
        raise ValueError(
            f"--image_size: the network in {where} was trained on inputs of {was}, and {loaded.name} gives {now}: leave"
            " out --image_size, or give data of that shape"
        )
    names = COMPARED if isinstance(loaded, ImageData) else (*COMPARED, "interpolation", "crop", "squash")
    if own is not None and given is not None:
        _check_same(own, {name: getattr(given, name) for name in names}, where)
    _check_same(card, {"mean": loaded.mean, "std": loaded.std}, where)


def check_said(card: NetworkCard, model: ModelOptions, data: DataOptions) -> None:
    """Refuse a head or a preprocessing that is given, and is another than that of the network in the weights."""
    _check_same(card, {"head": model.head}, str(model.weights))
    said = {name: getattr(data, name) for name in ("mean", "std", "interpolation", "crop")}
    _check_same(card.preprocessing or card, said | {"size": data.image_size}, str(model.weights))


def _check_same(own: Preprocessing | NetworkCard, said: Mapping[str, Any], where: str) -> None:
    """Refuse what is said, and known of the network to be something else."""
    for name, now in said.items():
        before, option = getattr(own, name, None), "image_size" if name == "size" else name
        if None not in (before, now) and before != now:
            raise ValueError(
                f"--{option} {_text(now)}: the network in {where} was trained with {_text(before)}: leave out"
                f" --{option}"
            )


def _text(value: Any) -> str:
    return ",".join(f"{number:.6g}" for number in value) if isinstance(value, tuple) else str(value)
