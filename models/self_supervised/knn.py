"""Weighted nearest neighbours on features, which need no training of a classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows of similarities that are in memory at once.
_ROWS = 1024


def nearest(features: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest neighbours of features in a bank.

    Args:
        features: [n, C].
        bank: [N, C].
        k: Neighbours; all of a bank that has fewer.

    Returns:
        Cosine similarities, the largest first, and positions in the bank, int64; both [n, k].
    """
    known = F.normalize(bank, dim=1)
    found = [(part @ known.T).topk(min(k, len(known))) for part in F.normalize(features, dim=1).split(_ROWS)]
    similarities, positions = zip(*found, strict=True)
    return torch.cat(similarities), torch.cat(positions)


def knn_votes(
    features: Tensor, bank: Tensor, labels: Tensor, num_classes: int, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Votes of the k nearest neighbours for their classes, each exp(cosine similarity / temperature).

    Reference: "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", arXiv 1805.01978, section
    3.4, as DINO's code evaluates features.

    Args:
        features: Those to classify, [n, C].
        bank: Those of known class, [N, C].
        labels: Their classes, int64 [N].
        num_classes: Classes.
        k: Neighbours; all of a bank that has fewer.
        temperature: What similarities are divided by.

    Returns:
        [n, num_classes].
    """
    similarities, positions = nearest(features, bank, k)
    weights = (similarities / temperature).exp()
    return weights.new_zeros(len(features), num_classes).scatter_add_(1, labels[positions], weights)
