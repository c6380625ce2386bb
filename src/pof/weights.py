"""Weights on disk: our own as safetensors, checkpoints of any origin read without executing anything in them.

Writing is atomic.  Loading is strict: every key and shape is compared before the first value is copied, so a file
that does not fit leaves the model as it was; values go into the existing storage, which optimizers and compiled
graphs point to.
"""

from __future__ import annotations

import errno
import os
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from pof._support.files import replacing
from pof._support.modules import check_values
from pof._support.text import first_of

# .tar: "model_best.pth.tar" of the ImageNet example, which is no archive of tar.
PICKLED_SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt", ".tar")
# The order decides where a checkpoint has several: the weights themselves before their moving average.
NESTING_KEYS = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema")
# Added by DataParallel and DistributedDataParallel, by Lightning modules, by torch.compile.
WRAPPER_PREFIXES = ("module.", "model.", "_orig_mod.")
# Class weights of a loss beside the network, in checkpoints of Lightning.
OF_A_LOSS = re.compile(r"(?:criterion|loss|loss_fn|loss_function)\.(?:weight|pos_weight)")
EXTRA_STATE, COUNTER = "_extra_state", "num_batches_tracked"
AVERAGING_COUNTER = "n_averaged"  # beside the weights, of torch.optim.swa_utils.AveragedModel
NETWORK_FILE = "model.safetensors"  # in the folder of a run, which may be given instead
MAX_EXPANSION = 100


class WeightsError(ValueError):
    """A file of weights that cannot be read, or that does not fit the model."""


def save_model(model: nn.Module, path: str | os.PathLike[str], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write the parameters and buffers of ``model`` to ``path`` as safetensors, atomically.

    Tensors that share storage are written once per name: the file is the complete ``state_dict`` for every reader.

    Args:
        model: any module whose state_dict holds plain tensors only.
        path: the file to write; replaced at once if it exists, untouched if writing fails.
        metadata: strings to store in the header.

    Raises:
        WeightsError: if the state_dict holds something else than plain tensors.
        OSError: if the file cannot be written, for example because the disk is full.
    """
    tensors = {}
    for name, value in model.state_dict().items():
        if not _is_plain(value) or value.dtype is torch.complex128:
            raise WeightsError(f"safetensors hold plain tensors only, and {name!r} is {_kind(value)}: leave it out")
        # Strided views and tied tensors become independent: the format knows neither.
        tensors[name] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    content = to_safetensors(tensors, metadata=dict(metadata) if metadata else None)
    with replacing(path) as partial:
        partial.write_bytes(content)


def load_model(model: nn.Module, path: str | os.PathLike[str]) -> dict[str, str]:
    """Copy the weights that :func:`save_model` wrote into ``model``.

    Args:
        model: a module of the same architecture; left untouched if the file does not fit.
        path: a safetensors file, or the folder of a run.

    Returns:
        The metadata of the file; empty if it has none.

    Raises:
        WeightsError: if the file is damaged, or keys are missing, unexpected or misshapen.
        FileNotFoundError: if there is no such file.
    """
    tensors, metadata = _read_safetensors(_existing(path))
    _copy_into(model, tensors, str(path))
    return metadata


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the metadata of a safetensors file, without its tensors; empty if it has none, or is of another kind.

    Args:
        path: a file of weights.

    Returns:
        The strings of the header by their names.

    Raises:
        WeightsError: if the file is damaged.
        FileNotFoundError: if there is no such file.
    """
    file = _existing(path)
    if file.suffix != ".safetensors":
        return {}
    with _opened(file) as opened:
        return dict(opened.metadata() or {})


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Copy the weights of a checkpoint of any origin into ``model``; nothing in the file is executed.

    The prefixes that wrappers add (``WRAPPER_PREFIXES``) are ignored where all keys carry them.  Counters of batch
    norms may be missing, as before PyTorch 0.4.1: the model keeps its own.  Class weights of a loss
    (``criterion.weight``) are left out.  Of tensors that the model ties together one name is enough.  Of a module
    around the network (a LightningModule, a method of this package) that is taken; a warning names what else it has.

    Args:
        model: the module; left untouched if the file does not fit.
        path: a file that :func:`read_weights` can read, or the folder of a run.

    Raises:
        WeightsError: if it cannot be read, keys are missing, unexpected or misshapen, or it has several such networks.
        FileNotFoundError: if there is no such file.
    """
    tensors = read_weights(path)
    _copy_into(model, _network_in(tensors, model, str(path)), str(path))


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint onto the CPU without executing anything in it.

    Args:
        path: ``.safetensors``, or a file of ``torch.save`` (``PICKLED_SUFFIXES``): a state_dict, or a dict
            with one under one of ``NESTING_KEYS``, or with one alone.

    Returns:
        The tensors by the names they have in the file.

    Raises:
        WeightsError: if the suffix is unknown, the file is damaged, needs code to be read, or holds no state_dict.
        FileNotFoundError: if there is no such file.
    """
    file = _existing(path)
    if file.suffix == ".safetensors":
        return _read_safetensors(file)[0]
    if file.suffix not in PICKLED_SUFFIXES:
        known = ", ".join((".safetensors", *PICKLED_SUFFIXES))
        raise WeightsError(f"{file}: unknown kind of weights file {file.suffix!r}; known are {known}")
    return _state_dict_in(_read_pickled(file), file)


def _existing(path: str | os.PathLike[str]) -> Path:
    file = Path(path)
    if (file / NETWORK_FILE).is_file():
        file /= NETWORK_FILE
    if not file.exists():
        raise FileNotFoundError(errno.ENOENT, "no such weights file", str(path))
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"a folder without {NETWORK_FILE}, not a weights file", str(path))
    if file.stat().st_size == 0:
        raise WeightsError(f"{path}: the file is empty; copy or download it again")
    return file


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with _opened(file) as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, dict(opened.metadata() or {})  # noqa: SIM118


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            yield opened
    except SafetensorError as error:
        said = f"not a complete safetensors file ({error}); copy or download it again"
        if file.suffix in PICKLED_SUFFIXES:
            said = f"a {file.suffix} file, as torch.save writes: read it with pof.load_weights(model, path)"
        raise WeightsError(f"{file}: {said}") from error


