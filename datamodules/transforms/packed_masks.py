"""Object masks as bits of one picture, so that a transform moves eight masks at the price of one.

Whatever takes every pixel from one other pixel (nearest neighbour) or from outside (zero) moves bits as it moves
values.
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
import torch

# A part of a mask and where its top left corner lies: top, left, uint8 [h,w] of 0 and 1.
Patch = tuple[int, int, np.ndarray]


def pack(patches: Iterable[Patch], count: int, height: int, width: int) -> np.ndarray:
    """Packs object masks.

    Args:
        patches: A part of each of ``count`` masks, outside of which the mask is empty.
        count: Number of objects.
        height: Rows of the masks.
        width: Columns of the masks.

    Returns:
        uint8 [height,width,ceil(count / 8)]; object i is bit i % 8 of channel i // 8.
    """
    planes = np.zeros((-(-count // 8), height, width), np.uint8)
    for number, (top, left, mask) in enumerate(patches):
        planes[number // 8, top : top + mask.shape[0], left : left + mask.shape[1]] |= mask << np.uint8(number % 8)
    if len(planes) == 1:
        return planes[0][..., None]
    return cv2.merge(list(planes)) if count else np.empty((height, width, 0), np.uint8)


def unpack(packed: np.ndarray, objects: np.ndarray) -> torch.Tensor:
    """Masks of some objects.

    Args:
        packed: uint8 [H,W,k].
        objects: Positions of the wanted objects, int64 [n].

    Returns:
        bool [n,H,W].
    """
    height, width = packed.shape[:2]
    masks = np.zeros((len(objects), height, width), bool)
    planes = np.ascontiguousarray(packed.reshape(height, width, -1).transpose(2, 0, 1))
    # Objects are small: only the rows and columns in which they are take time.
    in_rows, in_columns = np.bitwise_or.reduce(planes, axis=2), np.bitwise_or.reduce(planes, axis=1)
    for number, mask in zip(objects.tolist(), masks, strict=True):
        plane, bit = number // 8, np.uint8(1 << number % 8)
        rows, columns = np.flatnonzero(in_rows[plane] & bit), np.flatnonzero(in_columns[plane] & bit)
        if len(rows):
            window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            np.not_equal(planes[plane][window] & bit, 0, out=mask[window])
    return torch.from_numpy(masks)
