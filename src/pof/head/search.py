"""Find the head of a classifier by name, without running it.

The network is asked first (timm), then the usual names are looked for (torchvision, transformers), then the structure;
where more than one module could be meant, the candidates are listed.  A head is a layer whose output no later module
takes in.  Auxiliary and distillation heads are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pof._support.distributed import call_with, whole
from pof._support.modules import whole_name

# What torchvision, timm, transformers and widely copied training scripts call their head.
_USUAL_NAMES = {
    *("fc", "_fc", "classifier", "classif", "classification_head", "cls_head", "head", "heads", "mlp_head"),
    *("last_linear", "linear", "logits", "logits_proj", "out", "output", "score"),
}
_AUXILIARY = re.compile(r"(?:^|[._])(?:aux|distill|teacher|original_module|dist(?![a-z]))", re.IGNORECASE)
# After the head these change no logit, or (softmax, dropout) must not reach the logits.
_PASSIVE = (
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.Softmax, nn.LogSoftmax, nn.Sigmoid, nn.Sequential),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout),
)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_INPUT_SIZES = ("in_features", "in_channels", "num_features", "num_channels")
_SHOWN = 10


class HeadNotFoundError(ValueError):
    """No head, or more than one that could be meant; ``candidates`` are the names to choose from."""

    def __init__(self, message: str, candidates: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.candidates = tuple(candidates)


def find_head(model: nn.Module) -> str:
    """Find the last linear layer of a classifier, without running it.

    Asked in this order: timm's ``pretrained_cfg["classifier"]`` and ``get_classifier()``; a child with a usual name
    (``fc``, ``classifier``, ``head``, ``score``, ...); the last linear layer or 1x1 convolution in order of
    registration, if no other one could be meant.  Auxiliary and distillation heads are left out.  Wrappers
    (``DistributedDataParallel``, ``torch.compile``, a module around one network) are looked through.  Where more than
    dropout, flattening, softmax or sigmoid follows in an ``nn.Sequential`` (SqueezeNet: ReLU and pooling), that
    ``nn.Sequential`` is the head; where a module of a usual name adds to its last layer (LoRA, IA3, a scale), that
    module is.

    Args:
        model: any module.

    Returns:
        The qualified name, as in ``model.get_submodule(name)``.

    Raises:
        HeadNotFoundError: if there is none, or if there is doubt; it lists the candidates.
    """
    if is_layer(model):
        remedy = "as a linear probe put it into nn.Sequential"
        raise HeadNotFoundError(f"{type(model).__name__}: a layer alone is no network with a head; {remedy}", [])
    found = list(dict.fromkeys(around(model, name) for name in possible_heads(model) if name))
    if len(found) == 1:
        name = with_what_follows(model, found[0])
        # A container that is the whole network would leave no extractor; a lone layer is a linear probe.
        if name == found[0] or (name and parameter_count(model.get_submodule(name)) < parameter_count(model)):
            return name
    candidates = found if len(found) > 1 else all_layers(model)
    reason = "more than one module could be the head" if len(found) > 1 else "no module is clearly the head"
    raise HeadNotFoundError(f"{type(model).__name__}: {reason}; {describe_choice(candidates)}", candidates)


def possible_heads(module: nn.Module) -> list[str]:
    """Name the modules that could be the head; one name is an answer."""
    said = said_by(module)
    if said:
        return [found for name in without_auxiliary(said) for found in last_layer(module, name)]
    children = [(name, child) for name, child in module.named_children() if parameter_count(child)]
    lone = len(children) == 1 and next(module.parameters(recurse=False), None) is None
    if children and (lone or isinstance(module, nn.Sequential)):
        name, child = children[-1]
        ends = is_layer(child) or has_base_layer(child)
        return [name] if ends else [f"{name}.{inner}" for inner in possible_heads(child)]
    # A usual name decides, if no other end comes after it; without one, the only end must be the last of all.
    found = list(dict.fromkeys(around(module, name) for name in without_auxiliary(open_ends(module))))
    usual = [name for name in found if name.split(".")[0] in _USUAL_NAMES]
    last = [around(module, name) for name in without_auxiliary([name for name, _ in owners(module)])[-1:]]
    return usual if usual[-1:] == found[-1:] else found if last == found[-1:] else []


def said_by(module: nn.Module) -> list[str]:
    """What timm's networks say of themselves, if it exists in the network as it is now."""
    names = {name for name, _ in module.named_modules(remove_duplicate=False)}
    for attribute in ("pretrained_cfg", "default_cfg"):
        config = getattr(module, attribute, None)
        said = config.get("classifier") if isinstance(config, Mapping) else getattr(config, "classifier", None)
        listed = [said] if isinstance(said, str) else list(said or ())
        if listed and names.issuperset(listed):
            return listed
    getter: Any = getattr(module, "get_classifier", None)
    try:
        answer = getter() if callable(getter) else ()
    except AttributeError:
        # Its own head was replaced by a module of another shape: ``model.head = nn.Linear(...)``.
        return []
    modules = answer if isinstance(answer, (list, tuple)) else [answer]
    return [name for name, m in module.named_modules() if name and any(m is one for one in modules)]


