"""Whether representations still tell images apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def spread(features: Tensor) -> Tensor:
    """How far directions are spread: their deviation in each channel, where 1 is uniform on the sphere and 0 one point.

    Reference: "Exploring Simple Siamese Representation Learning", arXiv 2011.10566, section 4.1.

    Args:
        features: [n, C].
    """
    directions = F.normalize(features, dim=1)
    return directions.std(0, unbiased=False).mean() * features.shape[1] ** 0.5


def effective_rank(features: Tensor) -> Tensor:
    """How many directions features vary in: exp of the entropy of the singular values' shares.

    Reference: "RankMe", arXiv 2210.02885, equation 2.

    Args:
        features: [n, C].
    """
    values = torch.linalg.svdvals(features - features.mean(0))
    return torch.special.entr(values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)).sum().exp()
