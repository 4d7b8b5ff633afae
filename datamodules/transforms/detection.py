"""Resizes and crops of detection: for the image, its boxes, masks and keypoints alike.

Images are resized as Pillow does (bilinear with antialiasing) and masks by torch's ``nearest``, which is what the
published detectors of the DETR family were trained with.
"""

from __future__ import annotations

from typing import Any

import albumentations as A
import numpy as np
from albumentations.augmentations.crops.transforms import BaseCrop
from albumentations.augmentations.geometric.functional import keypoints_scale
from PIL import Image
from typing_extensions import override

from datamodules.errors import OptionError
from datamodules.transforms.drawn_resize import DrawnResize


def fitted_size(height: int, width: int, size: int, max_size: int | None = None) -> tuple[int, int]:
    """Height and width when the shorter side becomes ``size``, or less where the longer would exceed ``max_size``.

    As published for DETR: the shorter side is rounded where the limit decides, the longer side is cut to an integer.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        size: Wanted length of the shorter side in pixels.
        max_size: Largest length of the longer side in pixels.

    Returns:
        Rows and columns, each at least 1.
    """
    short, long = sorted((height, width))
    if max_size is not None and long / short * size > max_size:
        size = max(1, round(max_size * short / long))
    other = int(size * long / short)
    return (size, other) if height <= width else (other, size)


class _Resize(DrawnResize):
    """A drawn resize by Pillow and torch's ``nearest``."""

    @override
    def apply(self, img: np.ndarray, size: tuple[int, int], **params: Any) -> np.ndarray:
        if img.shape[:2] == size:
            return img
        return np.asarray(Image.fromarray(img).resize(size[::-1], Image.Resampling.BILINEAR))

    @override
    def apply_to_mask(self, mask: np.ndarray, size: tuple[int, int], **params: Any) -> np.ndarray:
        rows, columns = (_nearest(old, new) for old, new in zip(mask.shape[:2], size, strict=True))
        return mask.take(columns, axis=1).take(rows, axis=0)

    @override
    def apply_to_bboxes(self, bboxes: np.ndarray, **params: Any) -> np.ndarray:
        """Boxes are relative to the image here."""
        return bboxes

    @override
    def apply_to_keypoints(self, keypoints: np.ndarray, size: tuple[int, int], **params: Any) -> np.ndarray:
        """Moves keypoints."""
        height, width = params["shape"][:2]
        return keypoints_scale(keypoints, size[1] / width, size[0] / height)


def _nearest(old: int, new: int) -> np.ndarray:
    """The old row (or column) of each new one, as torch's ``interpolate(mode="nearest")`` takes it, int64 [new]."""
    scale = np.float32(old) / np.float32(new)
    return np.minimum((np.arange(new, dtype=np.float32) * scale).astype(np.int64), old - 1)


class ResizeShortestEdge(_Resize):
    """Resizes to a shorter side drawn from ``sizes``, keeping proportions.

    Args:
        sizes: Lengths of the shorter side in pixels, equally likely; one for a fixed size.
        max_size: Largest longer side in pixels, which the shorter side gives way to; None for no limit.
        p: Probability of applying it to an image.

    Raises:
        OptionError: If there is no size or one below 1.
    """

    def __init__(self, sizes: list[int], max_size: int | None = None, p: float = 1.0) -> None:
        if not sizes or min(sizes) < 1 or (max_size is not None and max_size < 1):
            raise OptionError(
                f"sizes={sizes} and max_size={max_size} must be pixels, at least 1, such as [800] and 1333."
            )
        super().__init__(p=p)
        self.sizes, self.max_size = list(sizes), max_size

    @override
    def drawn_size(self, height: int, width: int) -> tuple[int, int]:
        return fitted_size(height, width, self.py_random.choice(self.sizes), self.max_size)


class ScaleJitter(_Resize):
    """Resizes so that the image just fits a square of ``size`` times a random scale (arXiv 2012.07177).

    Followed by ``RandomSizeCrop(size, size)`` this is large-scale jitter; the network pads what is smaller.

    Args:
        size: Side of the square in pixels.
        scales: Smallest and largest scale, uniformly drawn.
        p: Probability of applying it to an image.

    Raises:
        OptionError: If the range is empty or not positive.
    """

    def __init__(self, size: int = 1024, scales: tuple[float, float] = (0.1, 2.0), p: float = 1.0) -> None:
        if size < 1 or not 0 < scales[0] <= scales[1]:
            raise OptionError(
                f"size={size} must be at least 1 and scales={scales} a range above 0, such as (0.1, 2.0)."
            )
        super().__init__(p=p)
        self.size, self.scales = size, scales

    @override
    def drawn_size(self, height: int, width: int) -> tuple[int, int]:
        factor = self.size * self.py_random.uniform(*self.scales) / max(height, width)
        return max(1, round(height * factor)), max(1, round(width * factor))


class RandomSizeCrop(BaseCrop):
    """Crops a window at random, each of whose sides is drawn between two lengths and is no longer than the image's.

    Args:
        min_size: Shortest side in pixels.
        max_size: Longest side in pixels.
        p: Probability of applying it to an image.

    Raises:
        OptionError: If the range is empty or not positive.
    """

    def __init__(self, min_size: int, max_size: int, p: float = 1.0) -> None:
        if not 1 <= min_size <= max_size:
            raise OptionError(
                f"min_size={min_size} and max_size={max_size} must be a range of pixels, such as 384 and 600."
            )
        super().__init__(p=p)
        self.min_size, self.max_size = min_size, max_size

    @override
    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        left, right = self._interval(params["shape"][1])
        top, bottom = self._interval(params["shape"][0])
        return {"crop_coords": (left, top, right, bottom)}

    def _interval(self, length: int) -> tuple[int, int]:
        side = self.py_random.randint(min(self.min_size, length), min(self.max_size, length))
        start = self.py_random.randint(0, length - side)
        return start, start + side


class MultiScaleCrop(A.Sequential):
    """The augmentation of DETR, Deformable DETR, SMCA and SOLQ, after the flip.

    Either a resize to one of ``sizes``, or (equally likely) a resize to one of ``crop_sizes``, a crop with sides from
    ``crop`` and the resize to one of ``sizes``.

    Args:
        sizes: Lengths of the shorter side in pixels; None for 480 to 800 in steps of 32.
        max_size: Largest longer side in pixels.
        crop_sizes: Lengths of the shorter side before the crop.
        crop: Shortest and longest side of the crop in pixels.
        resize_first: Resize to one of ``sizes`` before all else, as SOLQ's code does.
    """

    def __init__(
        self,
        sizes: list[int] | None = None,
        max_size: int = 1333,
        crop_sizes: tuple[int, ...] = (400, 500, 600),
        crop: tuple[int, int] = (384, 600),
        resize_first: bool = False,
    ) -> None:
        sizes = list(range(480, 801, 32)) if sizes is None else sizes
        cropped = [
            ResizeShortestEdge(list(crop_sizes)),
            RandomSizeCrop(*crop),
            ResizeShortestEdge(sizes, max_size),
        ]
        choice = A.OneOf([ResizeShortestEdge(sizes, max_size), A.Sequential(cropped, p=1.0)], p=1.0)
        first = [ResizeShortestEdge(sizes, max_size)] if resize_first else []
        super().__init__([*first, choice], p=1.0)
