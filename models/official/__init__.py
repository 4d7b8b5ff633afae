"""Official checkpoint layouts and ours, one file a system.

Every file offers the same four functions: `matches(state)` and `matches_ours(state)` recognise a layout by its key
names, `to_ours(state)` and `to_official(state)` rename and reshape. A key that has no place in the layout, or one
that is missing from it, is a `LayoutError` that names it: nothing is dropped in silence.

This file holds what all of them share: which entry of a checkpoint has the weights, and how weights enter a network.
"""

import pkgutil
import re
from collections.abc import Iterable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import Tensor, nn

State = dict[str, Tensor]


class LayoutError(ValueError):
    """A checkpoint that is not in the layout it should be in."""


def systems() -> list[str]:
    """Names of the systems whose official layouts are known."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def layout(system: str) -> ModuleType:
    """The file of a system, with its four functions.

    Raises:
        LayoutError: No such system.
    """
    if system not in systems():
        raise LayoutError(f"unknown system {system!r}; known: {', '.join(systems())}")
    return import_module(f"{__name__}.{system}")


def system_of(state: Mapping[str, Tensor], to: str = "ours") -> str:
    """The system that weights belong to, by their key names.

    Args:
        state: Weights, in an official layout when `to` is `ours`, in ours when it is `official`.
        to: Where they are to be converted to.

    Raises:
        LayoutError: No system knows these keys, or several do.
    """
    recognise = "matches" if to == "ours" else "matches_ours"
    found = [system for system in systems() if getattr(layout(system), recognise)(state)]
    if len(found) != 1:
        which = f"more than one system ({', '.join(found)})" if found else f"none of the systems {', '.join(systems())}"
        source = "official" if to == "ours" else "our"
        raise LayoutError(f"the keys ({some(state)}) fit the {source} layout of {which}")
    return found[0]


def unwrap(checkpoint: Any, ema: bool = False) -> State:
    """The weights in a loaded checkpoint.

    Understands bare state dicts, `{"model": ...}` with an optional `model_ema`, `{"state_dict": ...}` of detection
    toolboxes, `{"model_state_dict": ...}` of DVT, and our Lightning checkpoints, in which the network's keys begin with
    `network.` and in which an averaging callback has put the average first.

    Args:
        checkpoint: What `torch.load` or safetensors returned.
        ema: Whether to take the averaged weights instead of the raw ones.

    Raises:
        LayoutError: No weights in it, or no averaged ones although asked for.
    """
    if not isinstance(checkpoint, Mapping):
        raise LayoutError(f"not a checkpoint: it holds a {type(checkpoint).__name__}, not named tensors")
    averaged = "state_dict" if "averaging_state" in checkpoint else "model_ema"
    if ema and averaged not in checkpoint:
        raise LayoutError(f"no averaged weights in it (it has {some(checkpoint)})")
    raw = ("current_model_state", "model", "state_dict", "model_state_dict")
    entry = averaged if ema else next((name for name in raw if isinstance(checkpoint.get(name), Mapping)), None)
    state = checkpoint if entry is None else checkpoint[entry]
    if any(name.startswith("network.") for name in state):
        state = {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}
    strangers = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if strangers or not state:
        raise LayoutError(f"no weights in it (it has {some(strangers or checkpoint)})")
    return dict(state)


def foreign(state: Mapping[str, Tensor]) -> bool:
    """Whether weights are in some system's official layout, to be translated before they are loaded."""
    return any(layout(system).matches(state) for system in systems())