def last_layer(root: nn.Module, name: str) -> list[str]:
    """The last layer inside a module that was named; one without any (a cosine classifier) stands for itself."""
    module = root.get_submodule(name)
    inside = without_auxiliary([inner for inner, m in module.named_modules() if is_layer(m)])
    return [f"{name}.{inside[-1]}".strip(".")] if inside else [name] if parameter_count(module) else []


def open_ends(module: nn.Module) -> list[str]:
    """Name the layers whose output size no later module takes.

    It may be taken whole, as one of two or three equal parts (gates; query, key, value), or, after a convolution,
    flattened.  What the network itself owns (class prototypes) may come last.

    Returns:
        Qualified names, in order of registration.
    """
    later = own_sizes(module)
    ends: list[str] = []
    for name, m in reversed(owners(module)):
        if is_layer(m):
            out = m.out_features if isinstance(m, nn.Linear) else m.out_channels
            flattened = isinstance(m, nn.Conv2d) and any(size % out == 0 for size in later)
            if not flattened and later.isdisjoint({out, out / 2, out / 3} - {1}):
                ends.insert(0, name)
        if not _AUXILIARY.search(name):
            later.update(input_sizes(m))
    return ends


def input_sizes(module: nn.Module) -> set[int]:
    stated = [getattr(module, attribute, None) for attribute in _INPUT_SIZES]
    stated += getattr(module, "normalized_shape", ())
    return {size for size in stated if isinstance(size, int)} | own_sizes(module)


def own_sizes(module: nn.Module) -> set[int]:
    if hasattr(module, "kernel_size"):
        return set()
    return {p.shape[-1] for p in module.parameters(recurse=False) if p.ndim > 1}


def around(model: nn.Module, name: str) -> str:
    """Return the module around a layer that modifies its output, or the layer where there is none.

    That is an adapter (LoRA, IA3: the module around ``base_layer``), or a module with a usual name that has a parallel
    branch of the same size, or parameters that are no layer's, such as a scale.
    """
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        outer = ".".join(parts[:end])
        module = model.get_submodule(outer)
        if has_base_layer(module):
            return outer
        if parts[end - 1] not in _USUAL_NAMES or isinstance(module, _CONTAINERS):
            continue
        layers = [module.get_submodule(inner) for inner in without_auxiliary(open_ends(module)) if inner]
        sizes = [layer.weight.shape[0] for layer in layers if is_layer(layer)]
        if len(set(sizes)) < len(sizes) or next(_loose_parameters(module), None) is not None:
            return outer
    return name


def has_base_layer(module: nn.Module) -> bool:
    """Tell an adapter in the way of peft."""
    return isinstance(getattr(module, "base_layer", None), nn.Module)