def _read_pickled(file: Path) -> Any:
    _check_expansion(file)
    try:
        with warnings.catch_warnings():
            # Said of plain pickles, which are refused right after.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            return torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle raises almost anything: KeyError, EOFError, struct.error
        # The first byte of a legacy file or plain pickle, and of a zip archive.
        with file.open("rb") as opened:
            pickled = opened.read(1) in {b"\x80", b"P"}
        if isinstance(error, pickle.UnpicklingError) and pickled:
            found = re.search(r"GLOBAL (\S+)", str(error))
            what = f"it refers to {found[1]}" if found else "it is a pickle of Python objects"
            raise WeightsError(
                f"{file}: refused, because reading it would execute code ({what}); if you trust its origin, "
                "convert it where it was made: torch.save(model.state_dict(), 'weights.pth')"
            ) from error
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        script = "TorchScript" in reason
        remedy = "save the state_dict of torch.jit.load(FILE) instead" if script else "copy or download it again"
        raise WeightsError(f"{file}: damaged, or not a file of torch.save ({reason}); {remedy}") from error


def _check_expansion(file: Path) -> None:
    """Refuse an archive that says it is far larger inside: ``torch.save`` compresses nothing."""
    try:
        with ZipFile(file) as archive:
            inside = sum(member.file_size for member in archive.infolist())
    except (BadZipFile, OSError, ValueError, NotImplementedError):
        return  # a plain pickle, or damaged, which is said in reading
    if inside > MAX_EXPANSION * file.stat().st_size:
        raise WeightsError(
            f"{file}: {inside:,} bytes once it is unpacked, {MAX_EXPANSION} times its size or more; weights do not"
            " shrink so far: write it again with torch.save"
        )


def _state_dict_in(content: Any, file: Path) -> dict[str, Tensor]:
    if (tensors := _tensors_of(content)) is not None:
        return tensors
    entries = content if isinstance(content, Mapping) else {}
    for key in NESTING_KEYS:
        if isinstance(entries.get(key), Mapping):
            return _state_dict_in(entries[key], file)
    nested = {key: inner for key, entry in entries.items() if (inner := _tensors_of(entry)) is not None}
    if len(nested) == 1:
        return next(iter(nested.values()))
    if nested:
        raise WeightsError(
            f"{file}: several could be the state_dict, {first_of(map(repr, nested))}: save the one that is meant:"
            f" torch.save(torch.load({file.name!r}, weights_only=True)[{next(iter(nested))!r}], 'weights.pth')"
        )
    found = f"a dict with {first_of(content)}" if isinstance(content, Mapping) else type(content).__name__
    raise WeightsError(f"{file}: no state_dict in it: found {found}; expected tensors by name, or such a dict in it")


def _tensors_of(content: Any) -> dict[str, Tensor] | None:
    """Tensors by name, or None where it is anything else."""
    if not isinstance(content, Mapping):
        return None
    # A network's own extra state is missed where it is copied.
    tensors = {str(name): value for name, value in content.items() if not str(name).endswith(EXTRA_STATE)}
    return tensors if tensors and all(isinstance(value, Tensor) for value in tensors.values()) else None


