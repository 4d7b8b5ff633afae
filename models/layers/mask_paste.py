"""Pasting the small mask of an object into its image.

Reference: "SOLQ: Segmenting Objects by Learning Queries", NeurIPS 2021, arXiv 2106.02351; "Mask R-CNN", ICCV 2017,
arXiv 1703.06870, section 3.1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Pixels that are resampled at a time, or those of one image if it has more: what a processor's cache holds is fastest.
PIXELS_AT_A_TIME = 1 << 20


def paste(maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear samples of each map in its box at the centres of an image's pixels, kept where at least one half.

    A map is zero outside of its box. Rows and columns are resampled one after the other, and no more of both than a
    fixed number of pixels at a time.

    Args:
        maps: bool or float [n, S, S].
        boxes: [n, 4] xyxy in pixels of the image; they may reach beyond it.
        size: height and width of the image in pixels.

    Returns:
        bool [n, height, width].
    """
    height, width = size
    boxes = boxes.float()
    x0, y0, x1, y1 = boxes.unbind(1)
    if torch.compiler.is_exporting():
        # A graph has no loop of as many rounds as there are objects.
        across = _resample(maps.float().mT, x0, x1, width).mT
        return _resample(across, y0, y1, height) >= 0.5
    step = max(PIXELS_AT_A_TIME // max(height * width, 1), 1)
    pasted = torch.empty(len(maps), height, width, dtype=torch.bool, device=maps.device)
    for first in range(0, len(maps), step):
        part = slice(first, first + step)
        across = _resample(maps[part].float().mT, x0[part], x1[part], width).mT.contiguous()
        pasted[part] = _resample(across, y0[part], y1[part], height) >= 0.5
    return pasted


def _resample(rows: Tensor, low: Tensor, high: Tensor, length: int) -> Tensor:
    """Rows [n, S, c], which span [low, high) each, at the centres of `length` pixels: [n, length, c]."""
    size = rows.shape[1]
    centres = torch.arange(length, device=rows.device) + 0.5
    places = (centres - low[:, None]) / (high - low)[:, None] * size - 0.5
    # Rows of zeros around: from one row beyond either end on, everything is zero.
    rows = F.pad(rows, (0, 0, 1, 2))
    places = places.clamp(-1, size) + 1
    above = places.floor()
    # What is not a number, of a box without area, may come from any row: it stays one.
    first = above.nan_to_num().long() + torch.arange(rows.shape[0], device=rows.device)[:, None] * rows.shape[1]
    flat = rows.flatten(0, 1)
    return torch.lerp(flat[first], flat[first + 1], (places - above)[..., None])
