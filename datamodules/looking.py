"""What people see of a data set: names, pictures and sizes of its samples, and what they are labelled with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodules.decoding import Encoded, fitted
from datamodules.finding import shown
from datamodules.splits import Source


@dataclass(frozen=True)
class Marks:
    """What a sample is labelled with, in pixels of its image.

    Args:
        caption: In words.
        boxes: x0, y0, x1, y1 of its objects, [n,4]; None where the data have no objects.
        labels: Class of each, int64 [n].
        masks: Of each, bool [n,H,W]; None without.
        pixels: Class of each pixel, uint8 [H,W]; None without.
        palette: RGB of each class of pixels, uint8 [K,3].
        joints: x, y and 1 where annotated, else 0, [people,J,3]; None without.
        bones: Pairs of joints that a line connects.
    """

    caption: str = ""
    boxes: np.ndarray | None = None
    labels: np.ndarray | None = None
    masks: np.ndarray | None = None
    pixels: np.ndarray | None = None
    palette: np.ndarray | None = None
    joints: np.ndarray | None = None
    bones: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class Counts:
    """How much of each class a split has.

    Args:
        images: Images that it is in, int64 [K].
        amount: Its objects, pixels or what else there is of it, int64 [K]; None where that is images.
        unit: What is counted besides images.
    """

    images: np.ndarray
    amount: np.ndarray | None = None
    unit: str = ""


class Looking(ABC):
    """The part of a data module that pictures and reports of its data ask."""

    class_names: list[str]

    @abstractmethod
    def source(self, split: str) -> Source:
        """Data set of a split."""

    def described(self) -> str:
        """Where and in which layout the data were found, in a line; empty if there was nothing to find out."""
        return ""

    def sample_name(self, split: str, index: int) -> str:
        """What a person would look for: a path, or ``cifar10/test #17``."""
        return shown(self.source(split).name(index))

    def raw_image(self, split: str, index: int) -> np.ndarray:
        """The image before any transform, [H,W,3] uint8 RGB.

        Raises:
            DataError: If it cannot be read.
        """
        image = self.source(split).load(index)["image"]
        return image.decode() if isinstance(image, Encoded) else image

    def picture(self, split: str, index: int, longest: int) -> np.ndarray:
        """The image before any transform, as large as it is drawn: a photograph need not be decoded whole.

        Args:
            longest: Most pixels of the longer side; smaller images stay as they are.

        Returns:
            RGB, uint8 [h,w,3].
        """
        image = self.source(split).load(index)["image"]
        return image.reduced(longest) if isinstance(image, Encoded) else fitted(image, longest)

    def image_size(self, split: str, index: int) -> tuple[int, int]:
        """Height and width of the image before any transform; of a file, by its header."""
        image = self.source(split).load(index)["image"]
        return image.size() if isinstance(image, Encoded) else (int(image.shape[0]), int(image.shape[1]))

    def class_counts(self, split: str) -> Counts | None:
        """How much of each class a split has; None of data without classes.

        Raises:
            DataError: If labels have to be read and cannot be.
        """
        labels = getattr(self.source(split), "labels", None)
        return None if labels is None else Counts(np.bincount(labels, minlength=len(self.class_names)))

    def marks(self, sample: dict[str, Any]) -> Marks:
        """What a sample is labelled with, before its transforms or after them.

        Args:
            sample: As a split loads it, or as ``pipeline_for`` makes of it.
        """
        label = sample.get("label")
        named = isinstance(label, int | np.integer) and int(label) < len(self.class_names)
        return Marks(self.class_names[int(label)] if named and label is not None else "")
