"""Feature maps of any size as grids of one size.

Reference: "In Defense of Grid Features for Visual Question Answering", arXiv 2001.03615, as published for "TRAR:
Routing the Attention Spans in Transformer for Visual Question Answering", ICCV 2021.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

# Rows and columns that maps are brought to before they are pooled.
CANVAS = 32


def pooled_grid(features: Tensor, halvings: int = 2) -> Tensor:
    """A feature map on the canvas, pooled: cells beyond the image are zero, by which networks know them.

    A portrait is turned; what is smaller than the canvas stands in its middle, what is larger is cut off at the end.

    Args:
        features: [C, h, w], not negative.
        halvings: How often 2x2 cells become one, by their maximum: 1 for 16x16 cells, 2 for 8x8.

    Returns:
        [CANVAS / 2^halvings, the same, C].
    """
    if features.shape[1] > features.shape[2]:
        features = features.transpose(1, 2)
    features = features[:, :CANVAS, :CANVAS]
    missing = [CANVAS - length for length in features.shape[1:]]
    top, left = (each // 2 for each in missing)
    placed = F.pad(features, (left, missing[1] - left, top, missing[0] - top))
    for _ in range(halvings):
        placed = F.max_pool2d(placed, 2)
    return placed.permute(1, 2, 0)