def load(network: nn.Module, state: Mapping[str, Tensor], head_init_scale: float = 1.0) -> list[str]:
    """Put weights in our layout into a network, in place.

    A classifier of another number of classes is not loaded: the network keeps its freshly initialised one, multiplied
    by `head_init_scale`. With an equal number of classes the checkpoint's classifier is loaded as it is. Pointwise
    weights fit linear layers and 1x1 convolutions alike. Parts that the network declares may be missing or left over,
    see `absent_parts` and `spare_parts`; whoever evaluates asks for them first. Anything else that does not fit is an
    error.

    Args:
        network: timm network, ours or theirs.
        state: Weights, in our layout.
        head_init_scale: Factor on weight and bias of a classifier that is not loaded.

    Returns:
        Names of the parameters and buffers that were not loaded: of parts that are absent, then of the classifier.

    Raises:
        LayoutError: Keys or shapes other than the network's.
    """
    own = network.state_dict()
    spare = {name for names in spare_parts(network, state).values() for name in names}
    absent = [name for names in absent_parts(network, state).values() for name in names]
    fitted = {name: value for name, value in state.items() if name not in spare} | {name: own[name] for name in absent}
    for name in fitted.keys() & own.keys():
        if fitted[name].shape != own[name].shape and _pointwise(fitted[name]) == _pointwise(own[name]):
            fitted[name] = fitted[name].reshape(own[name].shape)
    classifier = _classifier_names(network)
    dropped = [name for name in classifier if name in fitted and fitted[name].shape != own[name].shape]
    dropped = classifier if dropped else []
    for name in dropped:
        fitted[name] = own[name] * head_init_scale
    check_keys(fitted, set(own), type(network).__name__)
    wrong = [
        f"{name} is {tuple(fitted[name].shape)}, not {tuple(value.shape)}"
        for name, value in own.items()
        if fitted[name].shape != value.shape
    ]
    if wrong:
        raise LayoutError(f"weights of another size than {type(network).__name__}'s: {some(wrong)}")
    network.load_state_dict(fitted)
    return absent + dropped


def absent_parts(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The parts that a training may start without, and that weights have nothing of.

    A network declares them as `fresh_parts`: what they are called, and a regular expression for the whole names of
    their parameters and buffers. A name that several match belongs to the first. A part that weights have some of is
    not absent, and `load` misses the rest.

    Args:
        network: Network.
        state: Weights, in our layout.

    Returns:
        Names of parameters and buffers, by part.
    """
    parts = _by_part(getattr(network, "fresh_parts", {}), network.state_dict())
    return {part: names for part, names in parts.items() if state.keys().isdisjoint(names)}


def spare_parts(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The parts of weights that a network has no place for, and says so.

    A network declares them as `spare_parts`, like the `fresh_parts` of `absent_parts`, where it is trained from
    weights of a larger one.

    Args:
        network: Network.
        state: Weights, in our layout.

    Returns:
        Names of weights, by part.
    """
    own = network.state_dict()
    return _by_part(getattr(network, "spare_parts", {}), [name for name in state if name not in own])


def check_keys(state: Mapping[str, Tensor], expected: set[str], what: str) -> None:
    """Refuse keys that are missing or unknown.

    Raises:
        LayoutError: Naming them.
    """
    missing, unknown = sorted(expected - state.keys()), sorted(state.keys() - expected)
    complaints = [f"{kind} {some(names)}" for kind, names in (("missing", missing), ("unknown", unknown)) if names]
    if complaints:
        raise LayoutError(f"keys do not fit {what}: {'; '.join(complaints)}")


def some(names: Any, limit: int = 6) -> str:
    """A readable list: the first few names and how many more there are."""
    listed = [str(name) for name in names]
    return ", ".join(listed[:limit]) + (f" and {len(listed) - limit} more" if len(listed) > limit else "")


def _pointwise(weight: Tensor) -> tuple[int, ...]:
    # A 1x1 convolution is a linear layer with two more axes of length one.
    return tuple(weight.shape[:2]) if weight.shape[2:] == (1, 1) else tuple(weight.shape)


def _by_part(patterns: Mapping[str, str], names: Iterable[str]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    for name in names:
        if part := next((part for part, pattern in patterns.items() if re.fullmatch(pattern, name)), None):
            parts.setdefault(part, []).append(name)
    return parts


def _classifier_names(network: nn.Module) -> list[str]:
    get_classifier = getattr(network, "get_classifier", None)
    if not callable(get_classifier):
        return []
    mine = {id(parameter) for parameter in get_classifier().parameters()}
    return [name for name, parameter in network.named_parameters() if id(parameter) in mine]


__all__ = [
    "LayoutError",
    "State",
    "absent_parts",
    "check_keys",
    "foreign",
    "layout",
    "load",
    "some",
    "spare_parts",
    "system_of",
    "systems",
    "unwrap",
]
