"""Which channels and weights are kept, given how much each of them matters.

Counts and places in a sorted list are taken as the published code takes them, with Python's doubles:
`int(64 * (1 - 0.1))` is 57. Thresholds are exclusive, so that what equals one goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from models.mistakes import Mistake


def kept_count(width: int, ratio: float) -> int:
    """How many channels of a layer are left.

    Args:
        width: Channels of the layer.
        ratio: Share of them that goes, in [0, 1].
    """
    return int(width * (1 - ratio))


def keep_largest(scores: Tensor, count: int) -> Tensor:
    """Indices [count] of the largest scores, in their original order; of equal ones the first.

    Args:
        scores: Of each channel [C].
        count: How many are kept.
    """
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def slimming_threshold(gammas: Sequence[Tensor], percent: float) -> Tensor:
    """Scale up to which channels go, over all norms of a network at once.

    Args:
        gammas: Weights of the batch norms [C_i].
        percent: Share of all channels that goes, in [0, 1).
    """
    return _at(torch.cat([gamma.detach().abs().flatten() for gamma in gammas]), percent)


def slimming_mask(gamma: Tensor, threshold: Tensor, minimum: int = 0) -> Tensor:
    """Channels of one norm that are kept: bool [C].

    Args:
        gamma: Weight of the norm [C].
        threshold: Of `slimming_threshold`.
        minimum: Channels that a layer keeps in any case, those with the largest scale. The published code has no
            minimum and can empty a layer.
    """
    scores = gamma.detach().abs()
    mask = scores > threshold
    if mask.sum() < minimum:
        mask[keep_largest(scores, minimum)] = True
    return mask


def magnitude_threshold(weights: Mapping[str, Tensor], percent: float, of_survivors: bool = False) -> Tensor:
    """Absolute weight up to which weights go, over all layers at once.

    Args:
        weights: Of the layers, by name.
        percent: Share that goes, in [0, 1).
        of_survivors: Whether `percent` is a share of the weights that are not zero yet: one round of iterative
            magnitude pruning, as lottery tickets are drawn.
    """
    scores = torch.cat([weight.detach().abs().flatten() for weight in weights.values()])
    return _at(scores, percent, gone=int((scores == 0).sum()) if of_survivors else 0)


def magnitude_masks(
    weights: Mapping[str, Tensor], percent: float, of_survivors: bool = False
) -> tuple[dict[str, Tensor], Tensor]:
    """Weights that are kept, bool by name, and the threshold that they exceed.

    Args:
        weights, percent, of_survivors: See `magnitude_threshold`.
    """
    threshold = magnitude_threshold(weights, percent, of_survivors)
    return {name: weight.detach().abs() > threshold for name, weight in weights.items()}, threshold


def soft_filter_mask(scores: Tensor, keep: float) -> Tensor:
    """Filters that soft filter pruning leaves as they are: bool [out].

    Args:
        scores: Norm of each filter [out], of `l2_norm`.
        keep: Share of the filters that is kept; `int(out * (1 - keep))` are set to zero.
    """
    mask = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    mask[scores.argsort(stable=True)[: int(len(scores) * (1 - keep))]] = False
    return mask


def _at(scores: Tensor, percent: float, gone: int = 0) -> Tensor:
    if not 0 <= percent < 1:
        raise Mistake(f"a share of {percent:g} cannot be pruned: it is at least 0 and less than 1")
    return scores.sort().values[gone + int((len(scores) - gone) * percent)]
