"""FixMatch: what is sure of a weak view is the label of the strong one.

Reference: "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence", arXiv 2001.07685.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def fixmatch_loss(
    weak: Tensor, strong: Tensor, threshold: float = 0.95, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of strong views by the labels of weak ones that reach a threshold, equation 4.

    Args:
        weak: Logits [B, K] of the weak views, which get no gradient.
        strong: Logits [B, K] of the strong views.
        threshold: Least probability of a label that counts.
        temperature: What the logits of the weak views are divided by.

    Returns:
        The mean over all images, those that do not count included, a scalar; and which count, 0 or 1, [B].
    """
    confidence, labels = (weak.detach() / temperature).softmax(-1).max(-1)
    mask = (confidence >= threshold).to(strong.dtype)
    return (F.cross_entropy(strong, labels, reduction="none") * mask).mean(), mask
