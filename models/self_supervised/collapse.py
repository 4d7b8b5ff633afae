"""Whether representations still tell images apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def direction_sums(projections: Tensor) -> Tensor:
    """What `spread` needs to know of a batch: sums of the directions of projections and of their squares.

    Args:
        projections: [B, D].

    Returns:
        [2, D]; of several batches, add them.
    """
    directions = F.normalize(projections, dim=1)
    return torch.stack([directions.sum(0), directions.square().sum(0)])


def spread(sums: Tensor, count: int) -> Tensor:
    """How far directions are spread: their deviation in each channel, where 1 is uniform on the sphere and 0 one point.

    Reference: "Exploring Simple Siamese Representation Learning", arXiv 2011.10566, section 4.1.

    Args:
        sums: Of `direction_sums`, [2, D].
        count: Projections that they are of.
    """
    mean, square = (sums / count).unbind()
    return (square - mean.square()).clamp(min=0).sqrt().mean() * sums.shape[1] ** 0.5


def effective_rank(features: Tensor) -> Tensor:
    """How many directions features vary in: exp of the entropy of the singular values' shares.

    Reference: "RankMe", arXiv 2210.02885, equation 2.

    Args:
        features: [n, C].
    """
    values = torch.linalg.svdvals(features - features.mean(0))
    return torch.special.entr(values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)).sum().exp()
