"""Boxes as deltas to reference boxes: shifts of the centre in sides, and logarithms of scales.

Reference: "Rich feature hierarchies for accurate object detection", arXiv 1311.2524, appendix C.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.detectors.conventions import LARGEST_LOG_SCALE


def encode(boxes: Tensor, references: Tensor, stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Deltas that lead from reference boxes to boxes.

    Args:
        boxes: [N, 4], x1 y1 x2 y2 in pixels.
        references: [N, 4], likewise.
        stds: What the deltas (x, y, width, height) are divided by.

    Returns:
        [N, 4], float32.
    """
    centre, size = _centre_size(boxes.float())
    reference_centre, reference_size = _centre_size(references.float())
    deltas = torch.cat([(centre - reference_centre) / reference_size, (size / reference_size).log()], -1)
    return deltas / deltas.new_tensor(stds)


def decode(
    deltas: Tensor, references: Tensor, clamps_shrinking: bool, stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0)
) -> Tensor:
    """Boxes that deltas lead to from reference boxes; the inverse of `encode`.

    Args:
        deltas: [..., 4].
        references: Boxes that broadcast against `deltas`, x1 y1 x2 y2 in pixels.
        clamps_shrinking: See `Convention`.
        stds: See `encode`.

    Returns:
        [..., 4], x1 y1 x2 y2 in pixels, float32.
    """
    deltas = deltas.float()
    deltas = deltas * deltas.new_tensor(stds)
    centre, size = _centre_size(references.float())
    least = -LARGEST_LOG_SCALE if clamps_shrinking else None
    half = size * deltas[..., 2:].clamp(min=least, max=LARGEST_LOG_SCALE).exp() / 2
    centre = centre + deltas[..., :2] * size
    return torch.cat([centre - half, centre + half], -1)


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
