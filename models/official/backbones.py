"""Backbones between networks that learn without labels, which hold two of them, and networks of one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from models.official.layout import State

# Where the backbones of a student and of its teacher are.
_SIDES = {side: f"{side}.backbone." for side in ("student", "teacher")}
# What only learners have whose teacher is evaluated: DINO's centre.
_TEACHERS = ("centre.value",)


@dataclass(frozen=True)
class Fitted:
    """Weights under the names of a network that they are not of.

    Args:
        state: Weights for the whole network.
        taken: What was taken, a phrase.
        absent: Names of the network's parameters and buffers that there is nothing for, by part.
        spare: Names of the weights that it has no place for, by part.
    """

    state: State
    taken: str
    absent: Mapping[str, list[str]]
    spare: Mapping[str, list[str]]


def holds_sides(names: Collection[str]) -> bool:
    """Whether names are those of a student and a teacher, each with a backbone."""
    return all(any(name.startswith(prefix) for name in names) for prefix in _SIDES.values())


def published_backbone(state: Mapping[str, Tensor], side: str | None = None) -> tuple[State, str]:
    """The backbone in weights of a student and a teacher.

    Args:
        state: Weights of both.
        side: Whose; by default that which the paper evaluates.

    Returns:
        Weights of the backbone alone, and whose they are.
    """
    if not isinstance(side, str) or side not in _SIDES:
        # A file of somebody else's may say anything.
        side = "teacher" if any(name in state for name in _TEACHERS) else "student"
    prefix = _SIDES[side]
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}, side


def into_classifier(network: nn.Module, state: Mapping[str, Tensor], side: str | None = None) -> Fitted:
    """Weights of a learner for a network that is its backbone, perhaps with a classifier, which stays as it is.

    Args:
        network: Network of one backbone.
        state: Weights of a student and a teacher.
        side: Whose backbone; by default that which the paper evaluates.
    """
    backbone, side = published_backbone(state, side)
    own = network.state_dict()
    fresh = _behind_features(network, [name for name in own if name not in backbone], backbone)
    rest = [name for name in state if not name.startswith(_SIDES[side])]
    taken = f"the {side}'s backbone is taken ({len(backbone)} tensors)"
    return Fitted(backbone | {name: own[name] for name in fresh}, taken, _by_part(fresh), _by_part(rest))


def of_another_kind(network: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether weights of a student and a teacher have other parts than a learner, beside their backbones."""
    parts = [
        set(_by_part([name for name in names if not name.startswith(tuple(_SIDES.values()))]))
        for names in (network.state_dict(), state)
    ]
    return parts[0] != parts[1]


def into_learner(network: nn.Module, state: Mapping[str, Tensor], side: str | None = None) -> Fitted:
    """Weights of one backbone for the student and the teacher of a learner, whose other parts stay as they are.

    Args:
        network: Network of a student and a teacher.
        state: Weights of a network of timm's or ours, perhaps with a classifier; or of another student and teacher.
        side: Whose backbone of these; by default that which the paper evaluates.
    """
    rest: list[str] = []
    if holds_sides(state):
        whole, (state, side) = state, published_backbone(state, side)
        rest = [name for name in whole if not name.startswith(_SIDES[side])]
    own = network.state_dict()
    backbones = [name for name in own if name.startswith(tuple(_SIDES.values()))]
    names = {name.removeprefix(prefix) for name in backbones for prefix in _SIDES.values()}
    backbone = network.get_submodule(_SIDES["student"][:-1])
    spare = _behind_features(backbone, [name for name in state if name not in names], names)
    kept = {name: value for name, value in state.items() if name not in spare}
    fresh = [name for name in own if name not in backbones]
    placed = {prefix + name: value for prefix in _SIDES.values() for name, value in kept.items()}
    taken = f"taken as the backbone of student and teacher ({len(kept)} tensors)"
    return Fitted(placed | {name: own[name] for name in fresh}, taken, _by_part(fresh), _by_part([*spare, *rest]))


def _behind_features(network: nn.Module, names: Collection[str], backbone: Collection[str]) -> list[str]:
    """Those of some names that are of a classifier: timm says where a network's is; of others, a part by itself is."""
    said = getattr(network, "pretrained_cfg", {}).get("classifier")
    if said:
        places = tuple(f"{place}." for place in ([said] if isinstance(said, str) else said))
        return [name for name in names if name.startswith(places)]
    parts = {name.partition(".")[0] for name in backbone}
    return [name for name in names if name.partition(".")[0] not in parts]


def _by_part(names: Collection[str]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    for name in names:
        part = ".".join(name.split(".")[: 2 if name.startswith(tuple(_SIDES)) else 1])
        parts.setdefault(part, []).append(name)
    return parts
