"""Scenes composed of handwritten digits: pictures whose every object, box and mask is known."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from sklearn.datasets import load_digits

from datamodules.errors import OptionError

# Ink above this is the object.
INK = 0.4
TRIES = 50


@dataclass(frozen=True)
class Canvas:
    """One composed picture.

    Args:
        image: RGB, uint8 [H,W,3].
        labels: Digit of each object, int64 [n].
        masks: Visible pixels of each object, bool [n,H,W], none empty.
        corners: Left, top, side of the square that each digit was drawn in, int64 [n,3].
    """

    image: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    corners: np.ndarray

    @property
    def boxes(self) -> np.ndarray:
        """Tight boxes of the masks, x0, y0, x1, y1 in pixels, int64 [n,4]."""
        boxes = np.empty((len(self.masks), 4), np.int64)
        for mask, box in zip(self.masks, boxes, strict=True):
            columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        return boxes


class CanvasPainter:
    """Draws scikit-learn's digits, coloured and at random places, on noise.

    Args:
        digits: Which of the 1797 digits may occur, as a range of their numbers.
        size: Side of the square canvas in pixels.
        objects: Fewest and most digits of a canvas.
        digit_size: Smallest and largest side of a digit in pixels.
        overlap: Largest part of a digit's square that another may cover; 0 keeps them apart.

    Raises:
        OptionError: If a range is empty or a digit does not fit the canvas.
    """

    def __init__(
        self,
        digits: range,
        size: int = 64,
        objects: tuple[int, int] = (1, 3),
        digit_size: tuple[int, int] = (14, 29),
        overlap: float = 0.0,
    ) -> None:
        if (
            not 0 <= objects[0] <= objects[1]
            or not 8 <= digit_size[0] <= digit_size[1] <= size
            or not 0 <= overlap <= 1
        ):
            raise OptionError(
                f"objects={objects} must be a range from 0 on, digit_size={digit_size} a range of pixels from 8 to the "
                f"canvas ({size}), and overlap={overlap} a fraction."
            )
        pixels, labels = load_digits(return_X_y=True)
        self.pixels = pixels.reshape(-1, 8, 8)[digits.start : digits.stop].astype(np.float32) / 16
        self.labels = labels[digits.start : digits.stop].astype(np.int64)
        self.size, self.objects, self.digit_size, self.overlap = size, objects, digit_size, overlap

    def paint(self, random: np.random.Generator) -> Canvas:
        """Draws one canvas; digits for which no free place is found in 50 tries are left out.

        Args:
            random: Where its random numbers come from.

        Returns:
            The canvas.
        """
        picture = random.uniform(0, 0.25, (self.size, self.size, 3)).astype(np.float32)
        corners: list[tuple[int, int, int]] = []
        labels: list[int] = []
        masks = np.zeros((0, self.size, self.size), bool)
        for _ in range(random.integers(self.objects[0], self.objects[1] + 1)):
            place = self._place(random, corners)
            number, colour = random.integers(len(self.labels)), random.uniform(0.4, 1.0, 3).astype(np.float32)
            if place is None:
                continue
            left, top, side = place
            ink = cv2.resize(self.pixels[number], (side, side), interpolation=cv2.INTER_LINEAR)
            window = slice(top, top + side), slice(left, left + side)
            picture[window] = picture[window] * (1 - ink[..., None]) + colour * ink[..., None]
            drawn = np.zeros((1, self.size, self.size), bool)
            drawn[0][window] = ink > INK
            masks = np.concatenate([masks & ~drawn, drawn])
            corners.append(place)
            labels.append(int(self.labels[number]))
        seen = masks.any((1, 2))
        image = np.rint(picture * 255).astype(np.uint8)
        return Canvas(
            image,
            np.array(labels, np.int64)[seen],
            masks[seen],
            np.array(corners, np.int64).reshape(-1, 3)[seen],
        )

    def _place(self, random: np.random.Generator, others: list[tuple[int, int, int]]) -> tuple[int, int, int] | None:
        """A square that covers no more of the others than allowed, nor they of it."""
        for _ in range(TRIES):
            side = int(random.integers(self.digit_size[0], self.digit_size[1] + 1))
            left, top = (int(value) for value in random.integers(0, self.size - side + 1, 2))
            if all(_covered((left, top, side), other) <= self.overlap for other in others):
                return left, top, side
        return None


def _covered(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """Common part of two squares, as a fraction of the smaller."""
    width, height = (
        max(0, min(one[axis] + one[2], other[axis] + other[2]) - max(one[axis], other[axis])) for axis in (0, 1)
    )
    return width * height / min(one[2], other[2]) ** 2
