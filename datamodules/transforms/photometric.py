"""Changes of brightness, contrast, saturation and hue, as MMSegmentation trains with."""

from __future__ import annotations

from typing import Any

import albumentations as A
import cv2
import numpy as np
from typing_extensions import override

from datamodules.errors import OptionError

LEVELS = np.arange(256, dtype=np.float32)


class PhotometricDistortion(A.ImageOnlyTransform):
    """Changes brightness, contrast, saturation and hue, each with probability 0.5 (the SSD recipe, arXiv 1512.02325).

    Brightness comes first; contrast before or after saturation and hue, equally likely; every step is rounded down
    to bytes.

    Args:
        brightness: Largest change, in grey levels.
        contrast: Smallest and largest factor.
        saturation: Smallest and largest factor, in HSV.
        hue: Largest turn, in units of two degrees, as OpenCV has it.
        p: Probability of applying it to an image.

    Raises:
        OptionError: If a range is empty or negative.
    """

    def __init__(
        self,
        brightness: float = 32,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: int = 18,
        p: float = 1.0,
    ) -> None:
        if not 0 <= brightness <= 255 or not 0 <= hue <= 90:
            raise OptionError(f"brightness={brightness} must be from 0 to 255 and hue={hue} from 0 to 90.")
        if not 0 <= contrast[0] <= contrast[1] or not 0 <= saturation[0] <= saturation[1]:
            raise OptionError(f"contrast={contrast} and saturation={saturation} must be ranges from 0 on.")
        super().__init__(p=p)
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue

    @override
    def get_params(self) -> dict[str, Any]:
        """Draws the changes, with the sample's own random numbers; those that are not made are neutral."""
        random = self.py_random

        def changed() -> bool:
            return random.random() < 0.5

        return {
            "shift": random.uniform(-self.brightness, self.brightness) if changed() else 0.0,
            "contrast_first": changed(),
            "contrast": random.uniform(*self.contrast) if changed() else 1.0,
            "saturation": random.uniform(*self.saturation) if changed() else 1.0,
            "hue": random.randint(-self.hue, self.hue) if changed() else 0,
        }

    @override
    def apply(
        self,
        img: np.ndarray,
        shift: float,
        contrast_first: bool,
        contrast: float,
        saturation: float,
        hue: int,
        **params: Any,
    ) -> np.ndarray:
        tones = _bytes(LEVELS + shift)
        if contrast_first:
            tones = _bytes(tones * np.float32(contrast))
        img = cv2.LUT(img, tones)
        if saturation != 1 or hue:
            table = np.stack([(LEVELS + hue) % 180, LEVELS * np.float32(saturation), LEVELS], axis=1)
            img = cv2.cvtColor(img, cv2.COLOR_RGB2HSV)
            img = cv2.cvtColor(cv2.LUT(img, _bytes(table)[None]), cv2.COLOR_HSV2RGB)
        return img if contrast_first else cv2.LUT(img, _bytes(LEVELS * np.float32(contrast)))


def _bytes(levels: np.ndarray) -> np.ndarray:
    return levels.clip(0, 255).astype(np.uint8)
