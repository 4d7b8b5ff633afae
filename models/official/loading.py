"""How weights in our layout enter a network: whole, but for the parts that the network declares."""

import re
from collections.abc import Collection, Iterable, Mapping

from torch import Tensor, nn

from models.official.layout import COUNTER, LayoutError, check_keys, some

# Buffers that follow from a network's sizes: some versions of a network save them, others do not.
_DERIVED = re.compile(r"(.*\.)?(relative_position_index|relative_coords_table|attn_mask)")


def load(network: nn.Module, state: Mapping[str, Tensor], head_init_scale: float = 1.0) -> list[str]:
    """Put weights in our layout into a network, in place.

    A classifier of another number of classes is not loaded: the network keeps its freshly initialised one, multiplied
    by `head_init_scale`. With an equal number of classes the checkpoint's classifier is loaded as it is. Pointwise
    weights fit linear layers and 1x1 convolutions alike. Counters of batches and derived buffers may be missing. Parts
    that the network declares may be missing or left over, see `absent_parts` and `spare_parts`; whoever evaluates asks
    for them first. Anything else that does not fit is an error.

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
    declared = {name for names in _by_part(getattr(network, "fresh_parts", {}), own).values() for name in names}
    fitted = _with_what_follows(fitted, own, declared)
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


def _with_what_follows(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], declared: Collection[str]
) -> dict[str, Tensor]:
    """Weights with the network's own counters of batches and derived buffers, and without those it does not have.

    Parts that are declared are there as a whole.
    """
    counted = any(name.endswith(COUNTER) for name in state)
    added = {
        name: value
        for name, value in own.items()
        if name not in state
        and name not in declared
        and (_DERIVED.fullmatch(name) or (name.endswith(COUNTER) and not counted))
    }
    kept = {
        name: value
        for name, value in state.items()
        if name in own
        or not (_DERIVED.fullmatch(name) or (name.endswith(COUNTER) and f"{name.removesuffix(COUNTER)}.weight" in own))
    }
    return kept | added


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
    found = get_classifier()
    # A distilled DeiT has two.
    heads = found if isinstance(found, tuple) else (found,)
    mine = {id(parameter) for head in heads for parameter in head.parameters()}
    return [name for name, parameter in network.named_parameters() if id(parameter) in mine]