def _network_in(tensors: Mapping[str, Tensor], model: nn.Module, source: str) -> dict[str, Tensor]:
    """The tensors of a network that is a part of what was saved, by its own names; all of them if it is the whole."""
    state = model.state_dict(keep_vars=True)
    names = {bare: id(state[name]) for name, bare in _without_prefixes(state).items() if not bare.endswith(COUNTER)}
    if not names or names.keys() & set(_without_prefixes(tensors).values()):
        return dict(tensors)
    tied = [name for name, identity in names.items() if identity == next(iter(names.values()))]
    ends = dict.fromkeys(name.removesuffix(own) for name in tensors for own in tied if name.endswith(f".{own}"))
    prefixes = [p for p in ends if {names[n] for n in names if f"{p}{n}" in tensors} == set(names.values())]
    if not prefixes:
        return dict(tensors)
    taken, *copies = prefixes
    pairs = [(tensors.get(f"{taken}{name}"), tensors.get(f"{p}{name}")) for p in copies for name in names]
    if any(a is not None and b is not None and (a.dtype != b.dtype or not a.equal(b)) for a, b in pairs):
        places = " and ".join(repr(prefix[:-1]) for prefix in prefixes)
        raise WeightsError(
            f"{source} holds {len(prefixes)} networks, under {places}: save the one that is meant, such as"
            " pof.save_model(module.net, 'net.safetensors'), or of an average method.candidate()"
        )
    others = [name for name in tensors if not name.startswith(tuple(prefixes)) and not name.endswith(EXTRA_STATE)]
    if said := [name for name in others if not OF_A_LOSS.fullmatch(name)]:
        warnings.warn(
            f"{source}: the network is taken from under {taken[:-1]!r}, {len(said)} other tensors are left"
            f" out: {first_of(sorted(said))}",
            stacklevel=3,
        )
    inner = tuple(p for p in copies if p.startswith(taken))
    own = (name for name in tensors if name.startswith(taken) and not name.startswith(inner))
    return {name.removeprefix(taken): tensors[name] for name in own}


def _copy_into(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    # Every key and shape is compared before the first copy.
    own = model.state_dict(keep_vars=True)
    check_values(model)
    tensors = {name: value for name, value in tensors.items() if name in own or not OF_A_LOSS.fullmatch(name)}
    plain = _without_prefixes(tensors)
    names = {bare: name for name, bare in _without_prefixes(own).items()}
    given = {names[bare]: tensors[name] for name, bare in plain.items() if bare in names}
    unexpected = [name for name, bare in plain.items() if bare not in names]
    by_identity = {id(own[name]): value for name, value in given.items()}
    missing = []
    for name, value in own.items():
        if name in given:
            continue
        if id(value) in by_identity:
            given[name] = by_identity[id(value)]
        elif name.endswith(COUNTER):
            given[name] = value
        else:
            missing.append(f"{name} {_shape(value)}")
    misshapen = [
        f"{name} {_shape(value)} where the model has {_shape(own[name])}"
        for name, value in given.items()
        if not isinstance(own[name], Tensor) or value.shape != own[name].shape
    ]
    unlike = [f"{name} {_kind(value)}" for name, value in given.items() if not _fits(value, own[name])]
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen, "of another kind": unlike}
    problems = [f"{len(items)} {kind}: {first_of(items)}" for kind, items in kinds.items() if items]
    if problems:
        raise WeightsError(f"{source} does not fit the {type(model).__name__}: {'; '.join(problems)}")
    model.load_state_dict(given)


def _fits(value: Any, own: Any) -> bool:
    """Whether a value can be copied into a tensor of the model without a loss that nobody asked for, or an error."""
    if not isinstance(value, Tensor) or not isinstance(own, Tensor) or value is own:
        return True
    # Integers instead of weights are quantised ones, whose scale is somewhere else.
    whole = own.is_floating_point() and not value.is_floating_point()
    return _is_plain(value) and not whole and (own.is_complex() or not value.is_complex())


def _is_plain(value: Any) -> bool:
    plain = isinstance(value, Tensor) and value.layout is torch.strided
    return plain and not value.is_quantized and not value.is_meta


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return " ".join((str(value.dtype).removeprefix("torch."), "" if value.is_meta else str(value.layout)[6:])).strip()


def _without_prefixes(tensors: Mapping[str, Any]) -> dict[str, str]:
    # From every name to the name it has inside all wrappers.
    bare = {name: name for name in tensors}
    while True:
        wrapped = {name: plain for name, plain in bare.items() if plain != AVERAGING_COUNTER}
        common = (p for p in WRAPPER_PREFIXES if all(plain.startswith(p) for plain in wrapped.values()))
        prefix = next(common, None) if wrapped else None
        if prefix is None:
            return bare
        bare = {name: plain.removeprefix(prefix) for name, plain in wrapped.items()}


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
