"""Joints from heat maps, and heat maps of mirrored images.

Reference: "Deep High-Resolution Representation Learning for Human Pose Estimation", arXiv 1902.09212, section 3, and
its published code.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# A person's scale counts in these pixels.
SCALE_UNIT = 200


def peaks(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    """The hottest cell of each map.

    Args:
        heatmaps: [B, J, H, W].

    Returns:
        x, y in cells, float32 [B, J, 2], 0 where no cell is positive; and the heat there, float32 [B, J].
    """
    scores, places = heatmaps.float().flatten(2).max(2)
    width = heatmaps.shape[3]
    points = torch.stack([places % width, places // width], 2).float()
    return points * (scores > 0)[..., None], scores


def decode(heatmaps: Tensor, centre: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Joints in pixels of the image that the input was cut from, unrotated.

    A peak that is off the border moves a quarter of a cell towards its hotter neighbour, along each axis.

    Args:
        heatmaps: [B, J, H, W].
        centre: x, y of each person in pixels, [B, 2].
        scale: Width of the crop in units of 200 pixels, [B].

    Returns:
        x, y, float32 [B, J, 2], and scores, float32 [B, J].
    """
    height, width = heatmaps.shape[2:]
    points, scores = peaks(heatmaps)
    maps = heatmaps.float().flatten(2)
    x, y = points.unbind(2)
    inner = (x > 1) & (x < width - 1) & (y > 1) & (y < height - 1)
    cell = (y * width + x).long()

    def slope(step: int) -> Tensor:
        # Cells at the border are read from the nearest place inside, and not moved.
        ahead, behind = (
            maps.gather(2, (cell + offset).clamp(0, height * width - 1)[..., None]) for offset in (step, -step)
        )
        return (ahead - behind)[..., 0].sign()

    shift = 0.25 * torch.stack([slope(1), slope(width)], 2) * inner[..., None]
    middle = points.new_tensor([width / 2, height / 2])
    pixels = (SCALE_UNIT / width * scale.float())[:, None, None]
    return (points + shift - middle) * pixels + centre.float()[:, None], scores


def mirror_back(heatmaps: Tensor, mirrored: Sequence[int], shift: bool = True) -> Tensor:
    """Heat maps of mirrored images as those of the images themselves.

    Args:
        heatmaps: [B, J, H, W].
        mirrored: Joint that takes the place of each one in a mirror, [J].
        shift: Move them right by one cell, because a cell's stride puts the mirror between the cells; the first column
            stays.

    Returns:
        [B, J, H, W].
    """
    maps = heatmaps.flip(3)[:, list(mirrored)]
    return torch.cat([maps[..., :1], maps[..., :-1]], 3) if shift else maps
