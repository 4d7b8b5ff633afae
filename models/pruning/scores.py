"""How much the channels of a group matter: criteria of single layers, brought together over the layers of a group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.mistakes import Mistake
from models.pruning import criteria
from models.pruning.groups import CONVOLUTIONS, NORMS, ChannelGroup, Slot, is_depthwise

# Scores [width] of a group's channels in a network.
Score = Callable[[nn.Module, ChannelGroup], Tensor]

CRITERIA = ("l1", "l2", "batch_norm_scale", "taylor", "random")


def score_by(criterion: str, seed: int = 0) -> Score:
    """One of this house's criteria, as a mean over all layers that make a group's channels.

    Args:
        criterion: `l1`, `l2`: norms of filters; `batch_norm_scale`: of network slimming; `taylor`: needs gradients;
            `random`: says nothing.
        seed: Of `random`.

    Raises:
        Mistake: There is no such criterion.
    """
    if criterion not in CRITERIA:
        raise Mistake(
            f"a criterion is one of {', '.join(CRITERIA)}, thinet, lasso, branch_scale or the class path of an "
            f"importance, not {criterion!r}"
        )
    generator = torch.Generator().manual_seed(seed)
    of_filters: Mapping[str, Callable[[str, Any], Tensor]] = {
        "l1": lambda name, layer: criteria.l1_norm(_filters(layer, layer.weight)),
        "l2": lambda name, layer: criteria.l2_norm(_filters(layer, layer.weight)),
        "taylor": lambda name, layer: criteria.taylor(
            _filters(layer, layer.weight), _filters(layer, _gradient(name, layer.weight))
        ),
        "random": lambda name, layer: criteria.random(_filters(layer, layer.weight), generator),
    }

    def score(network: nn.Module, group: ChannelGroup) -> Tensor:
        total, layers = torch.zeros(group.width), 0
        for slot in group.makers:
            module = _module(network, slot)
            if criterion == "batch_norm_scale":
                if not isinstance(module, NORMS) or getattr(module, "weight", None) is None:
                    continue
                scores = criteria.batch_norm_scale(module.weight)
            elif isinstance(module, (*CONVOLUTIONS, nn.Linear)) and not is_depthwise(module):
                scores = of_filters[criterion](slot.layer, module)
            else:
                continue
            total.index_add_(0, torch.tensor(slot.roots), scores.detach().cpu().float()[list(slot.places)])
            layers += 1
        if not layers:
            raise Mistake(
                f"layer {group.name} is followed by no norm with a scale: choose a criterion other than {criterion}"
            )
        return total / layers

    return score


def score_of_importance(importance: Any) -> Score:
    """An importance of torch-pruning's, such as `torch_pruning.importance.LAMPImportance()`.

    Args:
        importance: Takes a group of torch-pruning's and returns a score for each of its channels.
    """

    def score(network: nn.Module, group: ChannelGroup) -> Tensor:
        scores = importance(group.source)
        if scores is None or len(scores) != group.width:
            raise Mistake(f"{type(importance).__name__} has no scores for layer {group.name}: choose another criterion")
        return scores.detach().cpu().float()

    return score


def traced_copy(groups: Sequence[ChannelGroup]) -> nn.Module:
    """The copy of a network, or of its part, that torch-pruning's importances look at."""
    return groups[0].source._DG.model.network


def copy_gradients(network: nn.Module, groups: Sequence[ChannelGroup], part: str = "") -> None:
    """Gives the gradients of a network to the copy that torch-pruning's importances look at.

    Args:
        network: Has gradients.
        groups: Its groups.
        part: Of the network, that the groups are of.
    """
    copied = dict(traced_copy(groups).named_parameters())
    for name, parameter in (network.get_submodule(part) if part else network).named_parameters():
        if name in copied:
            copied[name].grad = None if parameter.grad is None else parameter.grad.detach().clone()


def _filters(layer: Any, weight: Tensor) -> Tensor:
    """Weights with the outputs in front, where a transposed convolution has its inputs."""
    return weight.transpose(0, 1) if getattr(layer, "transposed", False) else weight


def _gradient(name: str, weight: Tensor) -> Tensor:
    gradient = weight.grad
    if gradient is None:
        raise Mistake(f"layer {name} has no gradient, by which the criterion taylor would judge it: it is frozen")
    return gradient


def _module(network: nn.Module, slot: Slot) -> Any:
    try:
        return network.get_submodule(slot.layer)
    except AttributeError:
        return None
