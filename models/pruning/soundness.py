"""Whether channels can go without changing what the others compute: tried, not believed."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from models.mistakes import Mistake
from models.pruning.groups import ChannelGroup, channel_groups
from models.pruning.plan import Plan, plan_of
from models.pruning.removal import masked, remove

# Of float64, relative to the largest output; a wrong channel changes an output by far more.
TOLERANCE = 1e-8


def prunable_groups(network: nn.Module, images: Tensor, part: str = "") -> tuple[list[ChannelGroup], list[str]]:
    """Groups of channels of which some can go, each of them tried.

    On a copy with weights of which none is zero or one by chance, a network without some channels of every group has to
    compute what its masked twin does. Where it does not, halves of the groups are tried until those are found that are
    at fault, and they stay whole.

    Args:
        network, images, part: See `channel_groups`.

    Returns:
        The groups, and the names of those that stay whole.

    Raises:
        Mistake: See `channel_groups`; or no group passes.
    """
    groups, whole = channel_groups(network, images, part)
    inside = network.get_submodule(part) if part else network
    trial = drawn_anew(copy.deepcopy(inside).cpu().double().eval())
    small = images[:1].cpu().double()
    prefix = f"{part}." if part else ""
    sound = _sound(trial, groups, small, prefix)
    if len(sound) < len(groups) and not _agree(trial, sound, small, prefix):
        sound = []
    if not sound:
        raise Mistake(
            f"{type(inside).__name__}: which of its channels go together cannot be told from its graph; name a part of "
            "it that is a plain convolutional network, such as its backbone"
        )
    kept = {group.name for group in sound}
    return sound, whole + [group.name for group in groups if group.name not in kept]


def drawn_anew(network: nn.Module) -> nn.Module:
    """Weights and statistics without zeros and ones, in place: a branch that starts at zero would hide its channels."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        if tensor.ndim > 1 and name.endswith("weight"):
            values = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.data = values * max(1, tensor[0].numel()) ** -0.5
        else:
            tensor.data = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.5
    return network


def _sound(network: nn.Module, groups: Sequence[ChannelGroup], images: Tensor, prefix: str) -> list[ChannelGroup]:
    if _agree(network, groups, images, prefix):
        return list(groups)
    if len(groups) == 1:
        return []
    half = len(groups) // 2
    return _sound(network, groups[:half], images, prefix) + _sound(network, groups[half:], images, prefix)


def _agree(network: nn.Module, groups: Sequence[ChannelGroup], images: Tensor, prefix: str) -> bool:
    """Whether a network without half of the channels of some groups computes what its masked twin does."""
    generator = torch.Generator().manual_seed(0)
    kept = {}
    for group in groups:
        units = torch.randperm(group.units, generator=generator)[: max(1, group.units // 2)].sort().values.tolist()
        kept[group.name] = [unit + r * group.units for r in range(group.repeats) for unit in units]
    plan = plan_of(network, groups, kept, {})
    plan = Plan(plan.network, {name.removeprefix(prefix): sides for name, sides in plan.layers.items()})
    small = copy.deepcopy(network)
    try:
        remove(small, plan)
        with torch.no_grad():
            ours, expected = _tensors(small(images)), _tensors(masked(network, plan)(images))
    except Exception:
        # Shapes that do not fit any more show in as many ways as there are layers.
        return False
    return len(ours) == len(expected) and all(
        a.shape == b.shape and (a - b).abs().max() <= TOLERANCE * b.abs().max()
        for a, b in zip(ours, expected, strict=True)
    )


def _tensors(outputs: object) -> list[Tensor]:
    return [each for each in tree_leaves(outputs) if isinstance(each, Tensor)]
