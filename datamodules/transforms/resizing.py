"""First step of a pipeline: crop and resize, of which the decoder can do a part."""

from __future__ import annotations

from dataclasses import dataclass

import albumentations as A
import cv2
import numpy as np
import torch
from torch.nn import functional

from datamodules.decoding import MAX_PIXELS, Box, Encoded
from datamodules.errors import DataError

MODES = {cv2.INTER_LINEAR: "bilinear", cv2.INTER_AREA: "bilinear", cv2.INTER_CUBIC: "bicubic"}


@dataclass(frozen=True)
class Resizing:
    """An albumentations crop or resize, done while decoding and with antialiasing.

    The crop is drawn from the size in the file's header; a JPEG is then decoded down to the crop's last row, at 1/2,
    1/4 or 1/8 of its size where the crop stays at least as large as the result.

    Args:
        transform: The transform whose crop (or size) is taken.
    """

    transform: A.RandomResizedCrop | A.Resize | A.SmallestMaxSize | A.LongestMaxSize

    @staticmethod
    def takes(transform: object) -> bool:
        """Whether a transform can be done this way: it always applies, to one size, by smooth interpolation."""
        if not isinstance(transform, A.RandomResizedCrop | A.Resize | A.SmallestMaxSize | A.LongestMaxSize):
            return False
        return transform.p == 1 and transform.interpolation in MODES

    def __call__(self, image: Encoded | np.ndarray) -> np.ndarray:
        """Crops and resizes one image.

        Args:
            image: Encoded, or uint8 [H,W,3].

        Returns:
            RGB, uint8 [H',W',3].

        Raises:
            DataError: If the image cannot be decoded, or is too elongated for a resize that keeps its proportions.
        """
        if isinstance(image, Encoded):
            opened = image.open()
            box, height, width = self._plan(opened.height, opened.width)
            region = opened.region(box, height, width)
        else:
            (left, top, right, bottom), height, width = self._plan(*image.shape[:2])
            region = image[top:bottom, left:right]
        return resize(region, height, width, MODES[self.transform.interpolation])

    def _plan(self, height: int, width: int) -> tuple[Box, int, int]:
        """The box to take of an image and the size it gets."""
        whole = (0, 0, width, height)
        if isinstance(self.transform, A.Resize):
            return whole, self.transform.height, self.transform.width
        drawn = self.transform.get_params_dependent_on_data({"shape": (height, width, 3)}, {})
        if isinstance(self.transform, A.RandomResizedCrop):
            return drawn["crop_coords"], *self.transform.size
        rows, columns = max(1, round(height * drawn["scale"])), max(1, round(width * drawn["scale"]))
        if rows * columns > MAX_PIXELS:
            raise DataError(f"{width}x{height} pixels are so elongated that they would be resized to {columns}x{rows}")
        return whole, rows, columns


def resize(image: np.ndarray, height: int, width: int, mode: str = "bilinear") -> np.ndarray:
    """Resizes with antialiasing, as Pillow does and OpenCV does not.

    Args:
        image: uint8 [H,W,3].
        height: Rows of the result.
        width: Columns of the result.
        mode: ``bilinear`` or ``bicubic``.

    Returns:
        uint8 [height,width,3].
    """
    if image.shape[:2] == (height, width):
        return image
    # Of a batch with the strides of interleaved pixels, torch makes pixels that are interleaved again; of anything
    # else, it unpacks planes first and packs planes afterwards, which takes as long as the resize.
    pixels = torch.from_numpy(np.ascontiguousarray(image)).view(1, *image.shape).permute(0, 3, 1, 2)
    resized = functional.interpolate(pixels, size=(height, width), mode=mode, antialias=True)
    return resized.permute(0, 2, 3, 1)[0].contiguous().numpy()