def _loose_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters of the module itself, or in its lists and dicts of parameters."""
    yield from module.parameters(recurse=False)
    for child in module.children():
        if isinstance(child, (nn.ParameterDict, nn.ParameterList)):
            yield from child.parameters()


def with_what_follows(model: nn.Module, name: str) -> str:
    """A layer, widened to the outermost nn.Sequential in which something follows that changes its output."""
    parts = name.split(".")
    for depth in range(len(parts)):
        parent, child = (model.get_submodule(".".join(parts[:end])) for end in (depth, depth + 1))
        if isinstance(parent, nn.Sequential):
            after = [m for later in list(parent)[list(parent).index(child) + 1 :] for m in later.modules()]
            if not all(isinstance(m, _PASSIVE) for m in after):
                return ".".join(parts[:depth])
    return name


def is_layer(module: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """A linear layer, or a convolution that is one on a 1x1 map."""
    if isinstance(module, nn.Conv2d):
        plain = module.padding in {(0, 0), "valid", "same"} and module.stride == (1, 1) and module.groups == 1
        return module.kernel_size == (1, 1) and plain
    return isinstance(module, nn.Linear)


def has_own_weight(head: nn.Module) -> bool:
    """Whether a head's parameters are its weight and bias, and not what these are computed from (weight norm)."""
    return {name for name, _ in head.named_parameters()} <= {"weight", "bias"}


def computes_linearly(head: nn.Module) -> bool:
    """Torch's own forwards are trusted, any other is tried (cosine heads differ, timm's ``Linear`` does not)."""
    if getattr(head.forward, "__func__", None) in {nn.Linear.forward, nn.Conv2d.forward}:
        return True
    if not has_own_weight(head):
        return False
    parameters = {name: whole(parameter) for name, parameter in head.named_parameters()}
    weight, bias = parameters["weight"].detach(), parameters.get("bias")
    probe = torch.linspace(-1, 1, 2 * weight[0].numel(), device=weight.device).to(weight.dtype)
    try:
        with torch.no_grad():
            output = call_with(head, parameters, probe.view(2, *weight.shape[1:]))
    except TypeError:
        # It asks for more than features, such as margin losses that want the labels.
        return False
    expected = F.linear(probe.view(2, -1), weight.flatten(1), bias)
    return isinstance(output, Tensor) and torch.allclose(output.flatten(1), expected, rtol=1e-2, atol=1e-2)


def without_auxiliary(names: list[str]) -> list[str]:
    """Leave out auxiliary heads, unless there is nothing else."""
    return [name for name in names if not _AUXILIARY.search(name)] or names


def parameter_count(module: nn.Module) -> int:
    return sum(1 for _ in module.parameters())


def owners(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules with parameters of their own; a parametrized layer counts itself, not its parametrization."""
    named = [(name, m) for name, m in module.named_modules() if "parametrizations" not in name.split(".")]
    return [(name, m) for name, m in named if is_layer(m) or next(m.parameters(recurse=False), None) is not None]


def all_layers(model: nn.Module) -> list[str]:
    return without_auxiliary([name for name, m in model.named_modules() if name and is_layer(m)])[::-1]


def describe_choice(candidates: Sequence[str]) -> str:
    if not candidates:
        return 'it has no linear layer and no 1x1 convolution: name its head with head="name"'
    more = f" and {len(candidates) - _SHOWN} more" if len(candidates) > _SHOWN else ""
    return f'name one with head="name"; candidates: {", ".join(map(repr, candidates[:_SHOWN]))}{more}'


def resolve(model: nn.Module, head: str) -> str:
    """The whole name of a module that a user named, or a HeadNotFoundError."""
    name = whole_name(model, head)
    if name is None or not parameter_count(model.get_submodule(name)):
        reason = f"head={head!r} has no parameters" if name else f"there is no module {head!r}"
        candidates = all_layers(model)
        raise HeadNotFoundError(f"{type(model).__name__}: {reason}; {describe_choice(candidates)}", candidates)
    inner = isinstance(getattr(model.get_submodule(name), "_orig_mod", None), nn.Module)
    return f"{name}._orig_mod" if inner else name
