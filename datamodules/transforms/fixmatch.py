"""Strong augmentation of FixMatch: RandAugment as its code draws it, on Pillow's operations.

Reference: "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence", arXiv 2001.07685, appendix
D.2, and its published code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import albumentations as A
import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from typing_extensions import override

from datamodules.errors import OptionError

Levels = Literal["port", "official"]

# Highest level; levels are drawn from 1 to one below.
_LEVELS = 10
_ENHANCEMENTS = {
    "Brightness": ImageEnhance.Brightness,
    "Color": ImageEnhance.Color,
    "Contrast": ImageEnhance.Contrast,
    "Sharpness": ImageEnhance.Sharpness,
}
# In the order in which the published code numbers them.
OPERATIONS = (
    *("AutoContrast", "Brightness", "Color", "Contrast", "Equalize", "Identity", "Posterize", "Rotate", "Sharpness"),
    *("ShearX", "ShearY", "Solarize", "TranslateX", "TranslateY"),
)
# Those that go either way.
SIGNED = frozenset({"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"})


def operate(image: Image.Image, name: str, level: int, negative: bool = False, levels: Levels = "port") -> Image.Image:
    """An image after one operation.

    Args:
        image: RGB.
        name: One of `OPERATIONS`.
        level: How strong, from 1 to 9.
        negative: Whether an operation of `SIGNED` goes the other way.
        levels: What a level means: as the PyTorch port has it, or as the official code.
    """
    port, v, sign = levels == "port", level, -1 if negative else 1
    if name in _ENHANCEMENTS:
        factor = 0.9 * v / _LEVELS + 0.05 if port else 1.8 * v / _LEVELS + 0.1
        return _ENHANCEMENTS[name](image).enhance(factor)
    if name == "AutoContrast":
        return ImageOps.autocontrast(image)
    if name == "Equalize":
        return ImageOps.equalize(image)
    if name == "Posterize":
        bits = int(4 * v / _LEVELS)
        return ImageOps.posterize(image, 4 + bits if port else 4 - bits)
    if name == "Solarize":
        return ImageOps.solarize(image, 256 - int(256 * v / _LEVELS))
    if name == "Rotate":
        return image.rotate(sign * int(30 * v / _LEVELS))
    if name in ("ShearX", "ShearY"):
        shear = sign * 0.3 * v / _LEVELS
        return _moved(image, (1, shear, 0, 0, 1, 0) if name == "ShearX" else (1, 0, 0, shear, 1, 0))
    if name in ("TranslateX", "TranslateY"):
        along = name == "TranslateX"
        shift = sign * (int(0.3 * v / _LEVELS * image.size[0 if along else 1]) if port else v)
        return _moved(image, (1, 0, shift, 0, 1, 0) if along else (1, 0, 0, 0, 1, shift))
    return image


def _moved(image: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, coefficients)


def cut_out(image: Image.Image, x: float, y: float, size: int, levels: Levels = "port") -> Image.Image:
    """An image without a square.

    Args:
        image: RGB.
        x, y: Centre of the square.
        size: Side of the square; that of the port has a pixel more, is grey, and is moved where it would reach over the
            first row or column; the official one is black and cut there.
        levels: Whose square it is.
    """
    width, height = image.size
    if levels == "port":
        left, top = int(max(0, x - size / 2)), int(max(0, y - size / 2))
        box, colour = (left, top, int(min(width, left + size)), int(min(height, top + size))), (127, 127, 127)
    else:
        left, top = int(x) - size // 2, int(y) - size // 2
        # Pillow's corners are inside.
        box = (max(0, left), max(0, top), min(width, left + size) - 1, min(height, top + size) - 1)
        colour = (0, 0, 0)
    image = image.copy()
    ImageDraw.Draw(image).rectangle(box, colour)
    return image


class RandAugmentMC(A.ImageOnlyTransform):
    """FixMatch's RandAugment: operations at a level drawn anew, each applied to half of the images, then a cut-out.

    Args:
        operations: How many are drawn, with repetition.
        size: Side of the cut-out in pixels; 0 for none.
        levels: What levels mean and where the cut-out lies: `port`, the PyTorch code that most numbers come from, or
            `official`.
        p: Probability of applying it to an image.

    Raises:
        OptionError: Levels of neither.
    """

    def __init__(self, operations: int = 2, size: int = 16, levels: Levels = "port", p: float = 1.0) -> None:
        super().__init__(p=p)
        if levels not in ("port", "official"):
            raise OptionError(f"levels={levels!r} is none of port, official.")
        self.operations, self.size, self.levels = operations, size, levels

    @override
    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        image = Image.fromarray(img)
        draw: Callable[[], float] = self.py_random.random
        for _ in range(self.operations):
            name, level = OPERATIONS[int(draw() * len(OPERATIONS))], 1 + int(draw() * (_LEVELS - 1))
            applied, negative = draw() < 0.5, draw() < 0.5
            if applied:
                image = operate(image, name, level, negative, self.levels)
        if self.size:
            image = cut_out(image, draw() * image.size[0], draw() * image.size[1], self.size, self.levels)
        return np.array(image)
