"""Resizes and crops of semantic segmentation: for the image and its labels alike.

Images are resized by OpenCV's bilinear and labels by its nearest interpolation, as in the published training codes.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import albumentations as A
import cv2
import numpy as np
from typing_extensions import override

from datamodules.errors import OptionError
from datamodules.label_maps import VOID
from datamodules.transforms.drawn_resize import DrawnResize
from datamodules.transforms.photometric import PhotometricDistortion
from datamodules.transforms.pipeline import Transform

Padding = Literal["end", "centre", "none"]
# What the networks' mean colour is in bytes: padding with it is padding with zero after normalisation.
MEAN_COLOUR = (124, 116, 104)
# How often a crop with too little variety is drawn again.
REDRAWS = 10


class _Resize(DrawnResize):
    """A drawn resize by OpenCV."""

    @override
    def apply(self, img: np.ndarray, size: tuple[int, int], **params: Any) -> np.ndarray:
        return cv2.resize(img, size[::-1], interpolation=cv2.INTER_LINEAR)

    @override
    def apply_to_mask(self, mask: np.ndarray, size: tuple[int, int], **params: Any) -> np.ndarray:
        return cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST)


class RandomLongSide(_Resize):
    """Resizes the longer side to ``long_side`` times a random multiple of 0.1, as HRNet's training does.

    Both sides are rounded half up, the shorter one from the rounded longer one.

    Args:
        long_side: Length of the longer side at scale 1, in pixels.
        scales: Smallest and largest scale; HRNet has 0.5 to 2.1, in steps of 0.1.
        p: Probability of applying it to an image.

    Raises:
        OptionError: If a length or scale is not positive.
    """

    def __init__(self, long_side: int = 2048, scales: tuple[float, float] = (0.5, 2.1), p: float = 1.0) -> None:
        _check_scales(scales, long_side)
        super().__init__(p=p)
        self.long_side, self.scales = long_side, scales

    @override
    def drawn_size(self, height: int, width: int) -> tuple[int, int]:
        steps = int((self.scales[1] - self.scales[0]) * 10 + 0.5)
        scale = self.scales[0] + self.py_random.randint(0, steps) / 10.0
        long = int(self.long_side * scale + 0.5)
        if height > width:
            return long, max(1, int(width * long / height + 0.5))
        return max(1, int(height * long / width + 0.5)), long


class RandomBox(_Resize):
    """Resizes, keeping proportions, into a box times a random scale, as MMSegmentation's ``RandomResize`` does.

    Args:
        long_side: Largest length of the longer side at scale 1, in pixels.
        short_side: Largest length of the shorter side at scale 1, in pixels.
        scales: Smallest and largest scale, uniformly drawn.
        p: Probability of applying it to an image.

    Raises:
        OptionError: If a length or scale is not positive.
    """

    def __init__(
        self, long_side: int = 2048, short_side: int = 512, scales: tuple[float, float] = (0.5, 2.0), p: float = 1.0
    ) -> None:
        _check_scales(scales, long_side, short_side)
        super().__init__(p=p)
        self.long_side, self.short_side, self.scales = long_side, short_side, scales

    @override
    def drawn_size(self, height: int, width: int) -> tuple[int, int]:
        scale = self.py_random.uniform(*self.scales)
        short, long = sorted((int(self.short_side * scale), int(self.long_side * scale)))
        factor = min(long / max(height, width), short / min(height, width))
        return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


class PaddedCrop(A.DualTransform):
    """Crops a window at random; what the image lacks is padded, with void labels.

    The horizontal place is drawn first.

    Args:
        height: Rows of the window.
        width: Columns of the window.
        max_class_share: Draw again, up to 10 times, while one class has at least this share of the labelled pixels
            (MMSegmentation's ``cat_max_ratio``); 1 takes the first draw.
        padding: ``end`` pads below and to the right, ``centre`` on all sides; ``none`` leaves a smaller image as it is.
        fill: RGB of padded pixels before normalisation.
        p: Probability of applying it to an image.

    Raises:
        OptionError: If a length, the share, the padding or the colour is out of range.
    """

    def __init__(
        self,
        height: int,
        width: int,
        max_class_share: float = 1.0,
        padding: Padding = "end",
        fill: tuple[int, int, int] = (0, 0, 0),
        p: float = 1.0,
    ) -> None:
        _check_window(height, width, padding, fill)
        if not 0 < max_class_share <= 1:
            raise OptionError(f"max_class_share={max_class_share} must be above 0 and at most 1, which takes any crop.")
        super().__init__(p=p)
        self.height, self.width, self.max_class_share = height, width, max_class_share
        self.padding, self.fill = padding, tuple(fill)

    @override
    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        padded = _padded(params["shape"], self.height, self.width)
        corner = self._corner(*padded)
        label = data.get("mask")
        if self.max_class_share < 1 and label is not None:
            for _ in range(REDRAWS):
                window = _window(label, *corner, self.height, self.width)
                if _largest_share(window) < self.max_class_share:
                    break
                corner = self._corner(*padded)
        return {"corner": corner}

    def _corner(self, height: int, width: int) -> tuple[int, int]:
        left = self.py_random.randint(0, width - self.width)
        return self.py_random.randint(0, height - self.height), left

    @override
    def apply(self, img: np.ndarray, corner: tuple[int, int], **params: Any) -> np.ndarray:
        return _pad(_window(img, *corner, self.height, self.width), self.height, self.width, self.padding, self.fill)

    @override
    def apply_to_mask(self, mask: np.ndarray, corner: tuple[int, int], **params: Any) -> np.ndarray:
        return _pad(_window(mask, *corner, self.height, self.width), self.height, self.width, self.padding, VOID)


class ClassBalancedCrop(PaddedCrop):
    """Crops a window around a random pixel of a random class, so that rare classes are seen as often as common ones.

    The class is drawn among those of the image, each equally likely; the window is a random one that holds the pixel.

    Args:
        height: Rows of the window.
        width: Columns of the window.
        share: Share of the images that are cropped in this way; the others are cropped anywhere.
        padding: ``end`` pads below and to the right, ``centre`` on all sides; ``none`` leaves a smaller image as it is.
        fill: RGB of padded pixels before normalisation.
        p: Probability of cropping at all.

    Raises:
        OptionError: If a length, the share, the padding or the colour is out of range.
    """

    def __init__(
        self,
        height: int,
        width: int,
        share: float = 0.5,
        padding: Padding = "end",
        fill: tuple[int, int, int] = (0, 0, 0),
        p: float = 1.0,
    ) -> None:
        if not 0 < share <= 1:
            raise OptionError(f"share={share} must be above 0 and at most 1.")
        super().__init__(height, width, padding=padding, fill=fill, p=p)
        self.share = share

    @override
    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        label = data.get("mask")
        if label is not None and self.py_random.random() < self.share:
            present = np.flatnonzero(_pixels_of_classes(label))
            if len(present):
                place = self._pixel(label, int(self.py_random.choice(present)))
                sizes = _padded(params["shape"], self.height, self.width)
                return {"corner": tuple(map(self._around, place, sizes, (self.height, self.width)))}
        return super().get_params_dependent_on_data(params, data)

    def _pixel(self, label: np.ndarray, chosen: int) -> tuple[int, int]:
        where = np.flatnonzero(label == chosen)
        row, column = divmod(int(where[self.py_random.randrange(len(where))]), label.shape[1])
        return row, column

    def _around(self, place: int, size: int, length: int) -> int:
        return self.py_random.randint(max(0, place - length + 1), min(place, size - length))


def hrnet_augmentation(height: int, width: int, long_side: int) -> list[Transform]:
    """A random scale, a crop and a flip, as published for HRNet and ADP-C on Cityscapes.

    Args:
        height: Rows of the crop.
        width: Columns of the crop.
        long_side: Length of the images' longer side at scale 1.
    """
    return [RandomLongSide(long_side), PaddedCrop(height, width), A.HorizontalFlip()]


def mmseg_augmentation(size: int, long_side: int, short_side: int) -> list[Transform]:
    """A random scale, a crop of some variety, a flip and colours, as MMSegmentation trains on ADE20K and Cityscapes.

    Args:
        size: Side of the square crop.
        long_side: Largest length of the longer side at scale 1.
        short_side: Largest length of the shorter side at scale 1.
    """
    return [
        RandomBox(long_side, short_side),
        PaddedCrop(size, size, max_class_share=0.75, padding="none"),
        A.HorizontalFlip(),
        PhotometricDistortion(),
        # Last, so that the colour stays what it is.
        A.PadIfNeeded(size, size, position="top_left", fill=MEAN_COLOUR, fill_mask=VOID),
    ]


def _check_scales(scales: tuple[float, float], *lengths: int) -> None:
    if not 0 < scales[0] <= scales[1] or min(lengths) < 1:
        raise OptionError(
            f"scales={scales} must be a range above 0 and lengths ({', '.join(map(str, lengths))}) at least 1 pixel."
        )


def _check_window(height: int, width: int, padding: str, fill: tuple[int, ...]) -> None:
    if height < 1 or width < 1 or padding not in get_args(Padding):
        raise OptionError(
            f"height={height} and width={width} must be at least 1 and padding={padding!r} one of "
            f"{', '.join(get_args(Padding))}."
        )
    if len(fill) != 3 or not all(0 <= part <= 255 for part in fill):
        raise OptionError(f"fill={fill} must be red, green and blue from 0 to 255.")


def _padded(shape: tuple[int, ...], height: int, width: int) -> tuple[int, int]:
    """Height and width once an image is padded to hold a window."""
    return max(shape[0], height), max(shape[1], width)


def _window(pixels: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    return pixels[top : top + height, left : left + width]


def _pad(pixels: np.ndarray, height: int, width: int, padding: str, fill: int | tuple[int, ...]) -> np.ndarray:
    below, right = height - pixels.shape[0], width - pixels.shape[1]
    top, left = (below // 2, right // 2) if padding == "centre" else (0, 0)
    if padding == "none" or (not below and not right):
        return pixels
    return cv2.copyMakeBorder(pixels, top, below - top, left, right - left, cv2.BORDER_CONSTANT, value=fill)


def _pixels_of_classes(label: np.ndarray) -> np.ndarray:
    """Pixels of each class, void left out, [255]; ten times faster than ``np.bincount``."""
    return cv2.calcHist([np.ascontiguousarray(label)], [0], None, [256], [0, 256]).reshape(-1)[:VOID]


def _largest_share(label: np.ndarray) -> float:
    """Share of the labelled pixels that the commonest class has; 1 where there are fewer than two classes."""
    counts = _pixels_of_classes(label)
    return float(counts.max() / counts.sum()) if np.count_nonzero(counts) > 1 else 1.0
