"""What the values of label files mean: classes, their colours, and which values are void."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from datamodules.errors import DataError, OptionError

VOID = 255
# In the lookup table; no class has it.
UNKNOWN = 254
MAX_LISTED = 5
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class LabelMap:
    """The classes of a segmentation data set and how its files write them.

    Args:
        names: Class names in the order of the train ids, which count from 0.
        palette: RGB of each class in pictures, and in label files that are colour pictures.
        ids: Value of each class in label files.
        void_ids: Values that are no class and not evaluated, besides 255 if it is not the value of a class.
        void_colours: The same for label files that are colour pictures.

    Raises:
        OptionError: If classes are missing, too many, or share a value or colour with each other or with void.
    """

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    ids: tuple[int, ...]
    void_ids: tuple[int, ...] = ()
    void_colours: tuple[Colour, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= UNKNOWN or not len(self.names) == len(self.palette) == len(self.ids):
            raise OptionError(
                f"{len(self.names)} names, {len(self.palette)} colours and {len(self.ids)} ids: give one of each, for "
                f"1 to {UNKNOWN} classes."
            )
        values = [*self.ids, *self.void_ids]
        colours = [*self.palette, *self.void_colours]
        if any(not 0 <= value <= 255 for value in values + [part for colour in colours for part in colour]):
            raise OptionError("Values and colours of label files are numbers from 0 to 255.")
        meanings = [Counter(f"value {value}" for value in values), Counter(f"colour {colour}" for colour in colours)]
        for what, number in (meanings[0] + meanings[1]).items():
            if number > 1:
                raise OptionError(f"The {what} of label files has {number} meanings; it can have one.")

    def as_train_ids(self) -> LabelMap:
        """The same classes for files that hold train ids already, which must not be mapped again."""
        return LabelMap(self.names, self.palette, tuple(range(len(self.names))))

    def train_ids(self, values: np.ndarray) -> np.ndarray:
        """Maps values of a label file to train ids.

        Args:
            values: uint8 [H,W], or a colour picture, uint8 [H,W,3] RGB.

        Returns:
            Train ids, uint8 [H,W]; 255 is void.

        Raises:
            DataError: If there are values or colours that are neither a class nor void.
        """
        if values.ndim == 3:
            return self._from_colours(values)
        table = np.full(256, UNKNOWN, np.uint8)
        table[self._void_values()] = VOID
        table[list(self.ids)] = np.arange(len(self.ids))
        mapped = cv2.LUT(values, table)
        unknown = mapped == UNKNOWN
        if unknown.any():
            found = np.unique(values[unknown]).tolist()
            raise DataError(
                f"label values {_listed(found)} are outside the palette: they are neither a class "
                f"({_listed(sorted(self.ids))}) nor void ({_listed(self._void_values())})"
            )
        return mapped

    def _void_values(self) -> list[int]:
        return sorted({*self.void_ids, *({VOID} - {*self.ids})})

    def file_ids(self, train_ids: np.ndarray, void_id: int = 0) -> np.ndarray:
        """Maps train ids back to the values that label files (and evaluation servers) use.

        Args:
            train_ids: uint8 [H,W]; 255 is void.
            void_id: Value of what is void.

        Returns:
            uint8 [H,W].
        """
        table = np.full(256, void_id, np.uint8)
        table[: len(self.ids)] = self.ids
        return cv2.LUT(train_ids, table)

    def _from_colours(self, picture: np.ndarray) -> np.ndarray:
        known = _codes(np.array([*self.palette, *self.void_colours]))
        labels = np.array([*range(len(self.palette)), *[VOID] * len(self.void_colours)], np.uint8)
        order = np.argsort(known)
        codes = _codes(picture)
        place = order[np.searchsorted(known, codes, sorter=order).clip(max=len(known) - 1)]
        unknown = known[place] != codes
        if unknown.any():
            found = [(code >> 16, code >> 8 & 255, code & 255) for code in np.unique(codes[unknown]).tolist()]
            raise DataError(
                f"label colours {_listed(found)} are outside the palette: give each class and each void colour as the "
                "files have it, or write label files with one 8-bit channel of class values"
            )
        return labels[place]


def voc_colours(number: int) -> tuple[Colour, ...]:
    """The colour map of PASCAL VOC, in which every class has a colour of its own; black comes first.

    The bits of a class index are dealt out to red, green and blue in turn, high bits of the colour first.

    Args:
        number: Classes, at most 256.

    Returns:
        RGB of each class.
    """
    colours = np.zeros((number, 3), np.int64)
    index = np.arange(number)
    for bit in range(8):
        colours[:, bit % 3] |= (index >> bit & 1) << 7 - bit // 3
    return tuple((int(red), int(green), int(blue)) for red, green, blue in colours)


def _codes(colours: np.ndarray) -> np.ndarray:
    """One number for each colour: [...,3] to int32 [...]."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def _listed(values: Sequence[object]) -> str:
    listed = ", ".join(map(str, values[:MAX_LISTED]))
    return listed + (f" and {len(values) - MAX_LISTED} more" if len(values) > MAX_LISTED else "")
